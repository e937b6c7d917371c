"""What a run shows on the terminal: a progress bar while it works, a table at the end."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    track,
)
from rich.table import Table
from rich.text import Text

from fastmed.readers.index import Series
from fastmed.readers.index_store import IndexStore
from fastmed.writers.legend import format_boxes
from fastmed.writers.report import ReportRow

MOST_ROWS = 200  # of a table on the terminal; report.html lists them all
_WIDTH_OF_A_LOG = 240
_COLORS = {
    "done": "green", "ok": "green", "refused": "yellow", "failed": "red", "skipped": "bright_black",
}  # fmt: skip


class Display:
    """Progress and tables on stderr, so that stdout stays free; silent where `quiet`."""

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._console = _console(sys.stderr)

    def say(self, sentence: str) -> None:
        """Prints one sentence."""
        if not self._quiet:
            self._console.print(_shown(sentence), highlight=False, soft_wrap=True)

    def complain(self, sentence: str) -> None:
        """Prints what went wrong, also where `quiet`."""
        self._console.print(_shown(f"fastmed: {sentence}"), highlight=False, soft_wrap=True)

    def table(self, rows: Iterable[ReportRow], counts: Mapping[str, int]) -> None:
        """Prints what became of each series; of more than MOST_ROWS, and where `quiet`, of those
        that were not done.

        counts: how many came to each verdict.
        """
        is_long = sum(counts.values()) > MOST_ROWS
        table = Table(box=None, pad_edge=False)
        for column in ("scan", "verdict", "findings or reason"):
            table.add_column(column, overflow="fold")
        table.add_column("seconds", justify="right")
        for row in rows:
            if (self._quiet or is_long) and row.verdict not in ("failed", "refused"):
                continue
            if self._quiet:
                line = f"fastmed: {row.verdict}: {_named(row)}"
                self._console.print(_shown(line), highlight=False, soft_wrap=True)
                continue
            color = _COLORS[row.verdict]
            table.add_row(
                _shown(_short(row.source)),
                f"[{color}]{row.verdict}[/{color}]",
                _shown(_figures(row)),
                f"{row.seconds:.1f}" if row.seconds is not None else "",
            )
        if self._quiet:
            return
        self._console.print(table)
        listed = ", ".join(f"{counts[v]} {v}" for v in _COLORS if counts.get(v))
        self._console.print(listed, highlight=False)


class IndexTable:
    """An index on stdout: each entry with its verdict; counts says how many have each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._table = Table(box=None, pad_edge=False)
        for column in ("scan", "kind", "verdict", "size z y x", "what was found"):
            self._table.add_column(column, overflow="fold")

    def add(self, entry: Series) -> Series:
        """Adds a line, and returns the entry, so that others can go on with it."""
        self.counts[entry.verdict] += 1
        color = _COLORS[entry.verdict]
        self._table.add_row(
            _shown(entry.source),
            entry.kind,
            f"[{color}]{entry.verdict}[/{color}]",
            " x ".join(map(str, entry.shape_zyx)) if entry.shape_zyx else "",
            _shown("; ".join((entry.reason, *entry.warnings))),
        )
        return entry

    def print(self) -> None:
        """Prints what was added."""
        _console(sys.stdout).print(self._table)


def index_table(entries: Iterable[Series]) -> None:
    """Prints an index on stdout: each series with its verdict."""
    table = IndexTable()
    for entry in entries:
        table.add(entry)
    table.print()


def files_looked_at(entries: Iterator[Series], store: IndexStore) -> Iterator[Series]:
    """Yields the entries; until the first, the terminal shows how many files were looked at."""
    console = _console(sys.stderr)
    with Progress(
        SpinnerColumn(), _Looked(store), console=console, transient=True,
        disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        bar.add_task("")
        first = next(entries, None)
    if first is not None:
        yield first
        yield from entries


class _Looked(ProgressColumn):
    """How many files an index has looked at."""

    def __init__(self, store: IndexStore) -> None:
        super().__init__()
        self._store = store

    def render(self, task: Task) -> Text:
        counts = self._store.counts
        return Text(f"indexing: {counts.read + counts.unchanged} files looked at")


def scores_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table on stdout, its columns but the first to the right."""
    table = Table(box=None, pad_edge=False)
    for k, column in enumerate(columns):
        table.add_column(_shown(column), justify="right" if k else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    _console(sys.stdout).print(table)


def tracked(items: Sequence[Any], what: str, quiet: bool) -> Iterator[Any]:
    """Yields the items, with a bar on the terminal that says how far it is."""
    console = _console(sys.stderr)
    disable = quiet or not console.is_terminal
    yield from track(items, what, console=console, transient=True, disable=disable)


def _figures(row: ReportRow) -> str:
    if row.findings is None:
        return row.reason
    figures = []
    unit = "HU" if row.findings.get("modality", "ct") == "ct" else "grey"
    for mask in row.findings["masks"]:
        mean = f", {mask['mean_hu']:.0f} {unit}" if mask["mean_hu"] is not None else ""
        known = mask["volume_ml"] is not None
        size = f"{mask['volume_ml']:.1f} ml" if known else f"{mask['voxels']} px"
        figures.append(f"{mask['label']} {size}{mean}")
    for score in row.findings["scores"]:
        figures.append(f"{score['label']} {100 * score['probability']:.1f} %")
    if not (row.findings["masks"] or row.findings["scores"]):
        boxes = row.findings["boxes"]
        sizes = [box["diameter_mm"] for box in boxes]
        scores = [box["score"] for box in boxes]
        figures.append(format_boxes(sizes, scores, "mm" if unit == "HU" else "px"))
    return "; ".join(figures)


def _named(row: ReportRow) -> str:
    """The scan and the reason, which names the scan once."""
    if not row.reason or row.reason.startswith(row.source):
        return row.reason or row.source
    return f"{row.source}: {row.reason}"


def _shown(text: str) -> str:
    """A text from files or headers, unable to steer the terminal or to break its encoding."""
    return escape("".join(c if c.isprintable() else "?" for c in text))


def _short(source: str, longest: int = 48) -> str:
    return source if len(source) <= longest else "…" + source[-(longest - 1) :]


def _console(stream: TextIO) -> Console:
    """A console as wide as the terminal; in a file or a pipe, wide enough for one line a scan."""
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_OF_A_LOG)
