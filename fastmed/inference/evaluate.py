"""Evaluate: a folder of predictions against the truth, as a table and as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError, UsageError
from fastmed.inference.display import Display, scores_table, tracked
from fastmed.inference.label_codes import parse_labels
from fastmed.writers.tables import write_json

TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class Evaluation:
    """The scores as plain values (docs/formats.md), and what could not be paired or scored."""

    task: str
    scores: dict[str, Any]
    problems: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        """0 where every file was paired and scored, else 1."""
        return int(bool(self.problems))


def evaluate(
    predictions: str | Path,
    truth: str | Path,
    *,
    task: str,
    labels: str | Mapping[str, int | Sequence[int]] | None = None,
    tolerance_mm: float = 2.0,
    json: str | Path | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Scores predictions against the truth in world space, and prints a table.

    predictions, truth: files or folders, as `label_pairs.pair_label_maps` (segmentation) and
        `score_labels.score_scans` (classification) take them.
    task: "segmentation" or "classification".
    labels: which values of the truth stand for which label: "liver=5,lungs=10+11", or a mapping
        {"liver": 5, "lungs": (10, 11)}; None takes them as they are. Segmentation alone.
    tolerance_mm: of the surface Dice. json: a file for the scores. quiet: print errors only.

    Label maps are compared on the truth's grid: each of its voxels takes the predicted label of
    the nearest voxel, background outside the prediction's grid. Volumes are of each one's own.

    What cannot be paired or scored is named, and the others go on. Raises UsageError for wrong
    arguments, FastmedError where nothing at all can be scored or a table is damaged.
    """
    predictions, truth = Path(predictions), Path(truth)
    if task not in TASKS:
        raise UsageError(f"--task {task}: this version knows {' and '.join(TASKS)}")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UsageError(f"--tolerance {tolerance_mm}: expected millimetres, 0 or more")
    if labels is not None and task != "segmentation":
        raise UsageError(f"--labels: of a segmentation; a {task} has its labels in --truth")
    display = Display(quiet)
    if task == "segmentation":
        scores, problems = _masks(predictions, truth, _values(labels), tolerance_mm, quiet)
    else:
        from fastmed.inference.score_labels import score_scans

        scores, problems = score_scans(predictions, truth)
    scores = {"task": task} | scores | {"problems": problems}
    if json is not None:
        write_json(scores, os.fspath(json))
    if not quiet:
        _show_masks(scores, display) if task == "segmentation" else _show_labels(scores)
    for problem in problems:
        display.complain(problem)
    return Evaluation(task, scores, tuple(problems))


def _masks(predictions, truth, labels, tolerance_mm, quiet):
    from fastmed.inference.label_pairs import pair_label_maps
    from fastmed.inference.score_masks import score_label_maps

    pairs, problems = pair_label_maps(predictions, truth)
    scores, failed = score_label_maps(
        pairs, labels, tolerance_mm, each=lambda items: tracked(items, "scoring", quiet)
    )
    if not scores["per_case"]:
        raise FastmedError("; ".join(failed))
    return scores, problems + failed


def _values(labels) -> dict[str, tuple[int, ...]] | None:
    if labels is None or isinstance(labels, str):
        return None if labels is None else parse_labels(labels)
    listed = {
        name: (values,) if isinstance(values, int) else tuple(values)
        for name, values in labels.items()
    }
    text = ",".join(f"{name}={'+'.join(map(str, values))}" for name, values in listed.items())
    return parse_labels(text)


def _show_masks(scores: dict[str, Any], display: Display) -> None:
    columns = (
        "case", "label", "Dice", "IoU", "ml", "truth ml", "error %", "HD95 mm", "surface Dice",
    )  # fmt: skip
    rows = [
        (case, *row) for case, found in scores["per_case"].items() for row in _label_rows(found)
    ]
    rows += [("mean", *row) for row in _label_rows(scores["mean"])]
    scores_table(columns, rows)
    for case, found in scores["per_case"].items():
        for warning in found["warnings"]:
            display.say(f"{case}: {warning}")


def _label_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            label,
            _number(row["dice"], 4),
            _number(row["iou"], 4),
            _number(row["volume_ml"], 1),
            _number(row["truth_volume_ml"], 1),
            _number(row["volume_error_percent"], 1),
            _number(row["hausdorff_95_mm"], 2),
            _number(row["surface_dice"], 4),
        )
        for label, row in found["labels"].items()
    ]


def _show_labels(scores: dict[str, Any]) -> None:
    low, high = (_number(end, 4) for end in scores["auc_band"])
    rows = [("scans", str(scores["scans"])), ("ROC AUC", _number(scores["auc"], 4))]
    rows += [("  95 % of resamples", f"{low} to {high} ({scores['auc_resamples']} resamples)")]
    rows += [
        (name.replace("_", " "), _number(scores[name], 4))
        for name in ("accuracy", "precision", "recall", "f1", "calibration_error")
    ]
    scores_table(("score", ""), rows)
    header = ("truth \\ predicted", *scores["classes"])
    confusion = zip(scores["classes"], scores["confusion"].tolist(), strict=True)
    scores_table(header, [(name, *map(str, counts)) for name, counts in confusion])


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
