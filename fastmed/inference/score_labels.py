"""A label per scan against the truth: predictions and a table of labels, paired by path."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmed.errors import FastmedError, SeriesError, UsageError
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
    pairs, problems = _paired(predicted, true)
    if not pairs:
        raise FastmedError(f"{predictions}, {truth}: no prediction has the path of a row of truth")
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
        scans.append(PredictedScan((_key(source), (stem(file.parent.name),)), values, str(file)))
    return known, scans


def _table(file: Path) -> tuple[tuple[str, ...], list[PredictedScan]]:
    columns, rows = _rows(file)
    path = _column(file, columns, ("path", "name"))
    names = [column for column in columns if column.startswith(_PROBABILITY)]
    if len(names) < 2:
        raise FastmedError(f"{file}: expected a column p_<label> for each class, got {columns}")
    scans = []
    for where, row in rows:
        try:
            values = tuple(_probability(row[name]) for name in names)
        except (TypeError, ValueError) as error:
            raise FastmedError(f"{where}: a probability is missing or none ({error})") from error
        scans.append(PredictedScan((_key(row[path]),), values, where))
    return tuple(name.removeprefix(_PROBABILITY) for name in names), scans


def _truth(file: Path) -> list[TrueScan]:
    if not file.exists():
        raise UsageError(f"--truth {file}: no such file")
    if file.is_dir():
        raise UsageError(f"--truth {file}: for classification it is a CSV with path and label")
    columns, rows = _rows(file)
    path = _column(file, columns, ("path", "name"))
    label = _column(file, columns, ("label", "target"))
    true = [TrueScan(_key(row[path]), (row[label] or "").strip(), where) for where, row in rows]
    seen: dict[tuple[str, ...], TrueScan] = {}
    for row in true:
        if row.key in seen:
            raise FastmedError(f"{row.where}: {'/'.join(row.key)} stands in {seen[row.key].where}")
        seen[row.key] = row
    return true


def _rows(file: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Column names, and each row with where it stands."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            rows = [(f"{file}, line {table.line_num}", row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FastmedError(f"{file}: not readable as CSV ({error})") from error
    if not rows:
        raise FastmedError(f"{file}: it has no rows")
    return list(table.fieldnames), rows


def _column(file: Path, columns: Sequence[str], names: tuple[str, ...]) -> str:
    column = next((name for name in names if name in columns), None)
    if column is None:
        raise FastmedError(f"{file}: expected a column {' or '.join(names)}, got {list(columns)}")
    return column


def _key(path: str | None) -> tuple[str, ...]:
    parts = [part for part in (path or "").strip().split("/") if part not in ("", ".")]
    return (*parts[:-1], stem(parts[-1])) if parts else ("",)


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


def _paired(
    predicted: Sequence[PredictedScan], true: Sequence[TrueScan]
) -> tuple[list[tuple[PredictedScan, TrueScan]], list[str]]:
    exact = {row.key: row for row in true}
    by_last: dict[str, list[TrueScan]] = {}
    for row in true:
        by_last.setdefault(row.key[-1], []).append(row)
    pairs, alone, used = [], [], {}
    for scan in predicted:
        row = next((exact[key] for key in scan.keys if key in exact), None)
        if row is None:
            alike = {
                other.key: other
                for key in scan.keys
                for other in by_last.get(key[-1], ())
                if _one_ends_in_the_other(key, other.key)
            }
            if len(alike) > 1:
                raise FastmedError(
                    f"{scan.where}: {'/'.join(scan.keys[0])} may be any of "
                    f"{', '.join(sorted('/'.join(key) for key in alike))}; give the whole path"
                )
            row = next(iter(alike.values()), None)
        if row is None:
            alone.append("/".join(scan.keys[0]))
        elif row.key in used:
            raise FastmedError(
                f"{row.where}: it is the truth of both {used[row.key].where} and {scan.where}"
            )
        else:
            used[row.key] = scan
            pairs.append((scan, row))
    lacking = ["/".join(row.key) for row in true if row.key not in used]
    problems = [f"no label for {', '.join(alone)}"] if alone else []
    problems += [f"no prediction for {', '.join(lacking)}"] if lacking else []
    return pairs, problems


def _one_ends_in_the_other(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]
