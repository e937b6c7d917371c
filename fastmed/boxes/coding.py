"""The code of a box: how it differs from its default box. What networks learn to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHTS_2D = (10.0, 10.0, 5.0, 5.0)
WEIGHTS_3D = (10.0, 10.0, 10.0, 5.0, 5.0, 5.0)
_LARGEST_GROWTH = math.log(1000 / 16)  # a code from a wild network must not overflow exp


def encode(boxes: Tensor, defaults: Tensor, weights: Sequence[float]) -> Tensor:
    """Says each box by its default box.

    Along each axis the shift of the centre in sides of the default box, then the log of the ratio
    of the sides, each times its weight; as torchvision's BoxCoder.

    Args:
        boxes: [..., 2K] corners, K = 2 or 3, of positive sides.
        defaults: [..., 2K] corners, broadcast against boxes.
        weights: 2K numbers, `WEIGHTS_2D` or `WEIGHTS_3D`.

    Returns:
        [..., 2K] codes (dx, dy[, dz], dw, dh[, dd]).

    Source: Girshick et al., "Rich feature hierarchies", CVPR 2014, for corners as in SSD.
    """
    middle, sides = _middle_and_sides(defaults)
    own_middle, own_sides = _middle_and_sides(boxes)
    axes = middle.shape[-1]
    shift = _times(own_middle - middle, weights[:axes]) / sides
    growth = _times(torch.log(own_sides / sides), weights[axes:])
    return torch.cat([shift, growth], -1)


def decode(codes: Tensor, defaults: Tensor, weights: Sequence[float]) -> Tensor:
    """The boxes [..., 2K] of codes [..., 2K]: the inverse of `encode`.

    Growth stops at 62.5 times the default box's side, with no gradient beyond.
    """
    middle, sides = _middle_and_sides(defaults)
    axes = middle.shape[-1]
    growth = _over(codes[..., axes:], weights[axes:]).clamp_max(_LARGEST_GROWTH)
    own_middle = _over(codes[..., :axes], weights[:axes]) * sides + middle
    half = 0.5 * (torch.exp(growth) * sides)
    return torch.cat([own_middle - half, own_middle + half], -1)


def _middle_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.chunk(2, -1)
    sides = high - low
    return low + 0.5 * sides, sides


def _times(values: Tensor, weights: Sequence[float]) -> Tensor:
    """Times a number per axis, without a tensor of them, which CUDA would have to wait for."""
    return torch.stack([v * w for v, w in zip(values.unbind(-1), weights, strict=True)], -1)


def _over(values: Tensor, weights: Sequence[float]) -> Tensor:
    return torch.stack([v / w for v, w in zip(values.unbind(-1), weights, strict=True)], -1)
