"""Boxes per scan against the truth: findings of a run or tables, paired by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError
from fastmed.inference.box_tables import PredictedBoxes, TrueBoxes, read_predictions, read_truth
from fastmed.inference.scan_tables import paired
from fastmed.metrics.detection import DetectionScores, detection_scores
from fastmed.metrics.froc import Froc


def score_boxes(
    predictions: Path, truth: Path, *, bootstraps: int = 1000
) -> tuple[dict[str, Any], list[str], Froc]:
    """Scores predicted boxes of scans against a table of them; see `metrics.detection`.

    predictions: what `fastmed infer` wrote (findings.json of each series), its findings.csv, or a
        CSV file with the columns path, label, score, x1, y1, z1, x2, y2, z2. truth: boxes.csv
        (columns path, label, x1, y1, z1, x2, y2, z2 in LPS mm; a row with an empty label is a scan
        without findings), LUNA16's annotations.csv (a nodule's box is the cube around it), or a
        folder that holds one of them. Other columns are ignored.

    A prediction and a scan of the truth are a pair where their paths are the same without
    extensions, or else where one ends in the other and no second one does. A table of predictions
    says nothing of scans without any: those of the truth that it lacks count as such. So do scans
    that annotations.csv lacks, as scans without nodules. Both are counted in the scores.

    Labels have to be the same on both sides, but where each side has one only.

    Returns the scores as plain values, a sentence for each side's scans without a partner, and the
    FROC curve. Raises UsageError where a path is absent, FastmedError that names file and line.
    """
    predicted, lists_every_scan = read_predictions(predictions)
    true, truth_lists_every_scan = read_truth(truth)
    pairs, without_truth, without_prediction = paired(predicted, true)
    if not pairs and predicted:
        raise FastmedError(f"{predictions}, {truth}: no prediction has the path of a scan of truth")
    problems = []
    alone = ["/".join(scan.keys[0]) for scan in without_truth]
    lacking = ["/".join(row.key) for row in without_prediction]
    if not truth_lists_every_scan:
        pairs += [(scan, TrueBoxes(scan.keys[0], (), scan.where)) for scan in without_truth]
    elif alone:
        problems.append(f"no truth for {', '.join(alone)}")
    if not lists_every_scan:
        pairs += [(PredictedBoxes((row.key,), (), row.where), row) for row in without_prediction]
    elif lacking:
        problems.append(f"no prediction for {', '.join(lacking)}")
    pairs = _with_one_language(predictions, truth, pairs)
    found = detection_scores(
        [
            (
                [b for *_, b in scan.boxes],
                [s for _, s, _ in scan.boxes],
                [n for n, *_ in scan.boxes],
            )
            for scan, _ in pairs
        ],
        [tuple([box[part] for box in row.boxes] for part in (1, 0)) for _, row in pairs],
        bootstraps=bootstraps,
    )
    assumed = {
        "without_findings": 0 if truth_lists_every_scan else len(alone),
        "without_predictions": 0 if lists_every_scan else len(lacking),
    }
    return _plain(found) | {"assumed": assumed}, problems, found.froc


def _plain(found: DetectionScores) -> dict[str, Any]:
    return {
        "luna16": False,
        "scans": found.scans,
        "findings": found.findings,
        "predictions": found.predictions,
        "mean_iou": found.mean_iou,
        "ap": _named(found.ap),
        "map": found.map,
        "labels": {
            str(one.label): {
                "findings": one.findings,
                "predictions": one.predictions,
                "ap": _named(one.ap),
            }
            for one in found.classes
        },
        "cpm": found.froc.cpm,
        "sensitivities": list(found.froc.sensitivities),
        "band": [list(ends) for ends in found.froc.band],
        "resamples": found.froc.resamples,
    }


def _named(ap: dict[float, float]) -> dict[str, float]:
    return {str(threshold): value for threshold, value in ap.items()}


def _with_one_language(predictions: Path, truth: Path, pairs):
    """The pairs, with the truth's name for a label that stands alone on either side."""
    predicted = {label for scan, _ in pairs for label, _, _ in scan.boxes}
    true = {label for _, row in pairs for label, _ in row.boxes}
    if not true:
        raise FastmedError(f"{truth}: the scans that have predictions have no finding to score")
    if not predicted or predicted & true:
        return pairs
    if len(predicted) > 1 or len(true) > 1:
        raise FastmedError(
            f"{predictions}: its labels are {', '.join(sorted(predicted))}, "
            f"those of {truth} {', '.join(sorted(true))}"
        )
    name = next(iter(true))
    return [
        (PredictedBoxes(scan.keys, tuple((name, s, b) for _, s, b in scan.boxes), scan.where), row)
        for scan, row in pairs
    ]
