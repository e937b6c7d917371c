"""Boxes in training samples: where a patch is cut for them, and where they lie in it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmed import models
from fastmed.boxes import moved_boxes
from fastmed.losses import Targets
from fastmed.models.channels import channels_taken
from fastmed.spec import Spec
from fastmed.training.augment import after
from fastmed.training.stored_case import StoredCase

IGNORED = -1  # the label of a finding that the patch's border cuts too deep
_KEPT_SHARE = 0.5  # of a finding's volume that the patch must show for it to count


def patch_size(spec: Spec, wanted: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Voxels of a detection's patch; in 2D a whole slice of the grid and its neighbours."""
    if spec.dimensions == 2:
        return (spec.slices, *spec.size_zyx[1:])
    return wanted or spec.tile_zyx


def input_channels(spec: Spec) -> int | None:
    """How many channels the spec's network takes; None where it has no convolution."""
    with torch.device("meta"):
        return channels_taken(models.build(spec.network.name, **spec.network.arguments))


def patch_start(
    stored: StoredCase, patch_zyx, spec: Spec, foreground: float, rng: np.random.Generator
) -> list[int]:
    """First grid voxel of a patch; in 2D of the neighbours of a slice, before the grid for some.

    A share `foreground` of patches has a finding, each label as often, whole in it where it fits
    and as likely at any place; of slices, one that has findings. The other patches lie anywhere in
    the region, the other slices are any of those that somebody looked at.
    """
    wants_finding = rng.random() < foreground
    shares = rng.random(3)
    rows = stored.boxes
    if spec.dimensions == 3:
        rows = rows[_in_region(rows, stored.region)]
    classes = np.unique(rows[:, -1])
    box = None
    if wants_finding and len(classes):
        own = rows[rows[:, -1] == rng.choice(classes)]
        box = own[rng.integers(len(own))]
    if spec.dimensions == 2:
        known = stored.slices
        at = int(box[0]) if box is not None else known[int(shares[0] * len(known))]
        return [at - spec.slices // 2, 0, 0]
    start = []
    for axis, (first, end) in enumerate(stored.region):
        size = patch_zyx[axis]
        last = max(end - size, first)
        low, high = first, last
        if box is not None:
            near, far = (float(box[k + 2 - axis]) for k in (0, 3))
            # Integers from which the patch, from start - 0.5 on, holds the box or its middle.
            low, high = int(np.ceil(far + 0.5 - size)), int(np.floor(near + 0.5))
            if low > high:
                low = high = int(np.rint((near + far + 1 - size) / 2))
        at = min(low + int(shares[axis] * (high - low + 1)), high)
        start.append(int(np.clip(at, first, last)))
    return start


def patch_targets(
    stored: StoredCase, matrix: np.ndarray, patch_zyx, spec: Spec, device: torch.device | str
) -> Targets:
    """The boxes of one sample in voxels of its patch.

    matrix: [3, 4] float64 from a voxel of the patch to a stored voxel, as `window_resample` gets
        it; boxes turn with it as ellipsoids do (`fastmed.boxes.moved_boxes`).

    A finding counts where its centre and more than half of its volume are in the patch, and is
    clipped to it; one that is cut deeper is ignored (label -1): it is neither to be found nor
    background.
    """
    to_patch = after(_inverse(matrix), stored.matrix)
    rows = stored.boxes.astype(np.float64)
    if spec.dimensions == 3:
        boxes, labels = moved_boxes(rows[:, :6], to_patch), rows[:, 6]
        return _targets(*_cut(boxes, labels, np.array(patch_zyx[::-1])), device)
    at, x1, y1, x2, y2, labels = rows.T
    boxes = moved_boxes(np.stack([x1, y1, at - 0.5, x2, y2, at + 0.5], 1), to_patch)
    in_slice = np.abs((boxes[:, 2] + boxes[:, 5]) / 2 - patch_zyx[0] // 2) < 0.25
    flat, labels = boxes[in_slice][:, (0, 1, 3, 4)], labels[in_slice]
    return _targets(*_cut(flat, labels, np.array(patch_zyx[:0:-1])), device)


def as_channels(slices: Tensor, channels: int | None) -> Tensor:
    """[B, slices, H, W] as a network of 2 dimensions takes it; one slice fills all its channels."""
    if slices.shape[1] > 1 or channels is None:
        return slices
    return slices.expand(-1, channels, -1, -1).contiguous()


def tile_targets(boxes: np.ndarray, start_zyx, tile_zyx, device) -> Targets:
    """A tile's share of a scan's truth [n, 7], in voxels of the tile, by the rules of a patch."""
    rows = boxes.astype(np.float64)
    shift = np.tile(np.array(start_zyx[::-1], np.float64), 2)
    cut = _cut(rows[:, :6] - shift, rows[:, 6], np.array(tile_zyx[::-1]))
    return _targets(*cut, device)


def slice_targets(boxes: np.ndarray, at: int, size_zyx, device) -> Targets:
    """A slice's share of a scan's truth [n, 6], in voxels of the slice, by the rules of a patch."""
    own = boxes[boxes[:, 0] == at].astype(np.float64)
    return _targets(*_cut(own[:, 1:5], own[:, 5], np.array(size_zyx[:0:-1])), device)


def _in_region(rows: np.ndarray, region) -> np.ndarray:
    """[n] bool: which boxes [n, 7] have their centre where patches may lie."""
    first, end = np.array(region, np.float64)[::-1].T
    middle = (rows[:, :3] + rows[:, 3:6]) / 2
    return ((middle >= first - 0.5) & (middle < end - 0.5)).all(1)


def _cut(boxes: np.ndarray, labels: np.ndarray, size: np.ndarray):
    """Boxes [n, 2K] clipped to a patch of K sizes, those outside left out, with their labels."""
    k = len(size)
    low, high = boxes[:, :k].clip(-0.5, size - 0.5), boxes[:, k:].clip(-0.5, size - 0.5)
    centre = (boxes[:, :k] + boxes[:, k:]) / 2
    is_inside = ((centre >= -0.5) & (centre < size - 0.5)).all(1)
    share = (high - low).prod(1) / (boxes[:, k:] - boxes[:, :k]).prod(1)
    labels = np.where(is_inside & (share > _KEPT_SHARE), labels, IGNORED)
    return np.hstack([low, high])[share > 0], labels[share > 0]


def _targets(boxes: np.ndarray, labels: np.ndarray, device: torch.device | str) -> Targets:
    return Targets(
        torch.from_numpy(boxes.astype(np.float32)).to(device),
        torch.from_numpy(labels.astype(np.int64)).to(device),
    )


def _inverse(matrix: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(matrix[:, :3])
    return np.column_stack([linear, -linear @ matrix[:, 3]])
