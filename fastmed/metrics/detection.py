"""Scores of boxes: mean IoU, average precision by IoU, and FROC by centre hits; in 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastmed.metrics.average_precision import average_precision
from fastmed.metrics.froc import Froc, Outcome, froc, marks_on_scan
from fastmed.ops import box_iou

IOU_THRESHOLDS = (0.1, 0.5)


@dataclass(frozen=True)
class ClassScores:
    """Scores of one label: its findings and predictions, and its AP by IoU threshold.

    ap: NaN where the truth has no finding of this label.
    """

    label: Hashable
    findings: int
    predictions: int
    ap: dict[float, float]


@dataclass(frozen=True, eq=False)
class DetectionScores:
    """Scores of the boxes of S scans (or slices, or images).

    scans: S. findings: boxes of the truth, without the ignored ones. predictions: boxes predicted.
    mean_iou: mean over the findings of the best IoU that a prediction of the same label on the
        same scan has with it, 0 where there is none. It does not count false positives. NaN where
        there is no finding.
    ap: by IoU threshold (0.1, 0.5), the mean over the labels that the truth has; else NaN.
    map: mean of `ap` over both thresholds.
    classes: each label of the truth or the predictions, in order.
    froc: sensitivity over false positives per scan, all labels together; its `sensitivities`,
        `cpm`, `band`.
    """

    scans: int
    findings: int
    predictions: int
    mean_iou: float
    ap: dict[float, float]
    map: float
    classes: tuple[ClassScores, ...]
    froc: Froc


@dataclass(frozen=True, eq=False)
class _Scan:
    """One scan: predicted boxes [N, 2K], scores and classes; true boxes [M, 2K] and classes.

    Classes count from 0; -1 is an ignored box of the truth.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    true_boxes: np.ndarray
    true_classes: np.ndarray


def detection_scores(
    predictions: Sequence[tuple[Any, Any, Any]],
    truth: Sequence[tuple[Any, Any]],
    *,
    bootstraps: int = 0,
    seed: int = 0,
) -> DetectionScores:
    """Scores predicted boxes against the truth.

    predictions: per scan (boxes [n, 2K], scores [n], labels [n]); K is 2 or 3, corners in any unit.
    truth: per scan, in the same order, (boxes [m, 2K], labels [m]). Both may be empty.
        Labels are whole numbers or names; a number below 0 is a box to ignore: what lies on it and
        on no finding counts for nothing.
    bootstraps, seed: resamples of the scans for the FROC's band; 0 leaves it out.

    AP: predictions by falling score (of one scan and score: by their order) each take the finding
    of their label that they overlap most, of those not yet taken with IoU >= threshold; the others
    are false positives. See `average_precision`: all points, equal scores at once, which makes it
    independent of the order of the scans.

    FROC: a prediction hits a finding of its label where its centre is nearer to the finding's
    centre than half the mean length of the finding's sides; `froc.marks_on_scan` has the rest.

    Raises ValueError for wrong shapes, numbers of scans, or values that are not finite.
    """
    if len(predictions) != len(truth):
        raise ValueError(f"predictions: of {len(predictions)} scans, truth of {len(truth)}")
    labels, scans = _numbered(predictions, truth)
    true_classes = np.concatenate([scan.true_classes for scan in scans] or [np.zeros(0, np.int64)])
    classes = np.concatenate([scan.classes for scan in scans] or [np.zeros(0, np.int64)])
    ious = [_iou(scan.boxes, scan.true_boxes) for scan in scans]
    best = [_best_ious(scan, iou) for scan, iou in zip(scans, ious, strict=True)]
    verdicts = {
        threshold: [_verdicts(scan, iou, threshold) for scan, iou in zip(scans, ious, strict=True)]
        for threshold in IOU_THRESHOLDS
    }
    by_class = []
    for number, label in enumerate(labels):
        findings = int(np.sum(true_classes == number))
        ap = {t: _class_ap(scans, verdicts[t], number, findings) for t in IOU_THRESHOLDS}
        by_class.append(ClassScores(label, findings, int(np.sum(classes == number)), ap))
    ap = {
        threshold: _mean([one.ap[threshold] for one in by_class if one.findings])
        for threshold in IOU_THRESHOLDS
    }
    return DetectionScores(
        scans=len(scans),
        findings=int(np.sum(true_classes >= 0)),
        predictions=len(classes),
        mean_iou=_mean(np.concatenate(best) if best else []),
        ap=ap,
        map=_mean(list(ap.values())),
        classes=tuple(by_class),
        froc=froc(_outcome(scans), bootstraps=bootstraps, seed=seed),
    )


_FALSE, _HIT, _IGNORED = 0, 1, 2


def _verdicts(scan: _Scan, iou: np.ndarray, threshold: float) -> np.ndarray:
    """[N]: whether each prediction is a hit, a false positive, or on an ignored box alone."""
    verdict = np.where((iou[:, scan.true_classes < 0] >= threshold).any(axis=1), _IGNORED, _FALSE)
    fits = (iou >= threshold) & (scan.classes[:, None] == scan.true_classes)
    free = np.where(fits, iou, -1.0)
    for row in np.argsort(-scan.scores, kind="stable"):
        if not fits[row].any():
            continue
        taken = int(free[row].argmax())
        if free[row, taken] >= threshold:
            verdict[row] = _HIT
            free[:, taken] = -1.0
    return verdict


def _class_ap(scans, verdicts: Sequence[np.ndarray], number: int, findings: int) -> float:
    hits, false_positives = (
        np.concatenate(
            [
                scan.scores[(scan.classes == number) & (verdict == wanted)]
                for scan, verdict in zip(scans, verdicts, strict=True)
            ]
        )
        for wanted in (_HIT, _FALSE)
    )
    return average_precision(hits, false_positives, findings)


def _best_ious(scan: _Scan, iou: np.ndarray) -> np.ndarray:
    same = np.where(scan.classes[:, None] == scan.true_classes, iou, 0.0)
    return same.max(axis=0, initial=0.0)[scan.true_classes >= 0]


def _outcome(scans: Sequence[_Scan]) -> Outcome:
    hits, hit_scans, false_positives, false_scans = [], [], [], []
    for number, scan in enumerate(scans):
        ignored = scan.true_classes < 0
        alike = (scan.classes[:, None] == scan.true_classes) | ignored
        hit, false = marks_on_scan(
            _near_centre(scan.boxes, scan.true_boxes) & alike, ignored, scan.scores
        )
        hits.append(hit)
        hit_scans.append(np.full(len(hit), number))
        false_positives.append(false)
        false_scans.append(np.full(len(false), number))
    nothing = [np.zeros(0)]
    return Outcome(
        hit_scores=np.concatenate(hits or nothing),
        hit_scans=np.concatenate(hit_scans or nothing),
        false_scores=np.concatenate(false_positives or nothing),
        false_scans=np.concatenate(false_scans or nothing),
        findings=np.array([np.sum(scan.true_classes >= 0) for scan in scans], np.int64),
    )


def _near_centre(boxes: np.ndarray, true_boxes: np.ndarray) -> np.ndarray:
    """[N, M] bool: whether a box's centre is within half the mean side of a true box's centre."""
    dimensions = boxes.shape[1] // 2
    centres, true_centres = (
        (b[:, :dimensions] + b[:, dimensions:]) / 2 for b in (boxes, true_boxes)
    )
    radius = (true_boxes[:, dimensions:] - true_boxes[:, :dimensions]).mean(axis=1) / 2
    squared = np.sum((centres[:, None] - true_centres) ** 2, axis=2)
    return squared < radius**2


def _iou(boxes: np.ndarray, true_boxes: np.ndarray) -> np.ndarray:
    return box_iou(torch.from_numpy(boxes), torch.from_numpy(true_boxes)).numpy()


def _numbered(predictions, truth) -> tuple[list[Hashable], list[_Scan]]:
    """The labels in order, and the scans with numbers for labels; checks every array."""
    lists = []
    for number, ((boxes, scores, labels), (true_boxes, true_labels)) in enumerate(
        zip(predictions, truth, strict=True)
    ):
        labels, true_labels = np.asarray(labels).tolist(), np.asarray(true_labels).tolist()
        boxes = _boxes(boxes, len(labels), f"predictions[{number}]")
        true_boxes = _boxes(true_boxes, len(true_labels), f"truth[{number}]")
        scores = np.asarray(scores, np.float64)
        if scores.shape != (len(labels),) or not np.isfinite(scores).all():
            raise ValueError(f"predictions[{number}]: expected {len(labels)} finite scores")
        lists.append((boxes, scores, labels, true_boxes, true_labels))
    widths = {b.shape[1] for one in lists for b in (one[0], one[3]) if len(b)}
    if len(widths) > 1:
        raise ValueError("predictions, truth: some boxes have 4 corners, others 6")
    width = widths.pop() if widths else 6
    known = {label for *_, labels, _, true_labels in lists for label in (*labels, *true_labels)}
    if len({isinstance(label, str) for label in known}) > 1:
        raise ValueError("predictions, truth: some labels are numbers, others names")
    order = sorted(label for label in known if not _is_ignored(label))
    numbers = {label: k for k, label in enumerate(order)}
    for number, (*_, labels, _, _) in enumerate(lists):
        if any(map(_is_ignored, labels)):
            raise ValueError(f"predictions[{number}]: a label below 0 is of the truth alone")
    return order, [
        _Scan(
            boxes.reshape(-1, width),
            scores,
            np.array([numbers[label] for label in labels], np.int64),
            true_boxes.reshape(-1, width),
            np.array([numbers.get(label, -1) for label in true_labels], np.int64),
        )
        for boxes, scores, labels, true_boxes, true_labels in lists
    ]


def _boxes(boxes: Any, count: int, name: str) -> np.ndarray:
    array = np.asarray(boxes, np.float64)
    if not array.size and not count:
        return np.zeros((0, 6))
    if array.ndim != 2 or len(array) != count or array.shape[1] not in (4, 6):
        raise ValueError(f"{name}: expected boxes [{count}, 4 or 6], got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: a corner is not a finite number")
    return array


def _is_ignored(label: Hashable) -> bool:
    return not isinstance(label, str) and label < 0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
