"""Detection: what a network said of tiles or slices becomes boxes in the patient's space."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmed.boxes import boxes_to_lps, moved_boxes
from fastmed.errors import SeriesError
from fastmed.findings import Box, Findings
from fastmed.geometry import Geometry
from fastmed.slice_boxes import join_slices
from fastmed.spec import Spec
from fastmed.tasks.candidates import Picked, candidates
from fastmed.volume import Volume

# Slice boxes of one finding: a ball of 10 mm seen on slices 5 mm apart overlaps itself by 0.25 and
# less towards its poles, and a network may miss it on a slice. Two findings of one label that lie
# upon each other with a slice or less between them become one.
_JOINS_ABOVE_IOU = 0.1
_SLICES_MISSED = 1


def decode(said: Tensor | Picked, grid: Geometry, volume: Volume, spec: Spec) -> Findings:
    """Turns what a network said of the tiles or slices of `grid` into boxes, by falling score.

    said: its raw outputs [T, N, 2K + classes], or what was picked from them.

    Boxes of a network of 2 dimensions are boxes on slices; where they overlap from slice to slice
    (IoU above 0.1, one slice without a box is allowed) they join into one, with the best score of
    its slices. The rest is said in `fastmed.tasks.candidates`.

    Raises SeriesError where what the network said is not finite.
    """
    boxes, scores, labels = _on_the_host(said, spec, grid.shape_zyx)
    order = np.argsort(-scores, kind="stable")
    return Findings(
        series=volume.name,
        source=volume.source,
        model=spec.name,
        geometry=volume.geometry,
        labels=None,
        classes=spec.labels,
        warnings=volume.warnings,
        modality=spec.modality,
        boxes=_described(boxes[order], scores[order], labels[order], grid, volume, spec),
    )


def _on_the_host(said, spec: Spec, shape_zyx) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [n, 6] float64 in voxels of the grid, scores [n] and labels [n], in one transfer."""
    found = candidates(said, spec, shape_zyx)
    each = (found.scores, found.labels, found.finite.expand_as(found.scores))
    columns = (found.boxes, *(column[..., None] for column in each))
    table = torch.cat([column.double() for column in columns], dim=-1).cpu().numpy()
    if not table[..., -1].all():
        stored = "in HU" if spec.modality == "ct" else "sound"
        raise SeriesError(
            "the network returned boxes or logits that are not finite; try --engine torch, and "
            f"check that the scan is {stored}"
        )
    image, _ = there = np.nonzero(table[..., -3] >= 0)
    rows = table[there]
    boxes, scores, labels = rows[:, :-3], rows[:, -3], rows[:, -2].astype(np.int64)
    if spec.dimensions == 3:
        return boxes, scores, labels
    hulls, member_of = join_slices(
        image, boxes, labels, min_iou=_JOINS_ABOVE_IOU, max_gap=_SLICES_MISSED
    )
    best, label = np.zeros(len(hulls)), np.zeros(len(hulls), dtype=np.int64)
    np.maximum.at(best, member_of, scores)
    label[member_of] = labels
    return hulls, best, label


def _described(boxes, scores, labels, grid: Geometry, volume: Volume, spec: Spec):
    """Boxes of a grid as findings say them; those that lie beside the scan itself are none.

    A grid over a tilted scan reaches beyond it.
    """
    on_scan = moved_boxes(boxes, volume.geometry.matrix_from(grid))
    edges = np.array(volume.geometry.shape_zyx[::-1]) - 0.5
    on_scan = np.clip(on_scan, -0.5, np.tile(edges, 2))
    if spec.modality == "ct":
        in_space = boxes_to_lps(boxes, grid)
        sides = (boxes[:, 3:] - boxes[:, :3]) * grid.spacing_mm_zyx[::-1]
    else:
        in_space, sides = on_scan, on_scan[:, 3:] - on_scan[:, :3]
    flat = (boxes[:, 5] - boxes[:, 2] <= 1) & (spec.dimensions == 2)
    diameters = np.where(flat, sides[:, :2].mean(axis=1), sides.mean(axis=1))
    names = {label.value: label.name for label in spec.labels}
    described = []
    for k, (x1, y1, z1, x2, y2, z2) in enumerate(on_scan.tolist()):
        if not (x1 < x2 and y1 < y2 and z1 < z2):
            continue
        middle = (z1 + z2) / 2
        described.append(
            Box(
                label=names[labels[k]],
                score=float(scores[k]),
                box_lps_mm=tuple(in_space[k].tolist()),
                diameter_mm=float(diameters[k]),
                slices=_slices(z1, z2, volume.geometry.shape_zyx[0]),
                key_sop_instance_uid=_nearest_uid(volume, middle),
                key_box_px=(x1, y1, x2, y2),
            )
        )
    return tuple(described)


def _slices(z1: float, z2: float, count: int) -> tuple[int, int]:
    """First and last slice whose middle lies between; of a box thinner than that, the nearest."""
    first, last = int(np.ceil(z1 - 1e-6)), int(np.floor(z2 + 1e-6))
    if first > last:
        first = last = int(np.rint((z1 + z2) / 2))
    return max(first, 0), min(last, count - 1)


def _nearest_uid(volume: Volume, z: float) -> str:
    if not volume.slices:
        return ""
    return min(volume.slices, key=lambda source: abs(source.z_index - z)).sop_instance_uid
