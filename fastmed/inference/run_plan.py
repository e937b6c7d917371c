"""The plan of a run: which entries of the index it wants, and what is to be made of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError, UsageError
from fastmed.inference.journal import Journal
from fastmed.inference.journal_units import Planned
from fastmed.inference.owners import living
from fastmed.inference.recovery import recover, remove_temporary_files
from fastmed.inference.run_settings import RunSettings, digest
from fastmed.inference.series_folder import is_whole
from fastmed.readers.index import Series, iter_index
from fastmed.readers.index_store import IndexStore
from fastmed.readers.series_json import series_dict
from fastmed.spec import Spec
from fastmed.volume import NO_SPACING
from fastmed.writers.report import ReportRow


@dataclass(frozen=True)
class Selection:
    """Which series of an archive a run takes: those named (all, if none), of one share of n."""

    names: frozenset[str]
    share: tuple[int, int] | None

    def takes(self, entry: Series) -> bool:
        """Whether a run takes this entry; a UID also stands for the volumes split from a series,
        which are always of one share."""
        series = _series_of(entry)
        if self.names and not {entry.name, series} & self.names:
            return False
        if self.share is None:
            return True
        number, shares = self.share
        return int(digest(series), 16) % shares == number - 1


def share_of(part: str) -> tuple[int, int] | None:
    """(i, n) of "i/n"; None where all series are wanted. Raises UsageError for what is no share."""
    if not part:
        return None
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--part {part}: expected i/n with i from 1 to n, such as 2/8")
    return int(found[1]), int(found[2])


def entries_of(
    inputs: list[Path],
    target: Path,
    spec: Spec,
    settings: RunSettings,
    select: Selection,
    store: IndexStore,
) -> Iterator[tuple[Series, bool]]:
    """The entries of the index one by one, each with whether the run takes it.

    Before the first one comes, it is known that there is something to do. Raises UsageError for a
    named series that is not there, FastmedError where there is no scan at all.
    """

    def index() -> Iterator[Series]:
        found = iter_index(
            inputs, strict=settings.strict, exclude=[target], modality=spec.modality, store=store
        )
        return (_suited(entry, spec) for entry in found)

    if select.names:
        known = {name for entry in index() for name in (entry.name, _series_of(entry))}
        if missing := select.names - known:
            raise UsageError(f"--series {', '.join(sorted(missing))}: not among the series found")
    entries, skipped = index(), Counter()
    for entry in entries:
        if entry.verdict != "skipped" or select.share is not None:
            break
        skipped[entry.kind] += 1
    else:
        _complain_of_no_scans(skipped, inputs, spec)
    if skipped:  # not kept: from the store they come again
        entries.close()
        return _with_choice(index(), select)
    return _with_choice(chain([entry], entries), select)


def _with_choice(entries: Iterable[Series], select: Selection) -> Iterator[tuple[Series, bool]]:
    for entry in entries:
        yield entry, select.takes(entry)


def asked_for(settings: RunSettings, facts: dict[str, Any]) -> str:
    """Names all that a run was asked for; only who was asked for the same may share its folder."""
    return digest([settings.results_key(facts), settings.strict, settings.asked_for])


def plan(
    journal: Journal,
    settings: RunSettings,
    facts: dict[str, Any],
    entries: Iterable[tuple[Series, bool]],
    own: str,
    *,
    fresh: bool,
) -> None:
    """Clears up after the dead, then writes what is to be done into the journal.

    entries: as `entries_of` returns them. own: the token of this process, whose note is what it
    was asked for. Raises UsageError where a process at work in the folder was asked for else.
    """
    others = living(journal.folder)
    mine = others.pop(own)
    if any(note not in ("", mine) for note in others.values()):
        raise UsageError(
            f"--output {settings.output}: another process is at work there with another model, "
            "other settings or other scans; wait for it, or name another folder"
        )
    recover(journal)
    remove_temporary_files(journal, own)
    journal.set_fact("model", facts)
    series_folder = settings.output_path / "series"
    results = settings.results_key(facts)
    journal.plan(
        (_planned(entry, is_wanted, results) for entry, is_wanted in entries),
        fresh=fresh,
        is_there=lambda unit: is_whole(series_folder / unit.name, unit.files),
    )


def row_of(entry: Series) -> ReportRow:
    """The row of an entry that is not done."""
    return ReportRow(
        name=entry.name,
        source=entry.source,
        verdict=entry.verdict,
        reason=entry.reason,
        warnings=entry.warnings,
    )


def _planned(entry: Series, is_wanted: bool, results: str) -> Planned:
    """What a run wants of an entry: its key names the model, the settings, and what the index says
    of the series; its stamp names the files."""
    plain = series_dict(entry)
    members = plain.pop("members")
    return Planned(
        name=entry.name,
        source=entry.source,
        verdict=entry.verdict,
        reason=entry.reason,
        warnings=entry.warnings,
        entry=plain | {"members": members},
        results=results,
        key=digest([results, plain]),
        stamp=digest(members),
        is_wanted=is_wanted,
    )


def _suited(entry: Series, spec: Spec) -> Series:
    """The entry, refused where it lacks what this model needs and can be read for others."""
    needs_mm = spec.modality == "ct" and spec.spacing_mm_zyx is not None
    if entry.verdict == "ok" and needs_mm and not entry.spacing_is_known:
        return replace(entry, verdict="refused", reason=NO_SPACING, warnings=())
    return entry


def _complain_of_no_scans(skipped: Counter[str], inputs: list[Path], spec: Spec) -> None:
    """skipped: how many entries there are of each kind."""
    where = ", ".join(str(path) for path in inputs)
    if not skipped:
        wanted = "CT scans" if spec.modality == "ct" else "grey images"
        raise FastmedError(f"{where}: no files here; name a folder of {wanted} with --input")
    wanted = "CT series" if spec.modality == "ct" else "grey image"
    raise FastmedError(
        f"{where}: no {wanted} among {skipped.total()} entries ({', '.join(sorted(skipped))}); "
        "fastmed index says more"
    )


def _series_of(entry: Series) -> str:
    """The name without the number of a volume that was split from its series."""
    return re.sub(r"-\d+$", "", entry.name)
