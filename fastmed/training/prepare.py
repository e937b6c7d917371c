"""Prepare: what every preparation of a data set reports, and the tables it writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmed.errors import UsageError
from fastmed.writers.atomic import write_atomically

BOX_COLUMNS = ("path", "patient", "label", "x1", "y1", "z1", "x2", "y2", "z2")
SLICE_COLUMNS = ("path", "patient", "slice", "label", "x1", "y1", "x2", "y2")
PROBLEM_COLUMNS = ("file", "problem", "verdict")
REFUSED, NOTED = "refused", "noted"


@dataclass(frozen=True, order=True)
class Problem:
    """One line of problems.csv.

    file: relative to the folder it was searched in. verdict: REFUSED, where something was left out
    that may be truth; NOTED, where nothing was lost.
    """

    file: str
    problem: str
    verdict: str


@dataclass
class Report:
    """What a preparation found: figures by name in the order they came up, and problems."""

    figures: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def count(self, name: str, number: int = 1) -> None:
        """Adds to a figure."""
        self.figures[name] = self.figures.get(name, 0) + number

    def refuse(self, file: str, problem: str) -> None:
        """Names something that was left out."""
        self.problems.append(Problem(file, problem, REFUSED))

    def note(self, file: str, problem: str) -> None:
        """Names something odd that costs nothing."""
        self.problems.append(Problem(file, problem, NOTED))

    @property
    def exit_status(self) -> int:
        """1 where something was refused."""
        return int(any(problem.verdict == REFUSED for problem in self.problems))

    def write_problems(self, path: Path) -> None:
        """Writes problems.csv, by file."""
        rows = [(p.file, p.problem, p.verdict) for p in sorted(set(self.problems))]
        write_table(path, PROBLEM_COLUMNS, rows)

    def show(self, quiet: bool) -> None:
        """Prints the figures on stdout, and how many problems there are of each verdict."""
        if quiet:
            return
        from fastmed.inference.display import scores_table

        problems = set(self.problems)
        rows = [(name, str(number)) for name, number in self.figures.items()]
        for verdict in (REFUSED, NOTED):
            number = sum(problem.verdict == verdict for problem in problems)
            rows.append((f"problems.csv: {verdict}", str(number)))
        scores_table(("what", "number"), rows)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file, whole or not at all; numbers with at most three decimals."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow([_cell(value) for value in row])
    write_atomically(path, [text.getvalue().encode(errors="backslashreplace")])


def check_folders(output: Path, **inputs: Path) -> None:
    """UsageError where an input is absent, or where writing could reach into it."""
    target = output.resolve()
    for flag, path in inputs.items():
        if not path.exists():
            raise UsageError(f"--{flag} {path}: no such file or folder")
        source = path.resolve()
        if source == target or target in source.parents:
            raise UsageError(
                f"--output {output} holds --{flag} {path}; name a folder without originals in it"
            )


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value)
    return value
