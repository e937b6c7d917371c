"""The network's grid: its place in the scan, and the scan's voxels resampled onto it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.ops import window_resample
from fastmed.preprocessing.lungs import lung_box
from fastmed.spec import AXES, Spec
from fastmed.volume import NO_SPACING, Volume

# What a spec's region leaves of a scan, as a Geometry that holds it.
_REGIONS = {"scan": lambda volume: volume.geometry, "lungs": lung_box}


def grid_geometry(volume: Volume, spec: Spec) -> Geometry:
    """Lays the network's grid over the spec's region of a scan.

    Its axes are right-angled and run as the spec's `axes` say, as nearly as the scan's can. Its
    spacing is the spec's, or follows from the region's extent where the spec gives a size. For a
    detection of 2 dimensions it is the scan's own lattice, tilted as it is and its axes reordered
    and flipped as `along_patient` says, with each slice divided into rows and columns as the spec
    gives them.

    Raises SeriesError where the region is not in the scan, or where the spec's spacing is in mm
    and the scan's is unknown.
    """
    if spec.spacing_mm_zyx is not None and not volume.spacing_is_known and spec.modality == "ct":
        raise SeriesError(NO_SPACING)
    if _sees_slices(spec):
        scan = volume.geometry.along_patient()
        return scan.resized((scan.shape_zyx[0], *spec.size_zyx[1:]))
    region = _REGIONS[spec.region](volume)
    if spec.size_zyx is not None:
        return region.grid_of_size(_along_patient(spec.size_zyx, spec)).along(spec.axes)
    return region.grid(_along_patient(spec.spacing_mm_zyx, spec)).along(spec.axes)


def _along_patient(values: tuple, spec: Spec) -> tuple:
    """Values of the network's axes in the order of head, back and left."""
    return tuple(values[next(k for k, a in enumerate(spec.axes) if a in pair)] for pair in AXES)


def fill_hu(volume: Volume, spec: Spec) -> float | None:
    """What stands for voxels outside the scan, in HU; None repeats its outermost voxels.

    A grid over a whole right-angled scan, or on the scan's own lattice, leaves it by less than a
    voxel; one over a sheared scan or a region may leave it by more.
    """
    whole = spec.region == "scan" and not volume.geometry.is_sheared
    whole = whole or _sees_slices(spec)
    return None if whole else spec.outside_hu


def to_grid(
    volume: Volume, spec: Spec, device: torch.device | str = "cpu"
) -> tuple[Tensor, Geometry]:
    """Cuts the network's grid from a scan: rescale, window and resampling in one pass.

    Returns the grid [D, H, W] float32 in 0..1 on `device`, and its Geometry. The window is the
    spec's, never one of this scan. Raises as `grid_geometry`.
    """
    grid = grid_geometry(volume, spec)
    image = window_resample(
        torch.from_numpy(np.ascontiguousarray(volume.voxels)).to(device),
        torch.from_numpy(volume.geometry.matrix_from(grid)).to(device),
        grid.shape_zyx,
        scale=volume.slope,
        shift=volume.intercept,
        window=spec.window_hu,
        fill=fill_hu(volume, spec),
    )
    return image, grid


def _sees_slices(spec: Spec) -> bool:
    return spec.task == "detection" and spec.dimensions == 2
