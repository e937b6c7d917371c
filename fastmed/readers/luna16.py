"""LUNA16's annotations.csv: nodules by centre and diameter in a scan's LPS millimetres."""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

from fastmed.errors import DataError
from fastmed.readers.annotations import number_of, quoted

_COLUMNS = ("seriesuid", "coordx", "coordy", "coordz", "diameter_mm")
_NAMED = 20  # bad lines that an error lists


@dataclass(frozen=True)
class Nodule:
    """One row: the scan's name, the centre (x, y, z) in LPS mm, the diameter in mm."""

    series_uid: str
    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float

    @property
    def box_lps_mm(self) -> tuple[float, float, float, float, float, float]:
        """The cube around the ball, (x1, y1, z1, x2, y2, z2)."""
        half = self.diameter_mm / 2
        return (
            *(c - half for c in self.centre_lps_mm),
            *(c + half for c in self.centre_lps_mm),
        )


def read_luna16(path: str | os.PathLike) -> list[Nodule]:
    """Reads the rows of annotations.csv in their order; commas or tabs, any order of columns.

    Raises DataError that names the file and each bad line with its value.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8 at byte {error.start}") from error
    nodules, problems = [], []
    try:
        for line, row in _rows(text):
            try:
                nodules.append(_nodule(row))
            except ValueError as error:
                problems.append(f"line {line}: {error}")
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from error
    if problems:
        heading = f"{path}: {len(problems)} bad lines"
        raise DataError.listing(heading, problems[:_NAMED])
    return nodules


def _rows(text: str):
    """Yields (line number, row by lower-case column)."""
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in head else ",")
    columns = [column.strip().lower() for column in next(reader, [])]
    if missing := [column for column in _COLUMNS if column not in columns]:
        found = ", ".join(quoted(column) for column in columns[:8]) or "none"
        raise ValueError(f"no column {', '.join(missing)}; found {found}")
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num, dict(zip(columns, cells, strict=False))


def _nodule(row: dict[str, str]) -> Nodule:
    series = row.get("seriesuid", "").strip()
    if not series:
        raise ValueError("seriesuid is empty")
    values = []
    for column in _COLUMNS[1:]:
        try:
            value = number_of(row.get(column, ""))
        except ValueError as error:
            raise ValueError(f"{column} {error}") from error
        if not math.isfinite(value):
            raise ValueError(f"{column} {quoted(row[column])} is too large")
        values.append(value)
    *centre, diameter = values
    if diameter <= 0:
        raise ValueError(f"diameter_mm {diameter:g}: expected more than 0")
    return Nodule(series, tuple(centre), diameter)
