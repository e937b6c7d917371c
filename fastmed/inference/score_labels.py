"""A label per scan against the truth: predictions and a table of labels, paired by path."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmed.errors import FastmedError, SeriesError, UsageError
from fastmed.inference.scan_tables import Table, key_of, paired, read_table
from fastmed.metrics.classification import classification_scores
from fastmed.readers.label_maps import stem

_PROBABILITY = "p_"


@dataclass(frozen=True)
class PredictedScan:
    """One scan's probabilities, class 0 first, and the paths it may be paired by."""

    keys: tuple[tuple[str, ...], ...]
    probabilities: tuple[float, ...]
    where: str


@dataclass(frozen=True)
class TrueScan:
    """One row of the truth: the scan's path in parts, its label as written, and where it stands."""

    key: tuple[str, ...]
    label: str
    where: str


def score_scans(predictions: Path, truth: Path) -> tuple[dict[str, Any], list[str]]:
    """Scores predicted labels of scans against a table of them.

    predictions: predictions.csv (columns path or name, and p_<label> per class, class 0 first), a
        folder that holds it, or what `fastmed infer` wrote (findings.json of each series). truth:
        a CSV file with the columns path (or name) and label (or target); a label is the name of a
        class or its number from 0. Other columns are ignored.

    A prediction and a row are a pair where their paths are the same without extensions, or else
    where one ends in the other and no second one does.

    Returns the scores as plain values and a sentence for each side's scans without a partner.
    Raises UsageError where a path is absent, FastmedError that names file and line.
    """
    classes, predicted = _predictions(predictions)
    true = _truth(truth)
    pairs, without_label, without_prediction = paired(predicted, true)
    if not pairs:
        raise FastmedError(f"{predictions}, {truth}: no prediction has the path of a row of truth")
    alone = ["/".join(scan.keys[0]) for scan in without_label]
    lacking = ["/".join(row.key) for row in without_prediction]
    problems = [f"no label for {', '.join(alone)}"] if alone else []
    problems += [f"no prediction for {', '.join(lacking)}"] if lacking else []
    targets = [_class_of(row, classes) for _, row in pairs]
    probabilities = np.array([scan.probabilities for scan, _ in pairs])
    try:
        scores = classification_scores(probabilities, np.array(targets))
    except ValueError as error:
        raise FastmedError(f"{predictions}: {error}") from error
    return {"classes": list(classes)} | asdict(scores), problems


def _predictions(path: Path) -> tuple[tuple[str, ...], list[PredictedScan]]:
    if not path.exists():
        raise UsageError(f"--predictions {path}: no such file or folder")
    if path.is_dir() and not (path / "predictions.csv").is_file():
        return _findings(path)
    return _table(path / "predictions.csv" if path.is_dir() else path)


def _findings(folder: Path) -> tuple[tuple[str, ...], list[PredictedScan]]:
    files = sorted((folder / "series" if (folder / "series").is_dir() else folder).glob("*/*.json"))
    files = [f for f in files if f.name == "findings.json" and not f.parent.name.startswith(".")]
    if not files:
        raise FastmedError(f"{folder}: holds neither predictions.csv nor series/*/findings.json")
    scans, known = [], None
    for file in files:
        try:
            found = json.loads(file.read_text("utf-8"))
            names = tuple(str(score["label"]) for score in found["scores"])
            values = tuple(_probability(score["probability"]) for score in found["scores"])
            source = str(found["source"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FastmedError(f"{file}: not readable as findings ({error})") from error
        if len(names) < 2:
            raise FastmedError(f"{file}: it holds no scores; was the model a classification?")
        if known not in (None, names):
            raise FastmedError(f"{file}: its labels are {names}, those of others {known}")
        known = names
        scans.append(PredictedScan((key_of(source), (stem(file.parent.name),)), values, str(file)))
    return known, scans


def _table(file: Path) -> tuple[tuple[str, ...], list[PredictedScan]]:
    table = _filled_table(file)
    paths = table.texts("path", "name")
    names = [column for column in table.columns if column.startswith(_PROBABILITY)]
    if len(names) < 2:
        raise FastmedError(
            f"{file}: expected a column p_<label> for each class, got {table.columns}"
        )
    at = [table.columns.index(name) for name in names]
    scans = []
    for number, (path, row) in enumerate(zip(paths, table.rows, strict=True)):
        where = table.where(number)
        try:
            values = tuple(_probability(row[column]) for column in at)
        except ValueError as error:
            raise FastmedError(f"{where}: a probability is missing or none ({error})") from error
        scans.append(PredictedScan((key_of(path),), values, where))
    return tuple(name.removeprefix(_PROBABILITY) for name in names), scans


def _truth(file: Path) -> list[TrueScan]:
    if not file.exists():
        raise UsageError(f"--truth {file}: no such file")
    if file.is_dir():
        raise UsageError(f"--truth {file}: for classification it is a CSV with path and label")
    table = _filled_table(file)
    labelled = zip(table.texts("path", "name"), table.texts("label", "target"), strict=True)
    true = [
        TrueScan(key_of(path), label, table.where(number))
        for number, (path, label) in enumerate(labelled)
    ]
    seen: dict[tuple[str, ...], TrueScan] = {}
    for row in true:
        if row.key in seen:
            raise FastmedError(f"{row.where}: {'/'.join(row.key)} stands in {seen[row.key].where}")
        seen[row.key] = row
    return true


def _filled_table(file: Path) -> Table:
    table = read_table(file)
    if not table.rows:
        raise FastmedError(f"{file}: it has no rows")
    return table


def _probability(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a number")
    return number


def _class_of(row: TrueScan, classes: Sequence[str]) -> int:
    if row.label in classes:
        return list(classes).index(row.label)
    if row.label.isdecimal() and int(row.label) < len(classes):
        return int(row.label)
    raise SeriesError(
        f"{row.where}: label {row.label!r} is none of {', '.join(classes)}, "
        f"nor a number from 0 to {len(classes) - 1}"
    )
