"""What a run takes: memory of all its processes, time, tiles, files opened and system calls."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

from fastmed.testing.archive_trial.command import start
from fastmed.testing.archive_trial.results import finished_names
from fastmed.testing.process_memory import session_memory_mb

_SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Measured:
    """One run over `series` series.

    peak_mb: of all its processes together (proportional set size); largest_mb: of the largest one.
    work_seconds: from its first result to its end. calls, opened: system calls, and how many of
    them open a file; None where strace is absent. tiles: that the network saw of each scan.
    """

    series: int
    seconds: float
    work_seconds: float
    peak_mb: float
    largest_mb: float
    calls: int | None
    opened: int | None
    tiles: Mapping[str, int] = field(default_factory=dict)


def measure(arguments: Sequence[object], output: Path, series: int) -> Measured:
    """Runs fastmed up to three times, each into a folder of its own beside `output`.

    The first run is timed and left alone, the second one's memory is sampled every 50 ms, and the
    third one goes under strace: what watches costs time, and is not to be measured with the rest.

    arguments: of fastmed without --output, which is added.
    """
    events = output.with_suffix(".jsonl")
    seconds, work = _timed([*arguments, "--output", output, "--log", events], output)
    sampled = output.with_name(f"{output.name}-sampled")
    peak, largest = _memory([*arguments, "--output", sampled], sampled)
    calls = opened = None
    if which("strace"):
        traced = output.with_name(f"{output.name}-traced")
        calls, opened = _system_calls([*arguments, "--output", traced], traced)
    return Measured(series, seconds, work, peak, largest, calls, opened, tiles_in(events))


def per_series(less: Measured, more: Measured) -> dict[str, float | None]:
    """What each further series takes between two runs: seconds, calls, files opened."""
    further = more.series - less.series

    def of(one, other):
        return None if one is None or other is None else (other - one) / further

    return {
        "seconds": of(less.seconds, more.seconds),
        "calls": of(less.calls, more.calls),
        "opened": of(less.opened, more.opened),
    }


def tiles_in(events: Path) -> dict[str, int]:
    """Tiles of each scan that a run's log has as done, by the scan's source."""
    lines = map(json.loads, events.read_text(encoding="utf-8").splitlines())
    return {line["source"]: line["tiles"] for line in lines if line["event"] == "scan done"}


def _timed(arguments: Sequence[object], output: Path) -> tuple[float, float]:
    begin, first = time.monotonic(), None
    started = start(arguments, output.with_suffix(".log"))
    try:
        while started.process.poll() is None:
            if first is None and finished_names(output):
                first = time.monotonic()
            time.sleep(_SAMPLE_SECONDS)
        started.wait(output)
    finally:
        started.kill()
    end = time.monotonic()
    return end - begin, end - (first or end)


def _memory(arguments: Sequence[object], output: Path) -> tuple[float, float]:
    peak = largest = 0.0
    started = start(arguments, output.with_suffix(".log"))
    try:
        while started.process.poll() is None:
            each = session_memory_mb(started.process.pid)
            peak, largest = max(peak, sum(each)), max([largest, *each])
            time.sleep(_SAMPLE_SECONDS)
        started.wait(output)
    finally:
        started.kill()
    return peak, largest


def _system_calls(arguments: Sequence[object], output: Path) -> tuple[int, int]:
    counts = output.with_suffix(".strace")
    before = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(counts)]
    started = start(arguments, output.with_suffix(".log"), before=before)
    try:
        started.wait(output)
    finally:
        started.kill()
    rows = re.findall(r"^\s*(\d+)\s+(\w+)\s*$", counts.read_text(), re.MULTILINE)
    calls = {name: int(number) for number, name in rows if name != "total"}
    return sum(calls.values()), sum(calls.get(name, 0) for name in ("open", "openat", "openat2"))
