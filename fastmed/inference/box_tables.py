"""Boxes of scans in files: findings of a run, boxes.csv, LUNA16's annotations.csv."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError, UsageError
from fastmed.inference.scan_tables import Key, Table, key_of, read_table
from fastmed.readers.label_maps import stem
from fastmed.readers.luna16 import read_luna16

_CORNERS = ("x1", "y1", "z1", "x2", "y2", "z2")
_FINDINGS_CORNERS = tuple(f"{name}_lps_mm" for name in _CORNERS)
_BALL = ("coordX", "coordY", "coordZ", "diameter_mm")
_NODULE = "nodule"  # what LUNA16's tables list

Box = tuple[float, ...]  # (x1, y1, z1, x2, y2, z2)


@dataclass(frozen=True)
class PredictedBoxes:
    """One scan's boxes as (label, score, box), and the paths it may be paired by."""

    keys: tuple[Key, ...]
    boxes: tuple[tuple[str, float, Box], ...]
    where: str


@dataclass(frozen=True)
class TrueBoxes:
    """One scan's boxes of the truth as (label, box), its path, and where it stands."""

    key: Key
    boxes: tuple[tuple[str, Box], ...]
    where: str


def read_predictions(path: Path) -> tuple[list[PredictedBoxes], bool]:
    """The predicted boxes of scans, and whether scans without any are among them.

    path: what `fastmed infer` wrote (findings.json of each series), its findings.csv, or a CSV file
        with the columns path, label, score, x1, y1, z1, x2, y2, z2.

    Raises UsageError where it is absent, FastmedError that names file, line, column and value.
    """
    if not path.exists():
        raise UsageError(f"--predictions {path}: no such file or folder")
    if path.is_file():
        return _predicted_table(path), False
    folder = path / "series" if (path / "series").is_dir() else path
    files = [f for f in sorted(folder.glob("*/findings.json")) if f.parent.name[0] != "."]
    if files:
        return _findings(files), True
    if (path / "findings.csv").is_file():
        return _predicted_table(path / "findings.csv"), False
    raise FastmedError(f"{path}: holds neither series/*/findings.json nor findings.csv")


def _findings(files: Sequence[Path]) -> list[PredictedBoxes]:
    contents, others = [], []
    for file in files:
        try:
            found = json.loads(file.read_text("utf-8"))
            boxes = tuple(_finding(box) for box in found["boxes"])
            contents.append((str(found["source"]), boxes, file))
            others += [file] if found.get("masks") or found.get("scores") else []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FastmedError(f"{file}: not readable as findings ({error})") from error
    if others and not any(boxes for _, boxes, _ in contents):
        raise FastmedError(f"{others[0]}: it holds no boxes; was the model a detection?")
    sources = [source for source, _, _ in contents]
    return [
        PredictedBoxes(_keys(source, file.parent.name, sources), boxes, str(file))
        for source, boxes, file in contents
    ]


def _finding(box: dict[str, Any]) -> tuple[str, float, Box]:
    corners = tuple(_finite(corner) for corner in box["box_lps_mm"])
    if len(corners) != 6:
        raise ValueError(f"box_lps_mm has {len(corners)} numbers")
    return str(box["label"]), _finite(box["score"]), corners


def _predicted_table(file: Path) -> list[PredictedBoxes]:
    table = read_table(file)
    if not table.has(*_FINDINGS_CORNERS):
        rows = _rows(table, "path", _CORNERS, with_score=True)
        return [PredictedBoxes((key,), tuple(boxes), where) for key, boxes, where in rows]
    table = table.only([row for row, kind in enumerate(table.texts("kind")) if kind == "box"])
    sources = dict(zip(table.texts("series"), table.texts("source"), strict=True))
    rows = _rows(table, "series", _FINDINGS_CORNERS, with_score=True)
    return [
        PredictedBoxes(_keys(source, series, sources.values()), tuple(boxes), where)
        for (_, boxes, where), (series, source) in zip(rows, sources.items(), strict=True)
    ]


def _keys(source: str, series: str, sources: Collection[str]) -> tuple[Key, ...]:
    """The paths of a series: its name and its source, unless that is of several series."""
    alone = list(sources).count(source) == 1
    return (*((key_of(source),) if alone else ()), (stem(series),))


def read_truth(path: Path) -> tuple[list[TrueBoxes], bool]:
    """The true boxes of scans, and whether scans without findings are among them.

    path: boxes.csv (columns path, label, x1, y1, z1, x2, y2, z2; a row with an empty label is a
        scan without findings), LUNA16's annotations.csv, or a folder that holds one of them.

    Raises UsageError where it is absent, FastmedError that names file, line, column and value.
    """
    if not path.exists():
        raise UsageError(f"--truth {path}: no such file or folder")
    if path.is_dir():
        names = ("boxes.csv", "annotations.csv")
        held = [path / name for name in names if (path / name).is_file()]
        if not held:
            raise UsageError(f"--truth {path}: holds neither {' nor '.join(names)}")
        path = held[0]
    table = read_table(path)
    if table.has("seriesuid", *_BALL):
        return _balls(path), False
    rows = _rows(table, "path", _CORNERS, with_score=False)
    return [
        TrueBoxes(key, tuple((label, box) for label, _, box in boxes), where)
        for key, boxes, where in rows
    ], True


def _rows(
    table: Table, path: str, corners: Sequence[str], *, with_score: bool
) -> Iterable[tuple[Key, list[tuple[str, float, Box]], str]]:
    """Each scan of a table of boxes: its path, its boxes as (label, score, box), its first row."""
    labels = table.texts("label")
    filled = [row for row, label in enumerate(labels) if label]
    inside = table.only(filled)
    columns = [inside.numbers(name).tolist() for name in corners]
    scores = inside.numbers("score").tolist() if with_score else [1.0] * len(filled)
    boxes = dict(zip(filled, zip(*columns, strict=True), strict=True))
    score_of = dict(zip(filled, scores, strict=True))
    scans: dict[Key, tuple[Key, list, str]] = {}
    for row, (text, label) in enumerate(zip(table.texts(path), labels, strict=True)):
        if not text:
            raise FastmedError(f"{table.where(row)}: {path} is empty")
        scan = scans.setdefault(key_of(text), (key_of(text), [], table.where(row)))
        if label:
            if not with_score:
                _check_sides(table, row, boxes[row])
            scan[1].append((label, score_of[row], boxes[row]))
    return list(scans.values())


def _check_sides(table: Table, row: int, box: Box) -> None:
    for k, (low, high) in enumerate(zip(box[:3], box[3:], strict=True)):
        if low >= high:
            raise FastmedError(
                f"{table.where(row)}: {_CORNERS[k]} {low:g} is not below {_CORNERS[k + 3]} {high:g}"
            )


def _balls(file: Path) -> list[TrueBoxes]:
    scans: dict[Key, TrueBoxes] = {}
    for nodule in read_luna16(file):
        key = key_of(nodule.series_uid)
        known = scans.get(key, TrueBoxes(key, (), f"{file}: {nodule.series_uid}"))
        scans[key] = TrueBoxes(key, (*known.boxes, (_NODULE, nodule.box_lps_mm)), known.where)
    return list(scans.values())


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a number")
    return number
