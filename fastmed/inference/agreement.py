"""How far what one engine found in some scans lies from what the reference found in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastmed.findings import Findings
from fastmed.metrics.detection import detection_scores
from fastmed.ops import box_iou, dice_score, overlap_counts
from fastmed.spec import Spec

_LOGITS = ("logits_largest", "logits_mean", "logits_relative")
_SAME_BOX = 0.5  # least IoU of two boxes that are one finding


@dataclass(frozen=True)
class Answer:
    """What an engine said of one scan and what came of it.

    said: raw outputs or logits, any shape, float32. seen: bool of the same first axis, which of
        them the network said itself; None where that is all. labels: [D, H, W]. boxes: [n, 6] in
        mm, scores [n] and names [n]. probabilities: by class.
    """

    said: np.ndarray
    seen: np.ndarray | None = None
    labels: np.ndarray | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """Figures over all scans; None where the task has no such thing.

    logits_largest, logits_mean: of the absolute differences. logits_relative: the largest, as a
        share of the largest logit of the reference in that scan.
    equal_labels: share of voxels. dice: by label, of both label maps; None for a label that neither
        has in any scan.
    probability: largest difference of a class's probability, or of the scores of one finding.
    ap: average precision of the boxes at IoU 0.5, the reference's being the truth; None where the
        reference found none. boxes: how many it found.
    """

    logits_largest: float
    logits_mean: float
    logits_relative: float
    equal_labels: float | None = None
    dice: dict[str, float | None] | None = None
    probability: float | None = None
    ap: float | None = None
    boxes: int | None = None


def answer_of(said: np.ndarray, findings: Findings, spec: Spec, seen=None) -> Answer:
    """An Answer from what `Model.see` and `Model.decode` returned."""
    return Answer(
        said=said,
        seen=seen,
        labels=findings.labels,
        boxes=np.array([box.box_lps_mm for box in findings.boxes]).reshape(-1, 6),
        scores=np.array([box.score for box in findings.boxes]),
        names=tuple(box.label for box in findings.boxes),
        probabilities=tuple(score.probability for score in findings.scores),
    )


def compare(found: Sequence[Answer], reference: Sequence[Answer], spec: Spec) -> Agreement:
    """Compares answers to the same scans, in the same order."""
    pairs = list(zip(found, reference, strict=True))
    parts: dict[str, Any] = {}
    if spec.task == "segmentation":
        parts = _labels(pairs, spec)
    elif spec.task == "classification":
        apart = [np.subtract(a.probabilities, b.probabilities) for a, b in pairs]
        parts = {"probability": float(np.abs(apart).max())}
    else:
        parts = _boxes(pairs, spec.limits.probability, spec)
    return Agreement(**_logits(pairs), **parts)


def _logits(pairs) -> dict[str, float]:
    largest, relative, total, count = 0.0, 0.0, 0.0, 0
    for found, reference in pairs:
        if found.said.shape != reference.said.shape:
            return dict.fromkeys(_LOGITS, math.inf)
        theirs, ours = reference.said, found.said
        if reference.seen is not None:
            theirs, ours = theirs[reference.seen], ours[reference.seen]
        if not ours.size:
            continue
        with np.errstate(invalid="ignore"):
            apart = np.abs(ours - theirs)
        if not np.isfinite(apart).all():  # of infinities too, though they be alike
            return dict.fromkeys(_LOGITS, math.inf)
        most, scale = float(apart.max()), float(np.abs(theirs).max())
        largest = max(largest, most)
        relative = max(relative, most / scale if scale else most)
        total, count = total + float(apart.sum(dtype=np.float64)), count + apart.size
    mean = total / count if count else 0.0
    return dict(zip(_LOGITS, (largest, mean, relative), strict=True))


def _labels(pairs, spec: Spec) -> dict[str, Any]:
    counts, equal, voxels = 0, 0, 0
    for found, reference in pairs:
        ours, theirs = (torch.from_numpy(np.array(one.labels)) for one in (found, reference))
        counts = counts + overlap_counts(ours[None], theirs[None], spec.num_classes)
        equal += int((ours == theirs).sum())
        voxels += ours.numel()
    dice = dice_score(counts)[0].tolist()
    named = {label.name: dice[label.value] for label in spec.labels}
    return {
        "equal_labels": equal / voxels,
        "dice": {name: None if math.isnan(value) else value for name, value in named.items()},
    }


def _boxes(pairs, margin: float, spec: Spec) -> dict[str, Any]:
    """A box that the reference is hardly sure of, which may fall below the threshold in another
    engine, is no truth; nor is it false there.
    """
    sure = spec.detection.score_threshold + margin
    predictions, truth, apart, boxes = [], [], 0.0, 0
    for found, reference in pairs:
        numbers = {name: k for k, name in enumerate(sorted({*found.names, *reference.names}))}
        ours = np.array([numbers[name] for name in found.names], dtype=np.int64)
        theirs = np.array([numbers[name] for name in reference.names], dtype=np.int64)
        predictions.append((found.boxes, found.scores, ours))
        truth.append((reference.boxes, np.where(reference.scores >= sure, theirs, -1)))
        boxes += int((reference.scores >= sure).sum())
        apart = max(apart, _scores_apart(found, ours, reference, theirs))
    ap = detection_scores(predictions, truth).ap[_SAME_BOX]
    known = None if math.isnan(ap) else ap
    return {"probability": apart, "ap": known, "boxes": boxes}


def _scores_apart(found: Answer, ours, reference: Answer, theirs) -> float:
    """Largest difference of the scores of a finding that both have."""
    if not len(found.boxes) or not len(reference.boxes):
        return 0.0
    iou = box_iou(torch.from_numpy(reference.boxes), torch.from_numpy(found.boxes)).numpy()
    iou = np.where(theirs[:, None] == ours, iou, 0.0)
    best = iou.argmax(axis=1)
    both = iou.max(axis=1) >= _SAME_BOX
    return float(np.abs(reference.scores - found.scores[best])[both].max(initial=0.0))
