"""The files that a run leaves to look at: tables, pictures, TensorBoard."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError
from fastmed.training.batches import Batch
from fastmed.training.pictures import Panel, curves_png, panel_image, panels_png, sample_panels
from fastmed.writers.atomic import write_atomically

_BOARD_PICTURES = 4
_REDRAW_SECONDS = 10.0  # drawing takes one: epochs of a second would wait for their curves


class Logbook:
    """Records one run's epochs.

    first_epoch: the first one that will be recorded; what TensorBoard holds of it and later ones,
        of a run that was killed, is taken back.
    """

    def __init__(self, run: Path, first_epoch: int):
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._drawn = -math.inf
        self._undrawn: tuple[Sequence[dict[str, Any]], Sequence[Panel]] | None = None
        with _named(run / "tensorboard"):
            self._board = SummaryWriter(run / "tensorboard", purge_step=first_epoch)

    def show_samples(self, batch: Batch) -> None:
        """Writes samples.png: what the network is given, crops and augmentation included."""
        write_atomically(self._run / "samples.png", [panels_png(sample_panels(batch))])

    def record(self, history: Sequence[dict[str, Any]], panels: Sequence[Panel]) -> None:
        """Writes all rows of `history` anew, and its last one to TensorBoard.

        Pictures of epochs that follow each other within ten seconds wait for the next, or for
        `close`.
        """
        row = history[-1]
        write_atomically(self._run / "metrics.csv", [metrics_csv(history).encode()])
        known = self._undrawn[1] if self._undrawn else ()
        self._undrawn = (history, panels or known)
        if time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._draw()
        with _named(self._run / "tensorboard"):
            for name, value in row.items():
                if name != "epoch" and value is not None and math.isfinite(value):
                    self._board.add_scalar(_tag(name), value, row["epoch"])
            for number, panel in enumerate(panels[:_BOARD_PICTURES]):
                picture = panel_image(panel)
                self._board.add_image(f"sample/{number}", picture, row["epoch"], dataformats="HWC")
            self._board.flush()

    def close(self) -> None:
        self._draw()
        self._board.close()

    def _draw(self) -> None:
        if self._undrawn is None:
            return
        history, panels = self._undrawn
        write_atomically(self._run / "curves.png", [curves_png(history)])
        if panels:
            write_atomically(self._run / "predictions.png", [panels_png(panels)])
        self._undrawn, self._drawn = None, time.monotonic()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the disk refuses TensorBoard is an error that names the path, as of other files."""
    try:
        yield
    except OSError as error:
        raise FastmedError(f"{path}: cannot be written ({error.strerror or error})") from error


def _tag(name: str) -> str:
    """train_loss becomes train/loss, so that TensorBoard groups what belongs together."""
    part, _, score = name.partition("_")
    return f"{part}/{score}" if part in ("train", "val") else name


def metrics_csv(history: Sequence[dict[str, Any]]) -> str:
    """All rows as CSV; a figure that an epoch lacks is empty."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
