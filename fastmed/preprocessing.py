"""Preprocessing: a Volume becomes the network's grid, the same way in training and inference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmed.geometry import Geometry
from fastmed.ops import window_resample
from fastmed.spec import Spec
from fastmed.volume import Volume


def to_grid(
    volume: Volume, spec: Spec, device: torch.device | str = "cpu"
) -> tuple[Tensor, Geometry]:
    """Cuts the network's grid from a scan: rescale, window and resampling in one pass.

    Returns the grid [D, H, W] float32 in 0..1 on `device`, and its Geometry. Beyond the scan's
    edges its outermost voxels repeat; outside a sheared scan stands `spec.outside_hu`.
    """
    grid = grid_geometry(volume, spec)
    image = window_resample(
        torch.from_numpy(np.ascontiguousarray(volume.voxels)).to(device),
        torch.from_numpy(volume.geometry.matrix_from(grid)).to(device),
        grid.shape_zyx,
        scale=volume.slope,
        shift=volume.intercept,
        window=spec.window_hu,
        fill=outside(volume, spec),
    )
    return image, grid


def grid_geometry(volume: Volume, spec: Spec) -> Geometry:
    """The network's grid over a scan, from its spacing or from its size."""
    if spec.spacing_mm_zyx is not None:
        return volume.geometry.grid(spec.spacing_mm_zyx)
    # A grid of the scan's own fineness tells the extents along the patient's axes.
    fine = volume.geometry.grid(volume.geometry.spacing_mm_zyx)
    extent = np.multiply(fine.shape_zyx, fine.spacing_mm_zyx)
    spacing = extent / spec.size_zyx
    corner = fine.to_world((-0.5, -0.5, -0.5))
    steps = fine.directions * spacing[:, None]
    return Geometry.from_axes(spec.size_zyx, corner + steps.sum(axis=0) / 2, steps)


def outside(volume: Volume, spec: Spec) -> float | None:
    """What the grid holds where it leaves the scan, in HU; None repeats the edge."""
    return spec.outside_hu if volume.geometry.is_sheared else None
