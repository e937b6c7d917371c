"""Evaluate: a folder of predictions against the truth, as a table and as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError, UsageError
from fastmed.inference.display import Display, tracked
from fastmed.inference.label_codes import parse_labels
from fastmed.inference.score_tables import show_scores
from fastmed.writers.atomic import write_atomically
from fastmed.writers.tables import write_json

TASKS = ("segmentation", "detection", "classification")


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
    luna16: bool = False,
    excluded: str | Path | None = None,
    series: str | Path | None = None,
    froc: str | Path | None = None,
    json: str | Path | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Scores predictions against the truth in world space, and prints a table.

    predictions, truth: files or folders, as `label_pairs.pair_label_maps` (segmentation),
        `score_boxes.score_boxes` (detection; with `luna16` `score_luna16.score_luna16`) and
        `score_labels.score_scans` (classification) take them.
    task: "segmentation", "detection" or "classification".
    labels: which values of the truth stand for which label: "liver=5,lungs=10+11", or a mapping
        {"liver": 5, "lungs": (10, 11)}; None takes them as they are. Segmentation alone.
    tolerance_mm: of the surface Dice.
    luna16: score a detection's marks as the LUNA16 challenge does, with its files: excluded, the
        table of nodules that do not count, and series, the list of scans.
    froc: a PNG file for the FROC curve of a detection.
    json: a file for the scores. quiet: print errors only.

    Label maps are compared on the truth's grid: each of its voxels takes the predicted label of
    the nearest voxel, background outside the prediction's grid. Volumes are of each one's own.

    What cannot be paired or scored is named, and the others go on. Raises UsageError for wrong
    arguments, FastmedError where nothing at all can be scored or a table is damaged.
    """
    predictions, truth = Path(predictions), Path(truth)
    if task not in TASKS:
        raise UsageError(f"--task {task}: expected one of {', '.join(TASKS)}")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UsageError(f"--tolerance {tolerance_mm}: expected millimetres, 0 or more")
    if labels is not None and task != "segmentation":
        raise UsageError(f"--labels: of a segmentation; a {task} has its labels in --truth")
    for flag, given, needed in (
        ("--luna16", luna16, task == "detection"), ("--froc", froc, task == "detection"),
        ("--excluded", excluded, luna16), ("--series", series, luna16),
    ):  # fmt: skip
        if given and not needed:
            with_it = "--luna16" if task == "detection" else "--task detection"
            raise UsageError(f"{flag}: goes with {with_it}")
    if froc is not None and Path(froc).suffix.lower() != ".png":
        raise UsageError(f"--froc {froc}: expected a file name that ends in .png")
    display = Display(quiet)
    if task == "segmentation":
        scores, problems = _masks(predictions, truth, _values(labels), tolerance_mm, quiet)
    elif task == "detection":
        lists = (excluded and Path(excluded), series and Path(series))
        scores, problems = _boxes(predictions, truth, luna16, *lists, froc)
    else:
        from fastmed.inference.score_labels import score_scans

        scores, problems = score_scans(predictions, truth)
    scores = {"task": task} | scores | {"problems": problems}
    if json is not None:
        write_json(scores, os.fspath(json))
    if not quiet:
        show_scores(scores, display)
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


def _boxes(predictions, truth, luna16, excluded, series, picture):
    problems = []
    if luna16:
        from fastmed.inference.score_luna16 import score_luna16

        scores, froc = score_luna16(predictions, truth, excluded, series)
    else:
        from fastmed.inference.score_boxes import score_boxes

        scores, problems, froc = score_boxes(predictions, truth)
    if picture is not None:
        from fastmed.writers.froc_picture import froc_png

        caption = f"{scores['findings']} findings on {scores['scans']} scans"
        write_atomically(picture, [froc_png(froc, caption)])
    return scores, problems


def _values(labels) -> dict[str, tuple[int, ...]] | None:
    if labels is None or isinstance(labels, str):
        return None if labels is None else parse_labels(labels)
    listed = {
        name: (values,) if isinstance(values, int) else tuple(values)
        for name, values in labels.items()
    }
    text = ",".join(f"{name}={'+'.join(map(str, values))}" for name, values in listed.items())
    return parse_labels(text)
