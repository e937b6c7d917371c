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
    grid = volume.geometry.grid(spec.spacing_mm_zyx)
    image = window_resample(
        torch.from_numpy(np.ascontiguousarray(volume.voxels)).to(device),
        torch.from_numpy(volume.geometry.matrix_from(grid)).to(device),
        grid.shape_zyx,
        scale=volume.slope,
        shift=volume.intercept,
        window=spec.window_hu,
        fill=spec.outside_hu if volume.geometry.is_sheared else None,
    )
    return image, grid
