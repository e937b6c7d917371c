"""Mirror: a network sees each tile mirrored too, and the mean of what it says counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from fastmed.spec import Spec

Network = Callable[[Tensor], Tensor]
_SPATIAL = (2, 3, 4)  # axes of tiles [B, C, D, H, W]


def mirrored(network: Network, spec: Spec) -> Network:
    """A network that averages what another says of tiles and of their mirror images.

    network: tiles [B, C, D, H, W] to logits or raw outputs, as engines give them; it is called
        once for each combination of the spec's mirrored axes, 2, 4 or 8 times. Without any it is
        returned itself.

    What is said of a mirror image is mirrored back: a segmentation's voxels, a detection's default
    boxes with the shifts in their codes; a classification has no place. Source: test-time mirroring
    as in nnU-Net (Isensee et al., Nature Methods 2021).
    """
    axes = [axis for axis, is_on in zip(_SPATIAL, spec.mirror_zyx, strict=True) if is_on]
    if not axes:
        return network
    turns = [turn for count in range(len(axes) + 1) for turn in combinations(axes, count)]
    back = _BACK[spec.task]

    def network_of_all(tiles: Tensor) -> Tensor:
        mean: Tensor | None = None
        for turn in turns:
            said = network(tiles.flip(turn) if turn else tiles)
            said = back(said, turn, tiles.shape[2:], spec) if turn else said
            # An engine's output is valid until its next call only.
            mean = said.clone() if mean is None else mean.add_(said)
        return mean.div_(len(turns))

    return network_of_all


def _voxels_back(logits: Tensor, turn, size_zyx, spec: Spec) -> Tensor:
    return logits.flip(turn)


def _boxes_back(raw: Tensor, turn, size_zyx, spec: Spec) -> Tensor:
    """Raw outputs [B, N, 6 + classes]: the places of each level, and what their codes shift by."""
    per_place = len(spec.detection.diameters_mm[0])
    levels, first = [], 0
    for stride in spec.detection.strides:
        places = [math.ceil(size / stride) for size in size_zyx]
        count = math.prod(places) * per_place
        level = raw[:, first : first + count].unflatten(1, (*places, per_place))
        levels.append(level.flip([axis - 1 for axis in turn]).flatten(1, 4))
        first += count
    mirrored_raw = torch.cat(levels, 1)
    for axis in turn:
        mirrored_raw[..., _SPATIAL[-1] - axis].neg_()  # codes begin with the shifts along x, y, z
    return mirrored_raw


_BACK = {
    "segmentation": _voxels_back,
    "detection": _boxes_back,
    "classification": lambda logits, turn, size_zyx, spec: logits,
}
