"""Progress of an archive run: scans done and failed, rate, time left, and the slowest stage."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_SECONDS_BETWEEN_LINES = 10.0
_WIDTH_OF_A_LOG = 240
_RATE_WINDOW_S = 600.0  # long enough for slow scans, short enough to follow a change


class RunProgress:
    """One line that follows a run; call `update` about four times a second.

    total: scans to do. On a terminal it is a live bar; elsewhere a plain line at most every ten
    seconds, and where `quiet` nothing. What failed is said at once, in a line of its own, by `say`.
    already_done: scans of `total` that an earlier run has done: they count, and have no rate.
    console: stderr where None. clock: seconds that never run backwards.

    Use it as a context manager.
    """

    def __init__(
        self,
        total: int,
        *,
        console: Console | None = None,
        quiet: bool = False,
        already_done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if console is None:
            width = None if sys.stderr.isatty() else _WIDTH_OF_A_LOG
            console = Console(file=sys.stderr, width=width)
        self._total, self._quiet, self._console, self._clock = total, quiet, console, clock
        self._live = console.is_terminal and not quiet
        self._bar = Progress(
            TextColumn("scans"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=total)
        self._already_done = already_done
        self._said_at = clock()
        self._ended: deque[tuple[float, int]] = deque([(clock(), already_done)])

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def say(self, sentence: str) -> None:
        """Prints a line above the bar, such as why a scan failed; where `quiet`, nothing."""
        if not self._quiet:
            self._console.print(_shown(sentence), highlight=False, soft_wrap=True)

    def update(
        self,
        *,
        done: int,
        failed: int = 0,
        skipped: int = 0,
        stage_seconds: Mapping[str, float] | None = None,
        current: str = "",
    ) -> None:
        """Shows where the run is.

        done, failed, skipped: scans so far, each counted once; done includes `already_done`.
        stage_seconds: seconds that each stage was at work so far, over all scans and workers.
        current: the scan at work, shown on a terminal alone.
        """
        now, ended = self._clock(), done + failed + skipped
        if ended != self._ended[-1][1]:
            self._ended.append((now, ended))
        while len(self._ended) > 2 and self._ended[1][0] < now - _RATE_WINDOW_S:
            self._ended.popleft()
        if self._live:
            words = self._words(now, ended, failed, skipped, stage_seconds)
            if current:
                words = f"{words} · {_shown(_short(current))}"
            self._bar.update(self._task, completed=ended, description=words, refresh=True)
        elif not self._quiet and now - self._said_at >= _SECONDS_BETWEEN_LINES:
            self._said_at = now
            words = self._words(now, ended, failed, skipped, stage_seconds)
            line = f"{ended} of {self._total} scans · {words}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _words(self, now, ended, failed, skipped, stage_seconds) -> str:
        words = [f"{failed} failed"]
        if skipped:
            words.append(f"{skipped} skipped")
        if rate := self._per_second(now, ended):
            left = max(0, self._total - ended) / rate
            words += [f"{3600 * rate:.0f} scans/h", f"{_duration(left)} left"]
        if slowest := _slowest(stage_seconds or {}):
            words.append(slowest)
        return " · ".join(words)

    def _per_second(self, now: float, ended: int) -> float:
        """Scans per second over the last ten minutes; 0 before the first scan has ended."""
        at, before = self._ended[0]
        return (ended - before) / (now - at) if ended > before and now > at else 0.0


def _slowest(stage_seconds: Mapping[str, float]) -> str:
    """The stage that was at work the longest, with its share of all: network 91 %."""
    total = sum(stage_seconds.values())
    if total <= 0:
        return ""
    stage = max(stage_seconds, key=lambda name: stage_seconds[name])
    return f"{stage} {100 * stage_seconds[stage] / total:.0f} %"


def _duration(seconds: float) -> str:
    """42 s, 7 min, 3 h 05 min, 2 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def _short(text: str, longest: int = 40) -> str:
    return text if len(text) <= longest else "…" + text[-(longest - 1) :]


def _shown(text: str) -> str:
    """A text from files or headers, unable to steer the terminal."""
    return escape("".join(c if c.isprintable() else "?" for c in text))
