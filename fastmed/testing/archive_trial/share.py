"""Shared work: parts that share nothing, and processes that share one output folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastmed.testing.archive_trial.command import run, start
from fastmed.testing.archive_trial.results import (
    differences,
    digests,
    folder_inodes,
    left_behind,
)

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class ShareTrial:
    """shares: results that each of those who worked has made. wrong: what must not be, by line."""

    shares: tuple[int, ...]
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        made = f"{' + '.join(map(str, self.shares))} results; {len(self.wrong)} things wrong"
        return "\n".join([made, *self.wrong[:20]])


def union_trial(
    arguments: Callable[[Path], list], folder: Path, expected: Path, *, parts: int
) -> ShareTrial:
    """Runs --part 1/n .. n/n into folders of their own: together they must be the unbroken run.

    arguments: of fastmed, for an output folder. expected: the output of an unbroken run.
    """
    whole = _of_series(digests(expected))
    union: dict[str, str] = {}
    shares, wrong = [], []
    for k in range(1, parts + 1):
        output = folder / f"part-{k}"
        run([*arguments(output), "--part", f"{k}/{parts}"], output)
        found = _of_series(digests(output))
        wrong += [f"part {k}: {path}: made twice" for path in sorted(found.keys() & union.keys())]
        wrong += [f"part {k}: {path}: left" for path in left_behind(output)]
        union |= found
        shares.append(len(_done(output)))
    named = [name for k in range(1, parts + 1) for name in _named(folder / f"part-{k}")]
    if sorted(named) != sorted(_named(expected)):
        wrong.append(
            f"{len(named)} series are named by parts, {len(_named(expected))} by the whole"
        )
    return ShareTrial(tuple(shares), (*wrong, *differences(whole, union)))


def together_trial(
    arguments: Callable[[Path], list], folder: Path, expected: Path, *, runs: int
) -> ShareTrial:
    """Starts `runs` commands on one output folder at once: they must end as the unbroken run.

    arguments, expected: as in `union_trial`. A result's attempts in the manifest, and a folder that
    another one takes the place of, show whether it was done twice.
    """
    output = folder / "together"
    first: dict[str, int] = {}
    twice: set[str] = set()
    started = [start(arguments(output), folder / f"together-{k}.log") for k in range(runs)]
    try:
        while any(one.process.poll() is None for one in started):
            for name, inode in folder_inodes(output).items():
                if first.setdefault(name, inode) != inode:
                    twice.add(f"{name}: written again")
            time.sleep(_POLL_SECONDS)
        for one in started:
            one.wait(output)
    finally:
        for one in started:
            one.kill()
    wrong = [*sorted(twice), *(f"{path}: left" for path in left_behind(output))]
    wrong += differences(digests(expected), digests(output))
    done = _done(output)
    wrong += [
        f"{series['name']}: tried {series['attempts']} times"
        for series in done
        if series.get("attempts", 1) != 1
    ]
    return ShareTrial((len(done),), tuple(wrong))


def _of_series(found: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in found.items() if path.startswith("series/")}


def _manifest(output: Path) -> list[dict]:
    return json.loads((output / "manifest.json").read_bytes())["series"]


def _named(output: Path) -> list[str]:
    return [series["name"] for series in _manifest(output)]


def _done(output: Path) -> list[dict]:
    return [series for series in _manifest(output) if series["verdict"] == "done"]
