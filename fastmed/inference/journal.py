"""The journal of an archive run: every series with its state, in SQLite beside the results.

A unit is one entry of the index: what is to be made of it is named by its key (model, settings,
what the index says of it), what it is made from by the stamp of its files and the hash of their
content. Units wait, are running, are written (complete, but not yet under their name), done, or
failed; what the index refused, skipped or failed stands beside them. Every change is one
transaction: a process that is killed at any moment leaves a state that the next one understands.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError
from fastmed.inference.journal_units import COLUMNS, SCHEMA, Planned, Unit, bound, text_of, unit_of
from fastmed.inference.owners import is_alive

FILE = "journal.sqlite"
_VERSION = 1
_WAIT_SECONDS = 120.0  # for another process that writes
_AT_ONCE = 256  # units that are planned in one transaction


class Journal:
    """The record of the runs into one output folder; any number of threads and processes use it."""

    def __init__(self, folder: Path) -> None:
        """Opens, or makes, the journal of a folder. Raises FastmedError where it is damaged."""
        self.folder = folder
        self.path = folder / FILE
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._write_ahead()
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._transaction():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version={_VERSION}")
        except sqlite3.DatabaseError as error:
            raise _said(error, self.path) from error
        if version not in (0, _VERSION):
            raise FastmedError(f"{self.path}: of another version of fastmed; name another --output")

    def _write_ahead(self) -> None:
        """Has SQLite write ahead; where another process does so right now, it does not wait."""
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def fact(self, name: str) -> Any:
        """A fact of the run by its name; None where it is not there."""
        row = self._one("SELECT value FROM facts WHERE name = ?", name)
        return json.loads(row[0]) if row else None

    def set_fact(self, name: str, value: Any) -> None:
        self._do("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, json.dumps(value))

    def plan(
        self, entries: Iterable[Planned], *, fresh: bool, is_there: Callable[[Unit], bool]
    ) -> None:
        """Takes the entries of an index: what is done already stays, what changed waits anew.

        Others may go on working meanwhile; what is listed and wanted changes at the end, at once.

        fresh: everything wanted waits anew; results stay until they are replaced.
        is_there: whether the files of a unit's result are still in their place.
        """
        again = bool(self.fact("finished"))  # failed units get another chance
        number = (self._one("SELECT max(plan) FROM units")[0] or 0) + 1
        entries, place = iter(entries), 0
        while some := [(p, _packed(p)) for p in islice(entries, _AT_ONCE)]:
            with self._transaction():
                for planned, packed in some:
                    self._plan_one(number, place, planned, packed, fresh, again, is_there)
                    place += 1
        with self._transaction():
            self._execute("UPDATE units SET listed = plan = ?, wanted = plan = ? AND asked", number,
                          number)  # fmt: skip
            self.set_fact("finished", False)

    def _plan_one(
        self, number: int, place: int, planned: Planned, packed: bytes, fresh, again, is_there
    ) -> None:
        unit = self._unit("name = ?", planned.name)
        if unit is None and not planned.is_wanted:
            return
        if not planned.is_wanted:
            state = unit.state
        elif planned.verdict != "ok":
            state = planned.verdict
        else:
            state = _next_state(unit, planned, fresh, again, is_there)
        columns = {
            "name": planned.name,
            "place": place,
            "plan": number,
            "asked": planned.is_wanted,
            "source": planned.source,
            "verdict": planned.verdict,
            "reason": planned.reason,
            "warnings": json.dumps(planned.warnings),
            "entry": packed,
            "results": planned.results,
            "key": planned.key,
            "stamp": planned.stamp,
            "state": state,
        }
        if unit is None:
            columns |= {"listed": False, "wanted": False}
            marks = ", ".join("?" * len(columns))
            insert = f"INSERT INTO units ({', '.join(columns)}) VALUES ({marks})"
            self._execute(insert, *columns.values())
            return
        if state == "waiting" and (unit.state != "waiting" or again):
            columns |= {"attempts": 0, "alone": False, "failure": ""}
        if state == "waiting" and fresh:
            columns["made_key"] = ""
        self._set(planned.name, **columns)

    def claim(self, owner: str, results: str, *, alone: bool) -> Unit | None:
        """Takes the next unit that waits; None where there is none.

        results: what the one who asks can make. alone: whether nothing runs beside it there; units
        that must run so come after all others.
        """
        for only in (False, True) if alone else (False,):
            with self._transaction():
                unit = self._unit(
                    "state = 'waiting' AND wanted AND alone = ? AND results = ?"
                    " ORDER BY attempts, place LIMIT 1",
                    only,
                    results,
                )
                if unit is not None:
                    claimed = {"claimed_key": unit.key, "claimed_stamp": unit.stamp}
                    self._set(unit.name, state="running", owner=owner, **claimed)
                    return unit
        return None

    def written(
        self, name: str, owner: str, *, content: str, files: dict, row: dict, seconds: dict
    ) -> bool:
        """The result lies complete beside its place: from here on the unit cannot be lost.

        Returns False, as all below do, where the unit is not this owner's any more.
        """
        return self._change(
            name,
            owner,
            state="written",
            made_key="",
            content=content,
            files=json.dumps(files),
            row=json.dumps(row),
            seconds=json.dumps(seconds),
        )

    def done(self, name: str, owner: str) -> bool:
        """The result is in its place. What was planned anew meanwhile waits again."""
        statement = """UPDATE units SET
            state = iif(key = claimed_key AND stamp = claimed_stamp, 'done', 'waiting'),
            made_key = claimed_key, made_stamp = claimed_stamp, owner = NULL, alone = 0,
            failure = '', finished = ? WHERE name = ? AND owner = ?"""
        with self._lock:
            return self._execute(statement, time.time(), name, owner).rowcount > 0

    def failed(
        self, name: str, owner: str, reason: str, *, attempts: int, alone: bool = False
    ) -> bool | None:
        """Counts a failed attempt; returns whether the unit waits for another one.

        attempts: after so many it is set aside with this reason. alone: the next runs by itself.
        None: the unit is not this owner's any more.
        """
        with self._transaction():
            so_far = self._one("SELECT attempts FROM units WHERE name = ?", name)[0] + 1
            again = so_far < attempts
            changed = self._change(
                name,
                owner,
                state="waiting" if again else "failed",
                owner=None,
                attempts=so_far,
                failure=reason,
                alone=alone,
            )
        return again if changed else None

    def wait_again(self, name: str, owner: str, *, alone: bool | None = None) -> bool:
        """What an owner had in hand waits again; alone: it is to run with nothing beside it."""
        more = {} if alone is None else {"alone": alone}
        return self._change(name, owner, state="waiting", owner=None, **more)

    def release(self, owner: str) -> None:
        """Lets all that an owner has not written wait again."""
        release = "UPDATE units SET state = 'waiting', owner = NULL WHERE owner = ?"
        self._do(f"{release} AND state = 'running'", owner)

    def dead_owners(self) -> list[str]:
        """Those that have units in hand and no longer live."""
        return [owner for owner in self.owners() if not is_alive(self.folder, owner)]

    def in_hand(self, owner: str) -> list[Unit]:
        """The units of an owner."""
        return self._units("owner = ?", owner)

    def unit(self, name: str) -> Unit | None:
        return self._unit("name = ?", name)

    def listed(self) -> Iterator[Unit]:
        """The units of the last index, in its order, one at a time."""
        place = -1
        while rows := self._units("listed AND place > ? ORDER BY place LIMIT 256", place):
            yield from rows
            place = self._one("SELECT place FROM units WHERE name = ?", rows[-1].name)[0]

    def counts(self) -> dict[str, int]:
        """How many of the wanted units are in each state."""
        with self._lock:
            found = self._execute("SELECT state, count(*) FROM units WHERE wanted GROUP BY state")
            return dict(found.fetchall())

    def is_at_work(self) -> bool:
        """Whether a wanted unit waits, or is in some process's hands."""
        query = "SELECT 1 FROM units WHERE wanted AND state IN ('waiting', 'running', 'written')"
        return self._one(query + " LIMIT 1") is not None

    def owners(self) -> list[str]:
        """Tokens of the processes that have units in hand."""
        return self._column("SELECT DISTINCT owner FROM units WHERE owner IS NOT NULL")

    def _unit(self, where: str, *values) -> Unit | None:
        return next(iter(self._units(where, *values)), None)

    def _units(self, where: str, *values) -> list[Unit]:
        with self._lock:
            rows = self._execute(f"SELECT {COLUMNS} FROM units WHERE {where}", *values).fetchall()
        return [unit_of(row) for row in rows]

    def _set(self, name: str, /, **values) -> None:
        columns = ", ".join(f"{column} = ?" for column in values)
        self._do(f"UPDATE units SET {columns} WHERE name = ?", *values.values(), name)

    def _change(self, unit_name: str, of_owner: str, /, **values) -> bool:
        """Sets columns of a unit that is an owner's; returns whether it is."""
        columns = ", ".join(f"{column} = ?" for column in values)
        statement = f"UPDATE units SET {columns} WHERE name = ? AND owner = ?"
        with self._lock:
            return self._execute(statement, *values.values(), unit_name, of_owner).rowcount > 0

    def _do(self, statement: str, *values) -> None:
        with self._lock:
            self._execute(statement, *values)

    def _one(self, query: str, *values) -> tuple | None:
        with self._lock:
            return self._execute(query, *values).fetchone()

    def _column(self, query: str, *values) -> list:
        with self._lock:
            return [text_of(row[0]) for row in self._execute(query, *values).fetchall()]

    def _execute(self, statement: str, *values):
        try:
            return self._db.execute(statement, [bound(value) for value in values])
        except sqlite3.Error as error:
            raise _said(error, self.path) from error

    @contextmanager
    def _transaction(self):
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.rollback()
                raise


class DiskFull(FastmedError):
    """There is no room for results or journal: the run stops, and goes on when there is."""


def _next_state(unit: Unit | None, planned: Planned, fresh: bool, again: bool, is_there) -> str:
    """What becomes of a wanted unit whose entry can be read."""
    if unit is None:
        return "waiting"
    if unit.state in ("running", "written"):  # of a process that lives
        return unit.state
    same = unit.key == planned.key and unit.stamp == planned.stamp
    if unit.state == "failed" and same and not (fresh or again):
        return "failed"
    made = unit.made_key == planned.key and unit.made_stamp == planned.stamp
    is_done = unit.state == "done" and made and not fresh
    return "done" if is_done and is_there(unit) else "waiting"


def _packed(planned: Planned) -> bytes:
    return zlib.compress(json.dumps(planned.entry).encode(), 1)


def _said(error: sqlite3.Error, path: Path) -> FastmedError:
    if "full" in str(error):
        return DiskFull(f"{path}: cannot be written, no space left on device; free some space")
    if "locked" in str(error):
        return FastmedError(f"{path}: another process has been writing for {_WAIT_SECONDS:g} s")
    if isinstance(error, sqlite3.OperationalError) and os.path.exists(path):
        return FastmedError(f"{path}: {error}; look at its folder's rights and its disk")
    return FastmedError(
        f"{path}: damaged ({error}); remove it and its -wal file: results stay, and are made anew"
    )
