"""Validation and the final test: cases go through the same inference as `fastmed infer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.inference.case import Model
from fastmed.inference.engines import NetworkEngine
from fastmed.metrics.classification import ClassificationScores, classification_scores
from fastmed.metrics.detection import DetectionScores, detection_scores
from fastmed.ops import dice_score, iou_score, overlap_counts, window_resample
from fastmed.preprocessing import to_grid
from fastmed.spec import Spec
from fastmed.training.box_scores import (
    Found,
    scan_found,
    scan_panel,
    scan_truth,
    see_slices,
    slice_found,
    slice_panel,
    slice_truth,
    tiles_loss,
)
from fastmed.training.pictures import Panel
from fastmed.training.stored_case import StoredCase


@dataclass(frozen=True, eq=False)
class CaseResult:
    """What became of one case.

    loss: None where the case has no truth. counts: int64 [classes, 3] of `overlap_counts` over
        the scan's own voxels, of a segmentation. probabilities: of a classification.
    found, truth: of a detection, for `detection_scores`: one of each scan, in LPS mm, or one of
        each slice that somebody looked at, in voxels of the grid. truth is () where nobody looked.
    """

    name: str
    patient: str
    loss: float | None
    counts: Tensor | None = None
    probabilities: tuple[float, ...] = ()
    target: int | None = None
    found: tuple[Found, ...] = ()
    truth: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    panel: Panel | None = field(default=None, repr=False)


def run_cases(
    network: nn.Module,
    cases: Sequence[StoredCase],
    spec: Spec,
    loss: Callable[[Tensor, Tensor], Tensor],
    device: str,
    *,
    panels: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    keep: Callable[[StoredCase, Findings], None] = lambda case, findings: None,
) -> list[CaseResult]:
    """Runs a network over whole scans in eval mode, without gradients.

    loss: as in training, taken here over each whole grid. panels: how many of the first cases
    bring a picture. keep: is given what was found in each case. The network is in the mode
    afterwards that it was in before.
    """
    was_training = network.training
    network.eval()
    run = _RUNS[spec.task, spec.dimensions]
    try:
        with torch.inference_mode():
            model = Model(spec, NetworkEngine(network, spec, device))
            results = []
            for number, case in enumerate(cases):
                results.append(run(model, case, spec, loss, number < panels, keep))
                progress(number + 1)
            return results
    finally:
        network.train(was_training)


def summarise(results: Sequence[CaseResult], spec: Spec) -> dict[str, float | None]:
    """Loss and scores over cases: means over cases, and over labels where there are several.

    A label that is in neither prediction nor truth of a case does not count there. Figures that
    do not exist (an AUC of one class alone) are None.
    """
    losses = [result.loss for result in results if result.loss is not None]
    row: dict[str, float | None] = {"loss": float(np.mean(losses)) if losses else None}
    if spec.task == "classification":
        scores = classify(results)
        if scores is not None:
            row |= {"accuracy": _known(scores.accuracy), "f1": _known(scores.f1)}
            row["auc"] = _known(scores.auc)
        return row
    if spec.task == "detection":
        scores = detect(results)
        if scores is not None:
            row |= {"iou": _known(scores.mean_iou), "ap10": _known(scores.ap[0.1])}
            row["ap50"] = _known(scores.ap[0.5])
            if spec.dimensions == 3:
                row["cpm"] = _known(scores.froc.cpm)
        return row
    counts = [result.counts for result in results if result.counts is not None]
    if counts:
        for name, score in (("dice", dice_score), ("iou", iou_score)):
            per_case = score(torch.stack(counts))[:, 1:].nanmean(1)
            row[name] = _known(float(per_case.nanmean()))
        intersection, _, target = torch.stack(counts).sum((0, 1)).tolist()
        row["accuracy"] = intersection / target
    return row


def classify(results: Sequence[CaseResult], bootstraps: int = 0) -> ClassificationScores | None:
    """Scores of a classification over cases with a truth; None where there are none."""
    known = [result for result in results if result.target is not None]
    if not known:
        return None
    return classification_scores(
        np.array([result.probabilities for result in known]),
        np.array([result.target for result in known]),
        bootstraps=bootstraps,
    )


def detect(results: Sequence[CaseResult], bootstraps: int = 0) -> DetectionScores | None:
    """Scores of a detection over scans (in 2D slices) with a truth; None where there are none."""
    known = [pair for r in results if r.truth for pair in zip(r.found, r.truth, strict=True)]
    if not known:
        return None
    found, truth = zip(*known, strict=True)
    return detection_scores(found, truth, bootstraps=bootstraps)


def _segment(
    model: Model, case: StoredCase, spec: Spec, loss, with_panel: bool, keep
) -> CaseResult:
    volume = case.volume()
    logits, grid = model.see(volume)
    findings = model.decode(logits, grid, volume)
    keep(case, findings)
    counts = value = None
    if case.labels is not None:
        truth = np.array(case.labels)
        value = float(loss(logits[None], _on_grid(truth, case.geometry, grid, logits.device)[None]))
        said = torch.from_numpy(findings.labels)[None]
        counts = overlap_counts(said, torch.from_numpy(truth)[None], spec.num_classes)[0]
    panel = _segmentation_panel(case, findings, spec) if with_panel else None
    return CaseResult(case.case.name, case.case.patient, value, counts, panel=panel)


def _classify(
    model: Model, case: StoredCase, spec: Spec, loss, with_panel: bool, keep
) -> CaseResult:
    volume = case.volume()
    logits, grid = model.see(volume)
    findings = model.decode(logits, grid, volume)
    keep(case, findings)
    target = case.case.target
    value = None
    if target is not None:
        value = float(loss(logits[None], torch.tensor([target], device=logits.device)))
    panel = _classification_panel(case, findings, spec) if with_panel else None
    return CaseResult(
        case.case.name,
        case.case.patient,
        value,
        probabilities=tuple(score.probability for score in findings.scores),
        target=target,
        panel=panel,
    )


def _detect(model: Model, case: StoredCase, spec: Spec, loss, with_panel: bool, keep) -> CaseResult:
    volume = case.volume()
    raw, grid = model.see(volume)
    findings = model.decode(raw, grid, volume)
    keep(case, findings)
    value, truth = None, ()
    if case.boxes is not None:
        value, truth = tiles_loss(raw, case, spec, loss), (scan_truth(case),)
    return CaseResult(
        case.case.name,
        case.case.patient,
        value,
        found=(scan_found(findings, spec),),
        truth=truth,
        panel=scan_panel(case, findings, spec) if with_panel else None,
    )


def _detect_on_slices(
    model: Model, case: StoredCase, spec: Spec, loss, with_panel: bool, keep
) -> CaseResult:
    raw = see_slices(model, case)
    found = slice_found(raw, spec)
    return CaseResult(
        case.case.name,
        case.case.patient,
        tiles_loss(raw, case, spec, loss),
        found=tuple(found),
        truth=tuple(slice_truth(case)),
        panel=slice_panel(case, found, spec) if with_panel else None,
    )


_RUNS = {
    ("segmentation", 2): _segment,
    ("segmentation", 3): _segment,
    ("classification", 2): _classify,
    ("classification", 3): _classify,
    ("detection", 3): _detect,
    ("detection", 2): _detect_on_slices,
}


def _on_grid(labels: np.ndarray, geometry: Geometry, grid: Geometry, device) -> Tensor:
    """Truth at the voxels of the network's grid, by nearest."""
    voxels = torch.from_numpy(labels).to(device)
    matrix = torch.from_numpy(geometry.matrix_from(grid)).to(device)
    nearest = window_resample(voxels, matrix, grid.shape_zyx, mode="nearest", dtype=voxels.dtype)
    return nearest.long()


def _segmentation_panel(case: StoredCase, findings: Findings, spec: Spec) -> Panel:
    """The slice with the most truth (else of most findings, else the middle)."""
    marked = case.labels if case.labels is not None and np.any(case.labels) else findings.labels
    per_slice = np.count_nonzero(marked, axis=(1, 2))
    z = int(per_slice.argmax()) if per_slice.any() else len(per_slice) // 2
    low, high = spec.window_hu
    hu = case.voxels[z].astype(np.float32) * case.slope + case.intercept
    truth = None if case.labels is None else np.asarray(case.labels[z])
    return Panel((hu - low) / (high - low), truth, findings.labels[z], case.case.name)


def _classification_panel(case: StoredCase, findings: Findings, spec: Spec) -> Panel:
    """The middle slice of the grid that the network saw, and what it said."""
    grid, _ = to_grid(case.volume(), spec)
    said = max(findings.scores, key=lambda score: score.probability)
    names = [spec.negative, *(label.name for label in spec.labels)]
    truth = "" if case.case.target is None else f", truth {names[case.case.target]}"
    caption = f"{case.case.name}: {said.label} {said.probability:.2f}{truth}"
    return Panel(grid[grid.shape[0] // 2].numpy(), None, None, caption)


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
