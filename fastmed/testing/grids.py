"""Matrices from output to input index, and the positions they give."""

import math

import torch
from torch import Tensor


def axis_matrix(steps, origin=(0.0, 0.0, 0.0)) -> Tensor:
    """[3, 4] float64 matrix of a straight grid: input index = steps * output index + origin."""
    return torch.cat(
        [
            torch.diag(torch.tensor(steps, dtype=torch.float64)),
            torch.tensor([origin], dtype=torch.float64).T,
        ],
        1,
    )


def fitted_matrix(shape, size) -> Tensor:
    """[3, 4] matrix that spans a volume of that shape with size output voxels, edge to edge."""
    steps = [length / count for length, count in zip(shape, size, strict=True)]
    return axis_matrix(steps, [(step - 1) / 2 for step in steps])


def oblique_matrix(shape, size, *, tilt=0.2, turn=0.3) -> Tensor:
    """[3, 4] matrix that shears (gantry tilt) and turns a grid about the volume's centre."""
    shear = torch.eye(3, dtype=torch.float64)
    shear[1, 0] = math.tan(tilt)
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[1, 1] = rotation[2, 2] = math.cos(turn)
    rotation[1, 2], rotation[2, 1] = -math.sin(turn), math.sin(turn)
    linear = shear @ rotation @ fitted_matrix(shape, size)[:, :3]
    centre_in = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    centre_out = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    return torch.cat([linear, (centre_in - linear @ centre_out)[:, None]], 1)


def sample_positions(matrix: Tensor, size) -> Tensor:
    """Input index of every output voxel: float64 [*size, 3]."""
    axes = [torch.arange(length, dtype=torch.float64, device=matrix.device) for length in size]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    rows = matrix.double()
    return (rows[:, 0] * z[..., None] + rows[:, 1] * y[..., None] + rows[:, 3]) + rows[:, 2] * x[
        ..., None
    ]
