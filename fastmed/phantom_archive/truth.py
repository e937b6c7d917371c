"""truth.csv: what an index of the phantom archive must say of each thing in it, and a run make."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from fastmed.writers.atomic import write_atomically


@dataclass(frozen=True)
class Expected:
    """What an index must say of one thing in an archive.

    way: the name of how it was made, a key of WAYS.
    source: path relative to the archive's scans/, as the index names it.
    kind, conditions: as `fastmed.readers.series.Series` has them; conditions are joined by "; ".
    strict, lenient: the verdict under --strict and under --lenient ("ok" is what a run must do).
    shows: "headers", or "voxels" where an index of headers alone may take it for sound.
    volumes: entries that lenient makes of it; strict makes as many where it takes it, else one.
    files: how many files stand behind it.
    liver_ml: volume of the liver in the scan's field of view; empty where the scan is no whole one.
    """

    way: str
    source: str
    kind: str
    conditions: str
    strict: str
    lenient: str
    shows: str = "headers"
    volumes: int = 1
    files: int = 1
    liver_ml: str = ""

    def verdict(self, *, strict: bool) -> str:
        return self.strict if strict else self.lenient

    def entries(self, *, strict: bool) -> int:
        """How many entries of an index stand for it."""
        return self.volumes if self.verdict(strict=strict) == "ok" else 1


def write_truth(rows: Iterable[Expected], path: Path) -> None:
    """Writes truth.csv, sorted by source. Raises FastmedError where the disk refuses."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(field.name for field in fields(Expected))
    table.writerows(astuple(row) for row in sorted(rows, key=lambda r: (r.source, r.kind)))
    write_atomically(path, [text.getvalue().encode()])


def read_truth(path: str | Path) -> list[Expected]:
    """Reads what `write_archive` wrote beside scans/."""
    with open(path, encoding="utf-8", newline="") as file:
        return [
            Expected(**(row | {"volumes": int(row["volumes"]), "files": int(row["files"])}))
            for row in csv.DictReader(file)
        ]
