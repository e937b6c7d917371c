"""The journal: what becomes of a unit when a run is planned, and whose word on it counts."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fastmed.errors import FastmedError
from fastmed.inference.journal import DiskFull, Journal
from fastmed.inference.journal_units import Planned

SEVERAL = 5000  # units, more than the pages that a full disk still has


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path) as journal:
        yield journal


def unit(name="a", *, key="key", stamp="stamp", results="results", verdict="ok", is_wanted=True):
    return Planned(name, name, verdict, "", (), {}, results, key, stamp, is_wanted)


def plan(journal, *units, fresh=False, is_there=True):
    journal.plan(units, fresh=fresh, is_there=lambda _: is_there)


def make(journal, owner="me"):
    """Does the next unit, as a pipeline does."""
    name = journal.claim(owner, "results", alone=True).name
    assert journal.written(name, owner, content="hash", files={}, row={}, seconds={})
    assert journal.done(name, owner)


@pytest.mark.parametrize(
    ("again", "state"),
    [
        ({}, "done"),
        ({"key": "another model, or other settings"}, "waiting"),
        ({"stamp": "other files"}, "waiting"),
        ({"fresh": True}, "waiting"),
        ({"is_there": False}, "waiting"),
        ({"verdict": "refused"}, "refused"),
        ({"is_wanted": False, "stamp": "other files"}, "done"),
    ],
    ids=str,
)
def test_what_is_done_is_done_again_where_something_changed(journal, again, state):
    plan(journal, unit())
    make(journal)
    how = {name: again.pop(name) for name in ("fresh", "is_there") if name in again}
    plan(journal, unit(**again), **how)
    assert journal.unit("a").state == state


def test_a_change_that_was_planned_and_not_done_is_still_one(journal):
    plan(journal, unit())
    make(journal)
    for change in ({"stamp": "other files"}, {"key": "another model"}):
        plan(journal, unit(is_wanted=False, **change))
        plan(journal, unit(**change))
        assert journal.unit("a").state == "waiting", change
        make(journal)


@pytest.mark.parametrize(
    ("again", "has_finished", "state"),
    [
        ({}, False, "failed"),
        ({}, True, "waiting"),
        ({"fresh": True}, False, "waiting"),
        ({"stamp": "other files"}, False, "waiting"),
        ({"key": "another model"}, False, "waiting"),
    ],
    ids=str,
)
def test_what_was_set_aside_gets_new_attempts_for_a_reason(journal, again, has_finished, state):
    plan(journal, unit())
    journal.claim("me", "results", alone=True)
    journal.failed("a", "me", "why", attempts=1, alone=True)
    journal.set_fact("finished", has_finished)
    how = {"fresh": again.pop("fresh")} if "fresh" in again else {}
    plan(journal, unit(**again), **how)
    now = journal.unit("a")
    attempts = {"failed": (1, "why", True), "waiting": (0, "", False)}[state]
    assert (now.state, (now.attempts, now.failure, now.alone)) == (state, attempts)


@pytest.mark.parametrize("state", ["running", "written"])
def test_what_is_in_hand_stays_there_when_others_plan(journal, state):
    plan(journal, unit())
    journal.claim("me", "results", alone=True)
    if state == "written":
        journal.written("a", "me", content="", files={}, row={}, seconds={})
    plan(journal, unit(), fresh=True)
    assert (journal.unit("a").state, journal.unit("a").owner) == (state, "me")


SAID = {
    "written": lambda journal, who: journal.written(
        "a", who, content="theirs", files={}, row={}, seconds={}
    ),
    "done": lambda journal, who: journal.done("a", who),
    "failed": lambda journal, who: journal.failed("a", who, "why", attempts=1) is not None,
    "wait again": lambda journal, who: journal.wait_again("a", who, alone=True),
}


@pytest.mark.parametrize("say", SAID.values(), ids=SAID)
def test_only_its_owner_can_say_what_becomes_of_a_unit(journal, say):
    plan(journal, unit())
    journal.claim("me", "results", alone=True)
    before = journal.unit("a")
    assert not say(journal, "another")
    assert journal.unit("a") == before
    assert say(journal, "me")


def test_who_lets_go_lets_go_of_its_own_and_of_what_is_not_written(journal):
    plan(journal, unit("a"), unit("b"), unit("c"))
    for owner in ("me", "me", "another"):
        journal.claim(owner, "results", alone=True)
    journal.written("b", "me", content="", files={}, row={}, seconds={})
    journal.release("me")
    states = {one.name: (one.state, one.owner) for one in journal.listed()}
    assert states == {"a": ("waiting", None), "b": ("written", "me"), "c": ("running", "another")}


def test_units_come_in_the_order_of_the_index_those_that_failed_last(journal):
    plan(journal, unit("b"), unit("a"), unit("c"))
    assert journal.failed(journal.claim("me", "results", alone=True).name, "me", "", attempts=2)
    names = [journal.claim("me", "results", alone=True).name for _ in range(3)]
    assert names == ["a", "c", "b"]


def test_a_unit_that_is_to_run_alone_comes_last_and_to_who_has_nothing_else(journal):
    plan(journal, unit("a"), unit("b"))
    assert journal.claim("me", "results", alone=True).name == "a"
    assert journal.wait_again("a", "me", alone=True)
    assert journal.claim("me", "results", alone=True).name == "b"
    assert journal.claim("another", "results", alone=False) is None
    assert journal.claim("another", "results", alone=True).name == "a"


@pytest.mark.parametrize(
    "other",
    [{"results": "of another model"}, {"is_wanted": False}, {"verdict": "refused"}],
    ids=str,
)
def test_a_unit_that_is_not_for_this_run_is_not_taken(journal, other):
    plan(journal, unit())
    make(journal)
    plan(journal, unit(key="new"))
    plan(journal, unit(**{"key": "new"} | other))
    assert journal.claim("me", "results", alone=True) is None


def test_units_are_listed_in_the_order_of_the_index_whatever_was_done_first(journal):
    plan(journal, *(unit(name) for name in "dacb"))
    for name in "bcad":
        journal._set(name, state="done", finished=ord(name))
    plan(journal, *(unit(name) for name in "dcb"))
    assert [one.name for one in journal.listed()] == ["d", "c", "b"]


def test_a_full_disk_is_told_from_a_damaged_journal(journal):
    pages = journal._one("PRAGMA page_count")[0]
    journal._one(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(DiskFull, match=r"journal\.sqlite: .* no space left on device; free some"):
        plan(journal, *(unit(str(number)) for number in range(SEVERAL)))


def test_a_journal_of_another_version_is_refused(tmp_path, journal):
    journal._one("PRAGMA user_version = 7")
    with pytest.raises(FastmedError, match="of another version of fastmed; name another --output"):
        Journal(tmp_path)


def test_the_questions_of_the_guide_can_be_asked(journal):
    guide = (Path(__file__).parents[2] / "docs" / "archive.md").read_text("utf-8")
    questions = re.findall(r'sqlite3 out/journal\.sqlite "(.*?)"', guide, re.DOTALL)
    plan(journal, unit("a"), unit("b"), unit("c", verdict="refused"))
    make(journal)
    journal.failed(journal.claim("me", "results", alone=True).name, "me", "why", attempts=1)
    with closing(sqlite3.connect(journal.path)) as database:
        answers = [database.execute(q.replace("\\\n", " ")).fetchall() for q in questions]
    assert [sorted(answer) for answer in answers] == [
        [("done", 1), ("failed", 1), ("refused", 1)], [("b", 1, "why")], [("", 1)], [("a", None)],
    ]  # fmt: skip
