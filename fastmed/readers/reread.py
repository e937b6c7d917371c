"""Reread: an entry that a record gave back, made whole from its files before it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from fastmed.errors import SeriesError
from fastmed.readers.judge import facts_of, judge_facts
from fastmed.readers.packed import unpacked
from fastmed.readers.series import Series


@contextmanager
def opened(series: Series) -> Iterator[Series]:
    """The entry with what its voxel reader needs, whatever the entry came from.

    Members of a packed archive lie unpacked in a temporary folder until the end.

    Raises SeriesError where its files are no longer what was judged.
    """
    if series.stored is not None:
        yield series
        return
    with unpacked(series.members) as members:
        yield reread(replace(series, members=tuple(members)))


def reread(series: Series) -> Series:
    """Looks at the files of an entry whose verdict is "ok" again; returns it with `stored`.

    Raises SeriesError where the files make another volume than the one that was judged.
    """
    modality = "grey" if series.kind == "grey image" else "ct"
    facts = list(facts_of(series.members, modality))
    for strict in (True, False):
        now = judge_facts(facts, strict=strict, modality=modality)
        for entry in now:
            if _agree(entry, series):
                return replace(series, stored=entry.stored)
    reasons = "; ".join(f"{entry.verdict}: {entry.reason}" for entry in now[:3])
    raise SeriesError(
        f"{series.source}: changed since it was indexed (then {series.reason}; now {reasons}); "
        "index it again"
    )


def _agree(now: Series, then: Series) -> bool:
    """Whether files make the volume that was judged, and nothing is mended that was not before.

    A part of a series that was split has warnings that its own files alone do not bring forth.
    """
    return (
        now.verdict == then.verdict == "ok"
        and (now.kind, now.format, now.reason) == (then.kind, then.format, then.reason)
        and now.geometry == then.geometry
        and set(now.warnings) <= set(then.warnings)
    )
