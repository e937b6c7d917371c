"""Kills: a run that is killed at random moments must end as one that was left in peace."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastmed.testing.archive_trial.command import start
from fastmed.testing.archive_trial.results import (
    differences,
    digests,
    finished_names,
    left_behind,
    stamps,
)

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class KillTrial:
    """What came of it.

    kills: how many times a run was killed; finishes: how many runs were let finish, each compared.
    working: kills that fell after the first result and before the last one.
    rewritten: results that were complete, and were written again; left, different: files.
    """

    kills: int
    finishes: int
    working: int
    rewritten: tuple[str, ...]
    left: tuple[str, ...]
    different: tuple[str, ...]
    unbroken_seconds: float

    @property
    def is_clean(self) -> bool:
        return not (self.rewritten or self.left or self.different)

    def __str__(self) -> str:
        lines = [
            f"{self.kills} kills ({self.working} amid the work), {self.finishes} runs finished; "
            f"unbroken run {self.unbroken_seconds:.1f} s",
            f"{len(self.different)} files differ, {len(self.left)} temporary files are left, "
            f"{len(self.rewritten)} complete results were written again",
        ]
        return "\n".join([*lines, *(self.different + self.left + self.rewritten)[:20]])


def kill_trial(
    arguments: Callable[[Path], list],
    folder: Path,
    *,
    kills: int,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> KillTrial:
    """Runs once unbroken, then again with SIGKILL to the whole process group until `kills` fell.

    arguments: of fastmed, for an output folder. folder: an empty one, for outputs and logs.

    Each run is killed at a moment uniform between its start and what the kills, spread over the
    work of the unbroken run, leave of it; so they fall anywhere, from start-up to the last tables.
    A run that ends before its moment is compared, and the next one begins in a new folder.
    """
    unbroken = folder / "unbroken"
    started_up, seconds = _time(arguments(unbroken), unbroken, folder / "unbroken.log")
    expected = digests(unbroken)
    total = len(stamps(unbroken))
    rng = random.Random(seed)
    reach = _reach(started_up, seconds - started_up, kills)
    say(f"unbroken: {seconds:.1f} s, first result after {started_up:.1f} s, {total} results")

    killed = finishes = working = 0
    rewritten, left, different = [], [], []
    number, seen, is_open = 1, {}, False
    while killed < kills or is_open:
        output = folder / f"killed-{number}"
        moment = rng.uniform(0, reach) if killed < kills else None
        started = start(arguments(output), folder / f"killed-{number}.log")
        try:
            started.process.wait(moment)
            is_finished = True
            started.wait(output)
        except subprocess.TimeoutExpired:
            is_finished = False
        finally:
            started.kill()
        now = stamps(output)
        rewritten += [f"{output.name}: {name}" for name in seen if now.get(name) != seen[name]]
        seen = now
        if is_finished:
            finishes += 1
            left += [f"{output.name}: {path}" for path in left_behind(output)]
            different += [
                f"{output.name}: {line}" for line in differences(expected, digests(output))
            ]
            say(f"run {number} finished after {killed} kills")
            number, seen, is_open = number + 1, {}, False
        else:
            killed, is_open = killed + 1, True
            working += 0 < len(now) < total
            say(f"kill {killed} after {moment:.2f} s: {len(now)} of {total} results")
    return KillTrial(
        killed,
        finishes,
        working,
        tuple(rewritten),
        tuple(left),
        tuple(different),
        seconds,
    )


def _time(arguments: list, output: Path, log: Path) -> tuple[float, float]:
    """Seconds until a run's first result, and until its end."""
    begin, first = time.monotonic(), None
    started = start(arguments, log)
    try:
        while started.process.poll() is None:
            if first is None and finished_names(output):
                first = time.monotonic() - begin
            time.sleep(_POLL_SECONDS)
        started.wait(output)
    finally:
        started.kill()
    seconds = time.monotonic() - begin
    return first if first is not None else seconds, seconds


def _reach(start_seconds: float, work_seconds: float, kills: int) -> float:
    """The latest moment of a kill, so that `kills` runs together do about the work once.

    A moment uniform in 0 .. s + w leaves w^2 / (2 (s + w)) of work on average.
    """
    share = max(work_seconds, 0.1) / kills
    return start_seconds + share + (share**2 + 2 * share * start_seconds) ** 0.5
