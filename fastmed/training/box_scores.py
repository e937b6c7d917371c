"""What a detection found in patches and scans, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastmed.boxes import WEIGHTS_2D, WEIGHTS_3D, boxes_from_lps, decode
from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.losses import Targets
from fastmed.ops import batched_nms, box_iou
from fastmed.spec import Spec
from fastmed.tasks.tiles import lay_tiles
from fastmed.training.box_loss import BoxLoss, grid_defaults
from fastmed.training.box_targets import slice_targets, tile_targets
from fastmed.training.box_truth import boxes_in_scan
from fastmed.training.pictures import Panel
from fastmed.training.stored_case import StoredCase

_CANDIDATES = 400  # boxes of a patch or slice that may become findings, the best by score
_TILES_AT_ONCE = 4

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [n, 2K], scores [n], labels [n]


def found_in(output: Tensor, defaults: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """The findings of one patch or slice: boxes [n, 2K] in its voxels, scores and labels.

    output: [N, 2K + classes]. The spec's thresholds and number of boxes count, as in inference.
    """
    corners = defaults.shape[1]
    scores = output[:, corners:].float().softmax(-1)[:, 1:]
    best, at = scores.flatten().topk(min(_CANDIDATES, scores.numel()))
    at = at[best >= spec.detection.score_threshold]
    best = best[: len(at)]
    row, labels = at // scores.shape[1], at % scores.shape[1] + 1
    weights = WEIGHTS_2D if corners == 4 else WEIGHTS_3D
    boxes = decode(output[row, :corners].float(), defaults[row], weights)
    kept = batched_nms(
        boxes, best, labels, spec.detection.iou_threshold, max_output=spec.detection.max_boxes
    )
    return boxes[kept], best[kept], labels[kept]


def best_ious(output: Tensor, targets: Sequence[Targets], defaults: Tensor, spec: Spec) -> Tensor:
    """For each true box of a batch the best IoU of a finding of its label, 0 where none; [n]."""
    ious = []
    for rows, truth in zip(output, targets, strict=True):
        counts = truth.labels > 0
        boxes, _, labels = found_in(rows, defaults, spec)
        iou = box_iou(boxes, truth.boxes[counts])
        iou = iou * (labels[:, None] == truth.labels[counts])
        nothing = iou.new_zeros(1, iou.shape[1])
        ious.append(torch.cat([iou, nothing]).amax(0))
    return torch.cat(ious)


def tiles_loss(raw: Tensor, case: StoredCase, spec: Spec, loss: BoxLoss) -> float:
    """Mean loss over the tiles of a scan, or over those slices that somebody looked at.

    raw: [T, N, 2K + classes] as inference saw the case. Tiles count alike, as patches do.
    """
    truth = torch.from_numpy(np.array(case.boxes)).to(raw.device)
    if spec.dimensions == 2:
        size = spec.size_zyx
        seen = [(at, slice_targets(truth, at, size)) for at in case.slices]
    else:
        tiles = lay_tiles(case.grid.shape_zyx, spec.tile_zyx, spec.overlap, spec.size_multiple)
        size = tiles.size_zyx
        seen = [(k, tile_targets(truth, at, size)) for k, at in enumerate(tiles.corners)]
    of_tile = loss.of_tile(size, raw)
    total = 0.0
    for first in range(0, len(seen), _TILES_AT_ONCE):
        numbers, targets = zip(*seen[first : first + _TILES_AT_ONCE], strict=True)
        total += float(of_tile(raw[list(numbers)], targets)) * len(numbers)
    return total / len(seen)


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
    defaults, _ = grid_defaults(spec, spec.size_zyx)
    defaults = defaults.to(raw.device)
    found = (found_in(raw[at], defaults, spec) for at in case.slices)
    return [tuple(part.double().cpu().numpy() for part in each) for each in found]


def slice_truth(case: StoredCase) -> list[tuple[np.ndarray, np.ndarray]]:
    """The true boxes of each slice that somebody looked at, in voxels of the grid, and labels."""
    rows = np.array(case.boxes, np.float64)
    own = [rows[rows[:, 0] == at] for at in case.slices]
    return [(of[:, 1:5], of[:, 5]) for of in own]


def detection_panel(case: StoredCase, findings: Findings, spec: Spec) -> Panel:
    """The slice through the largest true box, else the best finding, else the middle."""
    scan = case.geometry
    truth = np.zeros((0, 6)) if case.case.boxes is None else boxes_in_scan(case.case, scan)
    found = boxes_from_lps(scan_found(findings, spec)[0], scan)
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
