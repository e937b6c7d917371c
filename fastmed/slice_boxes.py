"""Slice boxes: 2D boxes on slices join into 3D ones where neighbouring slices overlap."""

from __future__ import annotations

import numpy as np


def join_slices(
    slices, boxes_px, labels, *, min_iou: float = 0.0, max_gap: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Joins the boxes of single slices into boxes of the stack.

    slices: [n] int, the slice of each box; boxes_px: [n, 4] (x1, y1, x2, y2); labels: [n] int.
    min_iou: boxes of one label on neighbouring slices join where their IoU is above this.
    max_gap: slices without a box of it that an object may have inside.

    Slice by slice along the stack, each box goes on with the object whose last box it overlaps
    most; the pair of the highest IoU is taken first, and no object takes two boxes of one slice,
    so that two findings side by side stay two. Equal overlaps keep the order given.

    Returns float64 [m, 6] boxes (x1, y1, z1, x2, y2, z2) in voxel indices, the hulls of their
    members from half a slice below the first to half a slice above the last, by rising first
    slice; and int64 [n], the box that each slice box belongs to. Raises ValueError where the
    lengths differ.
    """
    slices = np.asarray(slices, dtype=np.int64).reshape(-1)
    boxes = np.asarray(boxes_px, dtype=np.float64).reshape(-1, 4)
    labels = np.asarray(labels, dtype=np.int64).reshape(-1)
    if not len(slices) == len(boxes) == len(labels):
        raise ValueError(
            f"{len(slices)} slices, {len(boxes)} boxes_px and {len(labels)} labels: expected as "
            "many of each"
        )
    group = np.full(len(slices), -1, dtype=np.int64)
    last: list[int] = []  # of each object, its box on the highest slice so far
    for z in np.unique(slices):
        here = np.flatnonzero(slices == z)
        open_objects = [k for k, box in enumerate(last) if slices[box] >= z - 1 - max_gap]
        tips = np.array([last[k] for k in open_objects], dtype=np.int64)
        overlap = _iou(boxes[tips], boxes[here])
        overlap[labels[tips][:, None] != labels[here]] = -1.0
        for pair in np.argsort(-overlap, axis=None, kind="stable"):
            tip, box = np.unravel_index(pair, overlap.shape)
            if overlap[tip, box] <= min_iou:
                break
            if group[here[box]] < 0 and last[open_objects[tip]] == tips[tip]:
                group[here[box]] = open_objects[tip]
                last[open_objects[tip]] = here[box]
        for box in here[group[here] < 0]:
            group[box] = len(last)
            last.append(box)
    return _hulls(slices, boxes, group, len(last)), group


def _hulls(slices: np.ndarray, boxes: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    hulls = np.empty((count, 6))
    hulls[:, :3], hulls[:, 3:] = np.inf, -np.inf
    planes = slices[:, None].astype(np.float64)
    np.minimum.at(hulls[:, :3], group, np.concatenate([boxes[:, :2], planes - 0.5], axis=1))
    np.maximum.at(hulls[:, 3:], group, np.concatenate([boxes[:, 2:], planes + 0.5], axis=1))
    return hulls


def _iou(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n, m] IoU of [n, 4] and [m, 4]; 0 where a box has no area."""
    low = np.maximum(ones[:, None, :2], others[:, :2])
    high = np.minimum(ones[:, None, 2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0.0), axis=-1)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0.0), axis=1) for b in (ones, others)]
    union = areas[0][:, None] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
