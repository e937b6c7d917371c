"""What a detection found in patches and scans, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastmed.boxes import boxes_from_lps
from fastmed.findings import Findings
from fastmed.losses import Targets
from fastmed.ops import box_iou
from fastmed.spec import Spec
from fastmed.tasks.candidates import candidates, tiles_of
from fastmed.training.box_loss import BoxLoss
from fastmed.training.box_targets import slice_targets, tile_targets
from fastmed.training.box_truth import boxes_in_scan
from fastmed.training.pictures import Panel
from fastmed.training.stored_case import StoredCase

_SHOWN_SCORE = 0.3  # findings below it would bury a picture of an early epoch under frames

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [n, 2K], scores [n], labels [n]


def best_ious(output: Tensor, targets: Sequence[Targets], patch_zyx, spec: Spec) -> Tensor:
    """For each true box of a batch the best IoU of a finding of its label, 0 where none; [n].

    output: [B, N, 2K + classes]. Findings are those that inference would have in a scan as large as
    the patch: above the spec's score threshold, after its suppression of overlaps.
    """
    output = output.float()
    if spec.dimensions == 2:
        found = candidates(output, spec, (len(output), *spec.size_zyx[1:]))
        images = list(zip(found.boxes, found.scores, found.labels, strict=True))
    else:
        of_patch = replace(spec, tile_zyx=tuple(patch_zyx), size_multiple=1)
        each = [candidates(rows[None], of_patch, tuple(patch_zyx)) for rows in output]
        images = [(one.boxes[0], one.scores[0], one.labels[0]) for one in each]
    ious = []
    for (boxes, scores, labels), truth in zip(images, targets, strict=True):
        counts = truth.labels > 0
        iou = box_iou(boxes, truth.boxes[counts])
        is_there = (scores >= 0)[:, None] & (labels[:, None] == truth.labels[counts])
        ious.append(torch.cat([iou * is_there, iou.new_zeros(1, iou.shape[1])]).amax(0))
    return torch.cat(ious)


def tiles_loss(raw: Tensor, case: StoredCase, spec: Spec, loss: BoxLoss) -> float:
    """The loss of a scan: that of all its tiles, or of the slices looked at, as one batch.

    raw: [T, N, 2K + classes] as inference saw the case.
    """
    truth = np.array(case.boxes)
    if spec.dimensions == 2:
        size = spec.size_zyx
        targets = [slice_targets(truth, at, size, raw.device) for at in case.slices]
        raw = raw[list(case.slices)]
    else:
        tiles = tiles_of(case.grid.shape_zyx, spec)
        size = tiles.size_zyx
        targets = [tile_targets(truth, at, size, raw.device) for at in tiles.corners]
    return float(loss.of_tile(size, raw)(raw, targets))


def scan_found(findings: Findings, spec: Spec) -> Found:
    """What was found in a scan, in LPS mm."""
    values = {label.name: label.value for label in spec.labels}
    boxes = np.array([box.box_lps_mm for box in findings.boxes], np.float64).reshape(-1, 6)
    scores = np.array([box.score for box in findings.boxes], np.float64)
    return boxes, scores, np.array([values[box.label] for box in findings.boxes], np.int64)


def scan_truth(case: StoredCase) -> tuple[np.ndarray, np.ndarray]:
    """A scan's true boxes in LPS mm and their labels."""
    boxes = np.array([box.box_lps_mm for box in case.case.boxes], np.float64).reshape(-1, 6)
    return boxes, np.array([box.label for box in case.case.boxes], np.int64)


def slice_found(raw: Tensor, case: StoredCase, spec: Spec) -> list[Found]:
    """What was found on each slice that somebody looked at, in voxels of the grid."""
    seen = raw[list(case.slices)]
    found = candidates(seen, spec, (len(seen), *spec.size_zyx[1:]))
    each = (part.cpu().numpy() for part in found[:3])
    return [
        (boxes[scores >= 0], scores[scores >= 0], labels[scores >= 0])
        for boxes, scores, labels in zip(*each, strict=True)
    ]


def slice_truth(case: StoredCase) -> list[tuple[np.ndarray, np.ndarray]]:
    """The true boxes of each slice that somebody looked at, in voxels of the grid, and labels."""
    rows = np.array(case.boxes, np.float64)
    own = [rows[rows[:, 0] == at] for at in case.slices]
    return [(of[:, 1:5], of[:, 5]) for of in own]


def detection_panel(case: StoredCase, findings: Findings, spec: Spec) -> Panel:
    """The slice through the largest true box, else the best finding, else the middle.

    Findings are framed from a score of 0.3 on; the caption has the best one's.
    """
    scan = case.geometry
    truth = np.zeros((0, 6)) if case.case.boxes is None else boxes_in_scan(case.case, scan)
    boxes, scores, _ = scan_found(findings, spec)
    found = boxes_from_lps(boxes[scores >= _SHOWN_SCORE], scan)
    depth = scan.shape_zyx[0]
    z = depth // 2
    if len(truth):
        volumes = (truth[:, 3:] - truth[:, :3]).prod(1)
        z = _middle_slice(truth[int(volumes.argmax())], depth)
    elif len(found):
        z = _middle_slice(found[0], depth)
    low, high = spec.window_hu
    hu = case.voxels[z].astype(np.float32) * case.slope + case.intercept
    score = f" {findings.boxes[0].score:.2f}" if findings.boxes else ""
    return Panel(
        (hu - low) / (high - low),
        None,
        None,
        f"{case.case.name}{score}",
        truth_boxes=_on_slice(truth, z),
        found_boxes=_on_slice(found, z),
    )


def _middle_slice(box: np.ndarray, depth: int) -> int:
    return int(np.clip(np.rint((box[2] + box[5]) / 2), 0, depth - 1))


def _on_slice(boxes: np.ndarray, z: int) -> np.ndarray:
    """[n, 4]: the outlines of the boxes [m, 6] that a slice cuts."""
    cut = (boxes[:, 2] <= z) & (boxes[:, 5] >= z)
    return boxes[cut][:, (0, 1, 3, 4)]
