"""Scores of a label per scan: ROC AUC with its interval, accuracy, F1, confusion, calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BINS = 10
_CHUNK = 1 << 22  # entries of the bootstrap's count tables that are held at once
_SUM_TOLERANCE = 1e-3  # probabilities stored with few digits, or computed in half precision


@dataclass(frozen=True)
class CalibrationBin:
    """One bin of the calibration curve: its range, scans, mean probability, share that is true.

    probability, share: NaN where the bin holds no scan.
    """

    low: float
    high: float
    scans: int
    probability: float
    share: float


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """Scores of N scans in K classes; class 0 is the negative one.

    With K = 2, precision, recall, f1 and auc are those of class 1. With more, each is the mean of
    the classes, one against the rest: precision, recall and f1 over the classes that are in the
    truth or the prediction, auc over those that the truth both has and lacks.

    scans: N.
    accuracy: share of the scans whose most probable class is right, ties to the lower class.
    auc: area under the ROC curve; NaN where the truth holds one class alone.
    auc_band: 2.5th and 97.5th percentile of the auc over bootstrap resamples of the scans; NaN
        where no resample has a curve.
    auc_resamples: on how many resamples the band stands; those in which a class is missing (or
        all there is) are left out.
    confusion: [K, K] int64, rows are the truth, columns the prediction.
    calibration_error: expected calibration error over 10 equal bins.
    calibration: the bins. With K = 2 of the probability of class 1, against the share of class 1;
        else of the probability of the most probable class, against the share that is right.
    """

    scans: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float
    auc_band: tuple[float, float]
    auc_resamples: int
    confusion: np.ndarray
    calibration_error: float
    calibration: tuple[CalibrationBin, ...]


def classification_scores(
    probabilities: Tensor | np.ndarray,
    targets: Tensor | np.ndarray,
    *,
    bootstraps: int = 1000,
    seed: int = 0,
) -> ClassificationScores:
    """Scores class probabilities against the truth.

    probabilities: [N, K], each row a distribution. targets: [N] integers, 0..K-1.
    bootstraps: resamples of the scans, with replacement, for the interval of the AUC (percentile
        method: Efron and Tibshirani, An Introduction to the Bootstrap, 1993). seed: of those.

    The calibration error is that of Naeini et al., Obtaining Well Calibrated Probabilities Using
    Bayesian Binning, AAAI 2015. Raises ValueError for wrong shapes, values that are no
    probabilities, targets out of range, or no scans at all.
    """
    from torchmetrics.functional import classification as torchmetrics

    given = torch.as_tensor(probabilities).detach().cpu().double()
    truth = torch.as_tensor(targets).detach().cpu()
    _check(given, truth)
    truth = truth.long()
    classes = given.shape[1]
    predicted = given.argmax(dim=1)
    if classes == 2:
        ask = {"preds": predicted, "target": truth}
        precision, recall, f1 = (
            getattr(torchmetrics, f"binary_{name}")(**ask)
            for name in ("precision", "recall", "f1_score")
        )
        confidence, right = given[:, 1], truth
    else:
        ask = {"preds": predicted, "target": truth, "num_classes": classes, "average": "macro"}
        precision, recall, f1 = (
            getattr(torchmetrics, f"multiclass_{name}")(**ask)
            for name in ("precision", "recall", "f1_score")
        )
        confidence, right = given.max(dim=1).values, predicted == truth
    scores, labels = given.numpy(), truth.numpy()
    auc, band, resamples = _auc_with_band(scores, labels, bootstraps, seed)
    return ClassificationScores(
        scans=len(truth),
        accuracy=float((predicted == truth).double().mean()),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        auc=auc,
        auc_band=band,
        auc_resamples=resamples,
        confusion=torchmetrics.multiclass_confusion_matrix(predicted, truth, classes).numpy(),
        calibration_error=float(
            torchmetrics.binary_calibration_error(
                confidence.clamp(0, 1), right.long(), n_bins=_BINS
            )
        ),
        calibration=_calibration(confidence.clamp(0, 1).numpy(), right.numpy()),
    )


def _check(probabilities: Tensor, targets: Tensor) -> None:
    if probabilities.dim() != 2 or probabilities.shape[1] < 2:
        raise ValueError(f"probabilities: expected [N, K >= 2], got {list(probabilities.shape)}")
    scans, classes = probabilities.shape
    if targets.shape != (scans,) or targets.is_floating_point():
        raise ValueError(
            f"targets: expected {scans} integers, got {list(targets.shape)} {targets.dtype}"
        )
    if not scans:
        raise ValueError("probabilities: no scans to score")
    sums = probabilities.sum(dim=1)
    fair = (probabilities >= -_SUM_TOLERANCE).all(dim=1) & ((sums - 1).abs() <= _SUM_TOLERANCE)
    if not fair.all():  # also where one is NaN
        row = int(torch.nonzero(~fair)[0])
        raise ValueError(
            f"probabilities: row {row} is {probabilities[row].tolist()}: expected 0..1, sum 1"
        )
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(
            f"targets: run from {targets.min()} to {targets.max()}: expected 0..{classes - 1}"
        )


def _auc_with_band(
    scores: np.ndarray, labels: np.ndarray, bootstraps: int, seed: int
) -> tuple[float, tuple[float, float], int]:
    """The (mean) AUC, its 95 % band, and the number of resamples behind the band."""
    scans, classes = scores.shape
    judged = [
        k for k in ([1] if classes == 2 else range(classes)) if 0 < np.sum(labels == k) < scans
    ]
    if not judged:
        return math.nan, (math.nan, math.nan), 0
    once = np.ones((1, scans))
    auc = float(np.mean([_auc(scores[:, k], labels == k, once) for k in judged]))
    resampled = [
        np.mean([_auc(scores[:, k], labels == k, counts) for k in judged], axis=0)
        for counts in _resamples(scans, bootstraps, seed)
    ]
    values = np.concatenate([*resampled, np.empty(0)])
    values = values[~np.isnan(values)]
    if not values.size:
        return auc, (math.nan, math.nan), 0
    low, high = np.percentile(values, [2.5, 97.5])
    return auc, (float(low), float(high)), int(values.size)


def _resamples(scans: int, bootstraps: int, seed: int) -> Iterator[np.ndarray]:
    """Yields [B, N] tables: how often each scan is in each of some resamples."""
    rng = np.random.default_rng(seed)
    at_once = max(_CHUNK // scans, 1)
    for first in range(0, bootstraps, at_once):
        rows = min(at_once, bootstraps - first)
        drawn = rng.integers(0, scans, (rows, scans)) + np.arange(rows)[:, None] * scans
        yield np.bincount(drawn.reshape(-1), minlength=rows * scans).reshape(rows, scans)


def _auc(scores: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AUC of each of B resamples [B, N] by ranks; NaN where one holds a single class.

    It is the share of the pairs of a positive and a negative scan that are in order, ties half:
    Mann and Whitney, Annals of Mathematical Statistics 18 (1947).
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of each run of equal scores
    counts, positive = counts[:, order], positive[order]
    positives = np.add.reduceat(counts * positive, starts, axis=1).astype(np.float64)
    negatives = np.add.reduceat(counts * ~positive, starts, axis=1).astype(np.float64)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    with np.errstate(invalid="ignore"):
        return np.sum(positives * below, axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))


def _calibration(confidence: np.ndarray, right: np.ndarray) -> tuple[CalibrationBin, ...]:
    edges = np.linspace(0, 1, _BINS + 1)
    inside = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, _BINS - 1)
    bins = []
    for k in range(_BINS):
        held = inside == k
        empty = not held.any()
        bins.append(
            CalibrationBin(
                low=float(edges[k]),
                high=float(edges[k + 1]),
                scans=int(held.sum()),
                probability=math.nan if empty else float(confidence[held].mean()),
                share=math.nan if empty else float(right[held].mean()),
            )
        )
    return tuple(bins)
