"""The entries of an archive come one by one, whatever comes first."""

import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastmed.errors import FastmedError
from fastmed.inference import run_plan
from fastmed.inference.run_plan import Selection, _planned, entries_of
from fastmed.readers.series import Series
from fastmed.readers.walk import Found

SPEC = SimpleNamespace(modality="ct", spacing_mm_zyx=None)
ALL = Selection(frozenset(), None)


@pytest.fixture
def archive(monkeypatch):
    """Returns a function that takes verdicts; the list it gives says how many entries live."""

    def of(verdicts):
        alive, most = weakref.WeakSet(), [0]

        def iter_index(*_, **__):
            for number, verdict in enumerate(verdicts):
                kind = "localizer" if verdict == "skipped" else "ct"
                entry = Series(f"{number}", f"{number}", kind, verdict, "")
                alive.add(entry)
                most[0] = max(most[0], len(alive))
                yield entry

        monkeypatch.setattr(run_plan, "iter_index", iter_index)
        return most

    return of


def found(select=ALL):
    settings = SimpleNamespace(strict=True)
    return entries_of([Path("in")], Path("out"), SPEC, settings, select, store=None)


@pytest.mark.parametrize("verdicts", [["ok"], ["skipped", "ok", "skipped"], ["refused", "ok"]])
@pytest.mark.parametrize("select", [ALL, Selection(frozenset(), (1, 1))])
def test_every_entry_comes_once_in_order(archive, verdicts, select):
    archive(verdicts)
    assert [entry.verdict for entry, _ in found(select)] == verdicts


def test_entries_that_are_skipped_before_the_first_scan_are_not_kept(archive):
    most = archive(["skipped"] * 100 + ["ok"])
    assert sum(1 for _ in found()) == 101
    assert most[0] <= 3


def test_where_all_is_skipped_the_kinds_and_their_number_are_said(archive):
    archive(["skipped"] * 7)
    with pytest.raises(FastmedError, match=r"no CT series among 7 entries \(localizer\)"):
        found()


@pytest.mark.parametrize("shares", [1, 2, 7])
def test_every_series_is_of_one_share_and_its_volumes_are_of_the_same(shares):
    parts = [Selection(frozenset(), (number, shares)) for number in range(1, shares + 1)]
    for name in (f"1.2.{number}" for number in range(100)):
        volumes = [Series(one, one, "ct", "ok", "") for one in (name, f"{name}-2", f"{name}-3")]
        takers = [[part.takes(volume) for part in parts] for volume in volumes]
        assert takers[0].count(True) == 1
        assert takers[1] == takers[2] == takers[0]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"warnings": ("mended in another way",)}, (True, False)),
        ({"members": (Found("/in/1.dcm", "1.dcm", 1, "", 0, 0, "", ""),)}, (False, True)),
    ],
    ids=["what the index says", "the files"],
)
def test_a_key_names_what_the_index_says_of_a_series_and_a_stamp_its_files(change, changed):
    entry = Series("1.2", "a", "ct", "ok", "")
    one, two = (_planned(of, True, "results") for of in (entry, replace(entry, **change)))
    assert (one.key != two.key, one.stamp != two.stamp) == changed
