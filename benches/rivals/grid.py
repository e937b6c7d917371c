"""What one output of window_resample is, in the terms of the others; torch's affine of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmed.testing import fitted_matrix


@dataclass(frozen=True)
class Grid:
    """One output of window_resample: value = factor * stored + offset, clamped to 0..1 or not.

    fill: stored value outside the volume; None repeats the edge.
    """

    volume: Tensor
    matrix: Tensor
    size: tuple[int, int, int]
    factor: float
    offset: float
    fill: float | None
    clamped: bool
    nearest: bool
    dtype: torch.dtype

    @property
    def is_edge_to_edge(self) -> bool:
        """Whether the grid is the one that F.interpolate knows."""
        fitted = fitted_matrix(self.volume.shape, self.size)
        inside = self.fill is None or bool((fitted[:, 3] >= 0).all())
        return inside and torch.allclose(self.matrix, fitted, rtol=0, atol=1e-9)


def grids_of(volume, matrix, size, scale, shift, window, fill, nearest, dtype) -> list[Grid]:
    single = isinstance(volume, Tensor) and volume.dim() == 3
    volumes = [volume] if single else list(volume)
    matrices = matrix.reshape(-1, 3, 4).double().cpu()
    count = len(matrices) if single else len(volumes)

    def of_output(value, index, width=1):
        rows = torch.as_tensor(value, dtype=torch.float64).reshape(-1, width).tolist()
        row = rows[index if len(rows) > 1 else 0]
        return row[0] if width == 1 else row

    grids = []
    for index in range(count):
        slope, intercept = of_output(scale, index), of_output(shift, index)
        factor, offset = slope, intercept
        if window is not None:
            low, high = of_output(window, index, 2)
            factor, offset = slope / (high - low), (intercept - low) / (high - low)
        grids.append(
            Grid(
                volumes[0 if single else index],
                matrices[index if len(matrices) > 1 else 0],
                tuple(size),
                factor,
                offset,
                None if fill is None else (of_output(fill, index) - intercept) / slope,
                window is not None,
                nearest,
                dtype,
            )
        )
    return grids


def as_stack(result: Tensor) -> Tensor:
    """[N, *size] of what window_resample returned."""
    return result if result.dim() == 4 else result[None]


def theta(matrix: Tensor, shape, size) -> Tensor:
    """[3, 4] of affine_grid, whose axes are (x, y, z), -1 to 1 at the outer edges."""
    shape_in = torch.tensor(tuple(shape)[::-1], dtype=torch.float64)
    shape_out = torch.tensor(tuple(size)[::-1], dtype=torch.float64)
    linear = matrix[:, :3].flip(0, 1)
    scaled = linear * shape_out / shape_in[:, None]
    origin = (2 * (matrix[:, 3].flip(0) + linear @ ((shape_out - 1) / 2)) + 1) / shape_in - 1
    return torch.cat([scaled, origin[:, None]], 1).float()
