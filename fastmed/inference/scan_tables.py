"""Tables of scans: CSV files whose errors name file, line and column, and pairs by path."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from fastmed.errors import FastmedError
from fastmed.readers.label_maps import stem

Key = tuple[str, ...]  # the parts of a scan's path, without an extension


@dataclass(frozen=True, eq=False)
class Table:
    """A CSV file: its columns as written, its rows' cells, and the line that each row ends on."""

    file: Path
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]

    def where(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.file}, line {self.lines[row]}"

    def index(self, *names: str) -> int:
        """The first column with one of these names, whatever its case. Raises FastmedError."""
        known = [column.lower() for column in self.columns]
        for name in names:
            if name.lower() in known:
                return known.index(name.lower())
        raise FastmedError(
            f"{self.file}: expected a column {' or '.join(names)}, got {self.columns}"
        )

    def has(self, *names: str) -> bool:
        """Whether it has all these columns, whatever their case."""
        return {name.lower() for name in names} <= {column.lower() for column in self.columns}

    def only(self, rows: Sequence[int]) -> Table:
        """The table of some of its rows."""
        return Table(
            self.file, self.columns, [self.rows[k] for k in rows], [self.lines[k] for k in rows]
        )

    def texts(self, *names: str) -> list[str]:
        """The cells of the column with one of these names, without spaces around them."""
        column = self.index(*names)
        return [row[column].strip() for row in self.rows]

    def numbers(self, *names: str) -> np.ndarray:
        """[rows] float64 of a column. Raises FastmedError that names a cell that is no number."""
        column = self.index(*names)
        try:
            values = np.array([float(row[column]) for row in self.rows])
        except ValueError:
            values = np.array([_float_or_nan(row[column]) for row in self.rows])
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            value = self.rows[bad[0]][column]
            raise FastmedError(
                f"{self.where(bad[0])}: {self.columns[column]} {value!r}: expected a finite number"
            )
        return values


def read_table(file: Path) -> Table:
    """Reads a CSV file with a header; commas or tabs between cells, blank lines left out.

    Raises FastmedError where it cannot be read, has no header, or a row has not as many cells.
    """
    columns, rows, lines = None, [], []
    for line, cells in read_cells(file):
        if columns is None:
            columns = [cell.strip() for cell in cells]
            continue
        if len(cells) < len(columns) or any(cell.strip() for cell in cells[len(columns) :]):
            raise FastmedError(
                f"{file}, line {line}: {len(cells)} cells, the header has {len(columns)}"
            )
        rows.append(cells)
        lines.append(line)
    if columns is None:
        raise FastmedError(f"{file}: it is empty; expected a header")
    return Table(file, columns, rows, lines)


def read_cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and cells of each row of a CSV file that is not blank."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            delimiter = "\t" if "\t" in stream.readline() else ","
            stream.seek(0)
            rows = csv.reader(stream, delimiter=delimiter)
            for cells in rows:
                if any(cell and not cell.isspace() for cell in cells):
                    yield rows.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FastmedError(f"{file}: not readable as CSV ({error})") from error


class Predicted(Protocol):
    """A scan's prediction: the paths it may be paired by, best first, and where it stands."""

    keys: tuple[Key, ...]
    where: str


class Truth(Protocol):
    """A scan's truth: its path, and where it stands."""

    key: Key
    where: str


P = TypeVar("P", bound=Predicted)
T = TypeVar("T", bound=Truth)


def key_of(path: str) -> Key:
    """A path in parts, without the extension of a scan."""
    parts = [part for part in path.strip().split("/") if part not in ("", ".")]
    return (*parts[:-1], stem(parts[-1])) if parts else ("",)


def paired(predicted: Sequence[P], true: Sequence[T]) -> tuple[list[tuple[P, T]], list[P], list[T]]:
    """Pairs predictions and truth of scans; returns the pairs, and what of each has no partner.

    They are a pair where their paths are the same, or else where one ends in the other and no
    second one does. Raises FastmedError where a path may be several, or two are one's.
    """
    exact = {row.key: row for row in true}
    by_last: dict[str, list[T]] = {}
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
            alone.append(scan)
        elif row.key in used:
            raise FastmedError(
                f"{row.where}: it is the truth of both {used[row.key].where} and {scan.where}"
            )
        else:
            used[row.key] = scan
            pairs.append((scan, row))
    return pairs, alone, [row for row in true if row.key not in used]


def _one_ends_in_the_other(one: Key, other: Key) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]


def _float_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
