"""Verify: whether a run's results, bundle and inputs are still those of its manifest."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastmed import bundle as bundles
from fastmed.errors import FastmedError, SeriesError
from fastmed.inference.content import content_sha256
from fastmed.inference.display import Display, tracked
from fastmed.inference.journal import FILE
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
    if not facts.get("finished"):
        problems.append("the run has not finished; the same command goes on")
    done = [series for series in facts["series"] if series["verdict"] == "done"]
    inputs, gone = 0, []
    with _read_only(output / FILE) as journal:
        for series in tracked(done, "verify", quiet):
            problems += _differences(output, series)
            try:
                is_same = _content(_entry(journal, series["name"])) == series["input_sha256"]
            except FileNotFoundError:
                gone.append(series["source"])
                continue
            except sqlite3.Error as error:
                problems.append(f"{FILE}: says nothing of {series['name']} ({error})")
                continue
            except (OSError, SeriesError) as error:
                problems.append(f"input {series['source']}: {error}")
                continue
            inputs += 1
            if not is_same:
                problems.append(f"input {series['source']}: its content has changed since")
    problems += _left_over(output / "series", facts)
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
    try:
        now = bundles.read(path).sha256()
    except (FastmedError, OSError) as error:
        yield str(error)
        return
    for name, sha256 in facts["model"]["sha256"].items():
        if now.get(name) != sha256:
            yield f"bundle {path}: {name} has changed since"


def _differences(output: Path, series: dict) -> list[str]:
    """How a series' folder differs from its entry in the manifest."""
    folder = output / "series" / series["name"]
    try:
        return [f"series/{series['name']}/{what}" for what in differences(folder, series["files"])]
    except OSError as error:
        path = Path(error.filename or folder).relative_to(output).as_posix()
        return [f"{path}: cannot be read ({error.strerror or error})"]


def _left_over(folder: Path, facts: dict) -> Iterator[str]:
    """The folders that no result in the manifest stands for; an unfinished run lists few."""
    if not folder.is_dir() or not (facts["series"] or facts.get("finished")):
        return
    others = {series["name"]: series for series in facts["series"]}
    for name in sorted(path.name for path in folder.iterdir() if path.name[0] != "."):
        series = others.get(name)
        if series is None:
            yield f"series/{name}: is not in {MANIFEST}"
        elif series["verdict"] != "done":
            now = f"{series['verdict']}: {series['reason']}"
            yield f"series/{name}: an earlier result of other input; its series is now {now}"


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens a run's journal so that nothing is written beside it, as where no disk lets one.

    Where it has no write-ahead log, nobody is at work with it, and it needs no lock.
    """
    alone = "" if Path(f"{path}-wal").exists() else "&immutable=1"
    uri = f"{path.absolute().as_uri()}?mode=ro{alone}"
    try:
        database = sqlite3.connect(uri, uri=True)
    except sqlite3.Error:  # each question for an entry says that none is there
        database = sqlite3.connect(":memory:")
    with closing(database):
        yield database


def _entry(journal: sqlite3.Connection, name: str) -> dict:
    """The entry of the index that a result was made from; sqlite3.Error where it cannot be had."""
    row = journal.execute("SELECT entry FROM units WHERE name = ?", [_bound(name)]).fetchone()
    if row is None:
        raise sqlite3.DataError("no such unit")
    try:
        return json.loads(zlib.decompress(row[0]))
    except (zlib.error, ValueError, TypeError) as error:
        raise sqlite3.DataError(str(error)) from error


def _bound(name: str) -> str | bytes:
    """A name as the journal has it: one of undecodable bytes is no text there."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape")
    return name


def _content(plain: dict) -> str:
    entry = series_from_dict(plain)
    for member in entry.members:
        if not Path(member.path).exists():
            raise FileNotFoundError(member.path)
    with opened(entry) as there:
        return content_sha256(there)
