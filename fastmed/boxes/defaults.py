"""Default boxes: where a network's answers stand, before it has said anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SSD300_SIZE = 300
_SSD300_STEPS = (8, 16, 32, 64, 100, 300)
_SSD300_PLACES = (38, 19, 10, 5, 3, 1)
_SSD300_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
_SSD300_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SSD300_PER_LEVEL = tuple(
    places**2 * (2 + 2 * len(ratios))
    for places, ratios in zip(_SSD300_PLACES, _SSD300_RATIOS, strict=True)
)


def default_boxes(
    size_zyx: Sequence[int],
    strides: Sequence[int],
    diameters_vox_zyx: Sequence[Sequence[Sequence[float]]],
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Lays the default boxes of a 3D network over a grid.

    The places of a level of stride s are at voxel (i + 0.5) * s - 0.5 along each axis, for i below
    ceil(size / s): the middle of the s voxels that it sums up.

    Args:
        size_zyx: of the grid (or tile, or patch), in voxels.
        strides: voxels from one place to the next, per level.
        diameters_vox_zyx: per level, the (dz, dy, dx) in voxels of each box of a place.

    Returns:
        [N, 6] float32, (x1, y1, z1, x2, y2, z2) in voxels; N by level, z, y, x, diameter.

    Raises:
        ValueError: no level, levels that are not as many, or a size that is not positive.
    """
    if not strides or len(strides) != len(diameters_vox_zyx):
        raise ValueError(
            f"strides {tuple(strides)}: expected one per level of diameters_vox_zyx, "
            f"{len(diameters_vox_zyx)} and at least 1"
        )
    if min(*size_zyx, *strides) < 1:
        raise ValueError(f"size_zyx {tuple(size_zyx)}, strides {tuple(strides)}: expected above 0")
    levels = []
    for stride, diameters in zip(strides, diameters_vox_zyx, strict=True):
        axes = [
            (torch.arange(-(-n // stride), dtype=torch.float32, device=device) + 0.5) * stride - 0.5
            for n in size_zyx
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 1, 3)
        half = torch.tensor(diameters, dtype=torch.float32, device=device).reshape(-1, 3) / 2
        low, high = places - half, places + half
        levels.append(torch.cat([low.flip(-1), high.flip(-1)], -1).reshape(-1, 6))
    return torch.cat(levels)


def boxes_per_level(
    size_zyx: Sequence[int], strides: Sequence[int], boxes_per_place: int
) -> tuple[int, ...]:
    """How many of `default_boxes` each level has."""
    return tuple(
        boxes_per_place * math.prod(-(-n // stride) for n in size_zyx) for stride in strides
    )


def diameters_in_voxels(
    diameters_mm: Sequence[Sequence[float]], spacing_mm_zyx: Sequence[float]
) -> tuple[tuple[tuple[float, float, float], ...], ...]:
    """Per level the (dz, dy, dx) in voxels of cubes of these sides in mm."""
    return tuple(
        tuple(tuple(side / spacing for spacing in spacing_mm_zyx) for side in level)
        for level in diameters_mm
    )


def default_boxes_ssd300(*, device: torch.device | str | None = None) -> Tensor:
    """The 8732 default boxes of SSD300 with VGG16, as torchvision's ssd300_vgg16 has them.

    Sides are cut to the image's, corners are not.

    Returns:
        [8732, 4] float32, (x1, y1, x2, y2) in voxels of the 300 x 300 grid, torchvision's minus
        0.5; by level, y, x, shape. `SSD300_PER_LEVEL` says how many each level has.

    Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016.
    """
    levels = []
    for level, (step, places, ratios) in enumerate(
        zip(_SSD300_STEPS, _SSD300_PLACES, _SSD300_RATIOS, strict=True)
    ):
        scale, larger = _SSD300_SCALES[level : level + 2]
        between = math.sqrt(scale * larger)
        sides = [(scale, scale), (between, between)]
        for ratio in ratios:
            long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            sides += [(long, short), (short, long)]
        half = torch.tensor(sides, device=device).clamp_max(1) * 0.5
        # Shares of the image until the end, so that rounding is torchvision's.
        along = (torch.arange(places, device=device) + 0.5) / (_SSD300_SIZE / step)
        y, x = torch.meshgrid(along, along, indexing="ij")
        middle = torch.stack([x, y], -1).reshape(-1, 1, 2)
        levels.append(torch.cat([middle - half, middle + half], -1).reshape(-1, 4))
    return torch.cat(levels) * _SSD300_SIZE - 0.5
