"""What a training run shows on the terminal: sentences, the bar of an epoch, tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Terminal:
    """Sentences and the bar go to stderr, tables to stdout; nothing at all where `quiet`."""

    def __init__(self, *, quiet: bool):
        self._quiet = quiet
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """Prints a sentence, or several lines."""
        self._console.print(escape(text), soft_wrap=True)

    @contextmanager
    def steps(self, epoch: int, epochs: int, total: int) -> Iterator[Any]:
        """Opens the bar of one epoch; yields what to call with (step, running loss)."""
        columns = (
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"), TimeRemainingColumn(),
        )  # fmt: skip
        live = self._console.is_terminal and not self._quiet
        with Progress(*columns, console=self._console, transient=True, disable=not live) as bar:
            task = bar.add_task("", total=total, epoch=f"{epoch}/{epochs}", loss="-")
            yield lambda step, loss: bar.update(task, completed=step, loss=f"{loss:.4f}")

    @contextmanager
    def counted(self, what: str, total: int) -> Iterator[Any]:
        """Opens a bar; yields what to call with the number that is done."""
        live = self._console.is_terminal and not self._quiet
        with Progress(console=self._console, transient=True, disable=not live) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)

    def tracked(self, things: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        """The things as they come, behind a bar."""
        live = self._console.is_terminal and not self._quiet
        with Progress(console=self._console, transient=True, disable=not live) as bar:
            yield from bar.track(things, total=total, description=what)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Prints a table below a line that says what it is."""
        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(escape(figure(value)) for value in row))
        console = Console(file=sys.stdout, quiet=self._quiet, highlight=False)
        console.print(escape(title), soft_wrap=True)
        console.print(table)


def figure(value: Any) -> str:
    """Four digits after the point; small numbers with an exponent; - for what does not exist."""
    if isinstance(value, float):
        return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.4f}"
    return "-" if value is None else str(value)
