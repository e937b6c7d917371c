"""Bodies: a few phantoms that many scans of an archive are cut from, each in its own way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastmed.geometry import Geometry
from fastmed.ops import window_resample
from fastmed.phantom import abdomen
from fastmed.volume import Volume

_SPACING_MM = 4.0
_FIELD_MM = 410.0  # rows and columns reach this far
_HEIGHT_MM = 200.0  # and the slices this far, downwards from a little above the liver's dome
_TOP_MM = 24.0


@dataclass(frozen=True, eq=False)
class Body:
    """A phantom on a coarse grid, and where its liver is (1.0, elsewhere 0.0)."""

    volume: Volume
    liver: torch.Tensor

    @classmethod
    def drawn(cls, seed: int) -> Body:
        across, depth = int(_FIELD_MM / _SPACING_MM) + 4, int(_HEIGHT_MM / _SPACING_MM) + 10
        low = _TOP_MM - _SPACING_MM * (depth - 5)
        middle = -0.5 * _SPACING_MM * (across - 1)
        spacing = (_SPACING_MM,) * 3
        grid = Geometry.from_spacing((depth, across, across), spacing, (middle, middle, low))
        volume, truth = abdomen(grid, seed)
        return cls(volume, torch.from_numpy((truth.labels == 1).astype(np.float32)))

    def cut(self, planes: list[Geometry], rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Cuts slices out of the body: returns stored int16 [n, H, W] (HU + 1024) and liver in ml.

        planes: one grid of one slice for each, of one shape; their distance counts for the volume
            of the liver, which holds where they are evenly spaced.
        rng: draws the scanner's gain and noise, so that no two scans have the same voxels.
        """
        matrices = torch.stack(
            [torch.from_numpy(self.volume.geometry.matrix_from(plane)) for plane in planes]
        )
        size = planes[0].shape_zyx
        hu = window_resample(
            torch.from_numpy(self.volume.voxels), matrices, size, shift=-1024.0, fill=-1000.0
        ).numpy()[:, 0]
        gain, noise_hu = rng.uniform(0.95, 1.05), rng.uniform(4, 14)
        noise = noise_hu * rng.standard_normal(hu.shape, dtype=np.float32)
        stored = np.clip(np.rint((hu + 1000) * gain + 24 + noise), 0, 4095).astype(np.int16)
        liver = window_resample(self.liver, matrices, size, fill=0.0)
        return stored, float((liver > 0.5).sum()) * planes[0].voxel_volume_mm3 / 1000


def scan_grid(shape_zyx, rng: np.random.Generator, *, tilt_degrees: float = 0.0) -> Geometry:
    """A grid over the field of view of a body, a little larger or smaller than the next one's."""
    depth, rows, columns = shape_zyx
    field = _FIELD_MM * rng.uniform(0.9, 1.0)
    pixel = round(field / max(rows, columns), 4)
    gap = round(_HEIGHT_MM * float(rng.uniform(0.9, 1.0)) / depth, 3)
    lean = np.radians(tilt_degrees)
    down = pixel * np.array([0.0, np.cos(lean), -np.sin(lean)])
    along = np.array([pixel, 0.0, 0.0])
    shift = np.round(rng.uniform(-8, 8, 2), 2)
    lowest = np.array([*shift, _TOP_MM - gap * (depth - 1)])
    first = lowest - 0.5 * (rows - 1) * down - 0.5 * (columns - 1) * along
    return Geometry.from_axes(shape_zyx, first, [(0.0, 0.0, gap), down, along])


def planes_of(grid: Geometry, z_index) -> list[Geometry]:
    """One grid of one slice for each index along z of `grid`; the indices may be fractions."""
    shape = (1, *grid.shape_zyx[1:])
    return [Geometry.from_axes(shape, grid.to_world((z, 0, 0)), grid.steps_lps_mm) for z in z_index]
