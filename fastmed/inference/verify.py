"""Verify: whether a run's results, bundle and inputs are still those of its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastmed import bundle as bundles
from fastmed.errors import FastmedError, SeriesError
from fastmed.inference.content import content_sha256
from fastmed.inference.display import Display, tracked
from fastmed.inference.journal import FILE, Journal
from fastmed.inference.series_folder import differences
from fastmed.readers.reread import opened
from fastmed.readers.series_json import series_from_dict
from fastmed.readers.walk import MANIFEST


@dataclass(frozen=True)
class Verified:
    """What a check of a run's folder found.

    results, inputs: how many series were compared. problems: one sentence each; empty where every
    hash is as it was. gone: inputs that are no longer in their place, which is no problem.
    """

    results: int
    inputs: int
    problems: tuple[str, ...]
    gone: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        return int(bool(self.problems))


def verify(output: str | Path, *, quiet: bool = False) -> Verified:
    """Compares a run's folder with the hashes in its manifest.json.

    Every file of every series' results, the bundle, and the inputs that are still where they were.

    output: the run's folder. Raises FastmedError where it holds no manifest.
    """
    output, display = Path(output), Display(quiet)
    facts = _manifest(output)
    problems = list(_bundle_problems(facts))
    done = [series for series in facts["series"] if series["verdict"] == "done"]
    inputs, gone = 0, []
    with Journal(output) as journal:
        for series in tracked(done, "verify", quiet):
            name = series["name"]
            folder = output / "series" / name
            problems += [f"series/{name}/{what}" for what in differences(folder, series["files"])]
            unit = journal.unit(name)
            if unit is None:
                problems.append(f"{name}: is not in {FILE}")
                continue
            try:
                found = _content(unit.entry)
            except FileNotFoundError:
                gone.append(series["source"])
                continue
            except (OSError, SeriesError) as error:
                problems.append(f"input {series['source']}: {error}")
                continue
            inputs += 1
            if found != series["input_sha256"]:
                problems.append(f"input {series['source']}: its content has changed since")
    listed = {series["name"] for series in done}
    there = {path.name for path in (output / "series").iterdir() if path.name[0] != "."}
    problems += [f"series/{name}: is not in {MANIFEST}" for name in sorted(there - listed)]
    for problem in problems:
        display.complain(problem)
    if gone:
        display.say(f"{len(gone)} inputs are no longer in their place: {', '.join(gone[:3])}")
    display.say(
        f"{len(done)} results and {inputs} inputs compared: "
        + (f"{len(problems)} differ" if problems else "all as they were")
    )
    return Verified(len(done), inputs, tuple(problems), tuple(gone))


def _manifest(output: Path) -> dict:
    try:
        facts = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        facts["series"], facts["model"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FastmedError(
            f"{output}: holds no {MANIFEST} of a run that can be read; name the --output of one"
        ) from error
    return facts


def _bundle_problems(facts: dict) -> Iterator[str]:
    path = Path(facts["bundle"])
    if not path.is_dir():
        yield f"bundle {path}: is no longer there"
        return
    now = bundles.read(path).sha256()
    for name, sha256 in facts["model"]["sha256"].items():
        if now.get(name) != sha256:
            yield f"bundle {path}: {name} has changed since"


def _content(plain: dict) -> str:
    entry = series_from_dict(plain)
    for member in entry.members:
        if not Path(member.path).exists():
            raise FileNotFoundError(member.path)
    with opened(entry) as there:
        return content_sha256(there)
