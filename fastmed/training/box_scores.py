"""What a detection found in patches and scans, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastmed.boxes import boxes_from_lps, moved_boxes
from fastmed.errors import SeriesError
from fastmed.findings import Findings
from fastmed.inference.case import Model
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
        one_look = (False, False, False)
        of_patch = replace(spec, tile_zyx=tuple(patch_zyx), size_multiple=1, mirror_zyx=one_look)
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

    raw: [T, N, 2K + classes] as inference saw the tiles, or `see_slices`.
    """
    truth = np.array(case.boxes)
    if spec.dimensions == 2:
        size = spec.size_zyx
        targets = [slice_targets(truth, at, size, raw.device) for at in case.slices]
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


def see_slices(model: Model, case: StoredCase) -> Tensor:
    """Raw outputs [n, N, 2K + classes] of the n slices that somebody looked at.

    Inference sees them and their neighbours alone: of a scan of 300 slices ten may be annotated.
    """
    margin = model.spec.slices // 2
    runs: list[list[int]] = []
    for at in case.slices:
        if runs and at - runs[-1][-1] <= 2 * margin + 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    volume, depth = case.volume(), case.grid.shape_zyx[0]
    outputs = []
    for run in runs:
        first, end = max(run[0] - margin, 0), min(run[-1] + margin + 1, depth)
        ends = case.matrix[0, 0] * np.array([first, end - 1]) + case.matrix[0, 3]
        z = int(np.rint(ends.min()))  # a scan may run from head to feet, the grid never does
        piece = replace(
            volume,
            voxels=volume.voxels[z : z + end - first],
            geometry=volume.geometry.slab(z, end - first),
        )
        raw, _ = model.see(piece)
        outputs.append(raw[[at - first for at in run]])
    return torch.cat(outputs)


def slice_found(raw: Tensor, spec: Spec) -> list[Found]:
    """What was found on each of some slices, in voxels of the grid.

    Raises SeriesError where the network said what is not finite.
    """
    found = candidates(raw, spec, (len(raw), *spec.size_zyx[1:]))
    if not found.finite:
        raise SeriesError("the network returned boxes or logits that are not finite")
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


def scan_panel(case: StoredCase, findings: Findings, spec: Spec) -> Panel:
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
    return _panel(case, z, spec, scores, _on_slice(truth, z), _on_slice(found, z))


def slice_panel(case: StoredCase, found: Sequence[Found], spec: Spec) -> Panel:
    """The slice with the largest true box of those that somebody looked at, else the middle one."""
    truth = boxes_in_scan(case.case, case.geometry)
    row = len(case.slices) // 2
    if len(truth):
        sides = truth[:, 3:5] - truth[:, :2]
        row = case.slices.index(int(case.boxes[int(sides.prod(1).argmax()), 0]))
    boxes, scores, _ = found[row]
    at = np.full(len(boxes), float(case.slices[row]))
    low, high = boxes[:, :2], boxes[:, 2:]
    on_grid = np.column_stack([low, at - 0.5, high, at + 0.5])
    in_scan = moved_boxes(on_grid[scores >= _SHOWN_SCORE], case.matrix)
    z = int(np.rint(case.matrix[0, 0] * case.slices[row] + case.matrix[0, 3]))
    return _panel(case, z, spec, scores, _on_slice(truth, z), in_scan[:, (0, 1, 3, 4)])


def _panel(case: StoredCase, z: int, spec: Spec, scores, truth_boxes, found_boxes) -> Panel:
    low, high = spec.window_hu
    hu = case.voxels[z].astype(np.float32) * case.slope + case.intercept
    score = f" {scores.max():.2f}" if len(scores) else ""
    return Panel(
        (hu - low) / (high - low),
        None,
        None,
        f"{case.case.name}{score}",
        truth_boxes=truth_boxes,
        found_boxes=found_boxes,
    )


def _middle_slice(box: np.ndarray, depth: int) -> int:
    return int(np.clip(np.rint((box[2] + box[5]) / 2), 0, depth - 1))


def _on_slice(boxes: np.ndarray, z: int) -> np.ndarray:
    """[n, 4]: the outlines of the boxes [m, 6] that a slice cuts."""
    cut = (boxes[:, 2] <= z) & (boxes[:, 5] >= z)
    return boxes[cut][:, (0, 1, 3, 4)]
