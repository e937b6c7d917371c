"""LUNA16's files against each other: marks, nodules, nodules that do not count, list of series."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from fastmed.errors import FastmedError, UsageError
from fastmed.inference.scan_tables import Table, read_cells, read_table
from fastmed.metrics.froc import Froc
from fastmed.metrics.luna16 import Marks, Nodules, luna16_score

_SERIES = ("seriesuid", "series_uid", "seriesinstanceuid", "series")
_CENTRE = ("coordX", "coordY", "coordZ")
_WHOLE_NUMBER = re.compile(r"0*(\d+)(\.0*)?", re.ASCII)


def score_luna16(
    predictions: Path,
    truth: Path,
    excluded: Path | None,
    series: Path | None,
    *,
    bootstraps: int = 1000,
) -> tuple[dict[str, Any], Froc]:
    """Scores marks as the LUNA16 challenge does; see `metrics.luna16`.

    predictions: marks.csv (columns seriesuid, coordX, coordY, coordZ, probability), or a folder
        that holds it. truth, excluded: annotations.csv and annotations_excluded.csv (columns
        seriesuid, coordX, coordY, coordZ, diameter_mm). series: seriesuids.csv, a series in the
        first cell of each line (or in the column seriesuid), with or without a header.

    Cells stand between commas or tabs, columns in any order. Coordinates are world mm as MetaImage
    files and DICOM have them (LPS); all that matters here is that all files have the same. Series
    that are whole numbers are the same as 1, "1", 001 or 1.0. What is of a series that the list
    lacks is left out, as the challenge does, and counted in `left_out`.

    Returns the scores as plain values, and the curve. Raises UsageError where a file is absent or
    not given, FastmedError that names file, line, column and value.
    """
    if predictions.is_dir():
        if not (predictions / "marks.csv").is_file():
            raise UsageError(
                f"--predictions {predictions}: holds no marks.csv; fastmed infer --write luna "
                "makes it"
            )
        predictions = predictions / "marks.csv"
    for flag, file in (
        ("--predictions", predictions), ("--truth", truth), ("--excluded", excluded),
        ("--series", series),
    ):  # fmt: skip
        if file is None:
            raise UsageError(f"{flag}: --luna16 needs this file too")
        if not file.is_file():
            raise UsageError(f"{flag} {file}: no such file")
    numbers = _listed_series(series)
    marks = read_table(predictions)
    mark_scans, probabilities = _scans(marks, numbers), marks.numbers("probability")
    centres, listed = _centres(marks), mark_scans >= 0
    findings, findings_left_out = _nodules(truth, numbers)
    others, excluded_left_out = _nodules(excluded, numbers)
    if len(listed) and not listed.any():
        example = marks.texts(*_SERIES)[0]
        raise FastmedError(
            f"{predictions}: no mark is of a series of {series}; it has {example!r}, "
            f"the list {next(iter(numbers))!r}"
        )
    if not len(findings.scans):
        raise FastmedError(f"{truth}: no nodule is of a series of {series}; nothing can be scored")
    found = luna16_score(
        len(numbers),
        Marks(mark_scans[listed], centres[listed], probabilities[listed]),
        findings,
        others,
        bootstraps=bootstraps,
    )
    scores = {
        "luna16": True,
        "scans": len(numbers),
        "findings": found.findings,
        "excluded": len(others.scans),
        "marks": int(listed.sum()),
        "kept_marks": found.kept,
        "hits": found.hits,
        "false_positives": found.false_positives,
        "cpm": found.froc.cpm,
        "sensitivities": list(found.froc.sensitivities),
        "band": [list(ends) for ends in found.froc.band],
        "resamples": found.froc.resamples,
        "ap": found.ap,
        "left_out": {
            "marks": int(np.sum(~listed)),
            "findings": findings_left_out,
            "excluded": excluded_left_out,
        },
    }
    return scores, found.froc


def series_name(text: str) -> str:
    """A series as LUNA16's files name it; whole numbers without what a spreadsheet adds."""
    text = text.strip()
    number = _WHOLE_NUMBER.fullmatch(text)
    return number[1] if number else text


def _listed_series(file: Path) -> dict[str, int]:
    """The number of each series of the list."""
    numbers: dict[str, int] = {}
    lines: list[int] = []
    column = None
    for line, cells in read_cells(file):
        if column is None:
            names = [cell.strip().lower() for cell in cells]
            column = next((names.index(name) for name in _SERIES if name in names), None)
            if column is not None:
                continue
            column = 0
        name = series_name(cells[column]) if column < len(cells) else ""
        if not name:
            raise FastmedError(f"{file}, line {line}: no series in cell {column + 1}")
        if name in numbers:
            raise FastmedError(
                f"{file}, line {line}: series {name!r} stands in line {lines[numbers[name]]} too"
            )
        numbers[name] = len(numbers)
        lines.append(line)
    if not numbers:
        raise FastmedError(f"{file}: it lists no series")
    return numbers


def _nodules(file: Path, numbers: dict[str, int]) -> tuple[Nodules, int]:
    """The nodules of the listed series, and how many others there are."""
    table = read_table(file)
    scans, centres = _scans(table, numbers), _centres(table)
    diameters = table.numbers("diameter_mm")
    listed = scans >= 0
    return Nodules(scans[listed], centres[listed], diameters[listed]), int(np.sum(~listed))


def _scans(table: Table, numbers: dict[str, int]) -> np.ndarray:
    """[rows] the number of each row's series; -1 where the list lacks it."""
    texts = table.texts(*_SERIES)
    if "" in texts:
        raise FastmedError(f"{table.where(texts.index(''))}: seriesuid is empty")
    of_text = {text: numbers.get(series_name(text), -1) for text in set(texts)}
    return np.array([of_text[text] for text in texts], np.int64)


def _centres(table: Table) -> np.ndarray:
    return np.stack([table.numbers(name) for name in _CENTRE], axis=1)
