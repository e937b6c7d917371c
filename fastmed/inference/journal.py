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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError
from fastmed.inference.owners import is_alive

FILE = "journal.sqlite"
_VERSION = 1
_WAIT_SECONDS = 120.0  # for another process that writes

_SCHEMA = """
CREATE TABLE units (
  name TEXT PRIMARY KEY,
  place INTEGER NOT NULL,           -- in the order of the index
  listed INTEGER NOT NULL,          -- whether the last index found it
  wanted INTEGER NOT NULL,          -- whether the last run was asked to do it
  source TEXT NOT NULL,
  verdict TEXT NOT NULL,            -- of the index
  reason TEXT NOT NULL,
  warnings TEXT NOT NULL,
  entry BLOB NOT NULL,              -- the entry itself, compressed JSON
  key TEXT NOT NULL,
  stamp TEXT NOT NULL,
  state TEXT NOT NULL,
  owner TEXT,
  alone INTEGER NOT NULL DEFAULT 0, -- to be run with nothing beside it
  attempts INTEGER NOT NULL DEFAULT 0,
  failure TEXT NOT NULL DEFAULT '',
  made_key TEXT NOT NULL DEFAULT '',
  made_stamp TEXT NOT NULL DEFAULT '',
  content TEXT NOT NULL DEFAULT '', -- hash of the files that the result was made from
  files TEXT NOT NULL DEFAULT '{}', -- of the result: name -> [SHA-256, bytes]
  row TEXT NOT NULL DEFAULT '{}',   -- its part of the run's tables
  seconds TEXT NOT NULL DEFAULT '{}',
  finished REAL
);
CREATE INDEX units_by_state ON units (state, wanted, alone, attempts, place);
CREATE INDEX units_by_place ON units (place);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Unit:
    """One entry of the index as the journal has it."""

    name: str
    source: str
    verdict: str
    reason: str
    warnings: tuple[str, ...]
    key: str
    stamp: str
    state: str
    owner: str | None
    alone: bool
    attempts: int
    failure: str
    made_key: str
    content: str
    files: dict[str, list]
    row: dict[str, Any]
    seconds: dict[str, float]
    packed_entry: bytes

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of the index as `series_dict` writes it."""
        return json.loads(zlib.decompress(self.packed_entry))


@dataclass(frozen=True)
class Planned:
    """What a run wants of one entry: the entry as a dict, its key and its stamp.

    is_wanted: False where the run was asked for others only.
    """

    name: str
    source: str
    verdict: str
    reason: str
    warnings: tuple[str, ...]
    entry: dict[str, Any]
    key: str
    stamp: str
    is_wanted: bool = True


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
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._transaction():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version={_VERSION}")
        except sqlite3.DatabaseError as error:
            raise _said(error, self.path) from error
        if version not in (0, _VERSION):
            raise FastmedError(f"{self.path}: of another version of fastmed; name another --output")

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

        fresh: everything wanted waits anew; results stay until they are replaced.
        is_there: whether the files of a unit's result are still in their place.
        """
        again = bool(self.fact("finished"))  # failed units get another chance
        with self._transaction():
            self._execute("UPDATE units SET listed = 0, wanted = 0")
            for place, planned in enumerate(entries):
                self._plan_one(place, planned, fresh, again, is_there)
            self.set_fact("finished", False)

    def _plan_one(self, place: int, planned: Planned, fresh: bool, again: bool, is_there) -> None:
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
            "wanted": planned.is_wanted,
            "source": planned.source,
            "verdict": planned.verdict,
            "reason": planned.reason,
            "warnings": json.dumps(planned.warnings),
            "entry": zlib.compress(json.dumps(planned.entry).encode(), 1),
            "key": planned.key,
            "stamp": planned.stamp,
            "state": state,
            "listed": True,
        }
        if unit is None:
            marks = ", ".join("?" * len(columns))
            insert = f"INSERT INTO units ({', '.join(columns)}) VALUES ({marks})"
            self._execute(insert, *columns.values())
            return
        if state == "waiting" and (unit.state != "waiting" or again):
            columns |= {"attempts": 0, "alone": False, "failure": ""}
        if state == "waiting" and fresh:
            columns["made_key"] = ""
        self._set(planned.name, **columns)

    def claim(self, owner: str, *, alone: bool) -> Unit | None:
        """Takes the next unit that waits; None where there is none.

        alone: whether nothing runs beside it here; units that must run so come after all others.
        """
        for only in (False, True) if alone else (False,):
            with self._transaction():
                unit = self._unit(
                    "state = 'waiting' AND wanted AND alone = ? ORDER BY attempts, place LIMIT 1",
                    only,
                )
                if unit is not None:
                    self._set(unit.name, state="running", owner=owner)
                    return unit
        return None

    def written(self, name: str, *, content: str, files: dict, row: dict, seconds: dict) -> None:
        """The result lies complete beside its place: from here on the unit cannot be lost."""
        self._set(
            name,
            state="written",
            content=content,
            files=json.dumps(files),
            row=json.dumps(row),
            seconds=json.dumps(seconds),
        )

    def done(self, name: str) -> None:
        """The result is in its place."""
        self._do(
            """UPDATE units SET state = 'done', owner = NULL, alone = 0, failure = '',
                 made_key = key, made_stamp = stamp, finished = ? WHERE name = ?""",
            time.time(),
            name,
        )

    def failed(self, name: str, reason: str, *, attempts: int, alone: bool = False) -> bool:
        """Counts a failed attempt; returns whether the unit waits for another one.

        attempts: after so many it is set aside with this reason. alone: the next runs by itself.
        """
        with self._transaction():
            so_far = self._one("SELECT attempts FROM units WHERE name = ?", name)[0] + 1
            again = so_far < attempts
            self._set(
                name,
                state="waiting" if again else "failed",
                owner=None,
                attempts=so_far,
                failure=reason,
                alone=alone,
            )
        return again

    def suspect(self, names: Iterable[str]) -> None:
        """One of these brought its process down: each will run with nothing beside it."""
        with self._transaction():
            for name in names:
                self._set(name, state="waiting", owner=None, alone=True)

    def release(self, owner: str) -> list[str]:
        """Lets the units of an owner wait again; returns their names."""
        with self._transaction():
            names = self._column(
                "SELECT name FROM units WHERE owner = ? AND state = 'running'", owner
            )
            for name in names:
                self._set(name, state="waiting", owner=None)
        return names

    def left_by_the_dead(self) -> list[tuple[str, Unit]]:
        """The units of owners that no longer live, each with its owner's token."""
        owners = self._column("SELECT DISTINCT owner FROM units WHERE owner IS NOT NULL")
        dead = [owner for owner in owners if not is_alive(self.folder, owner)]
        return [(owner, unit) for owner in dead for unit in self._units("owner = ?", owner)]

    def wait_again(self, name: str) -> None:
        self._set(name, state="waiting", owner=None)

    def unit(self, name: str) -> Unit | None:
        return self._unit("name = ?", name)

    def listed(self) -> Iterator[Unit]:
        """The units of the last index, in its order, one at a time."""
        place = -1
        while rows := self._units("listed AND place > ? ORDER BY place LIMIT 256", place):
            yield from rows
            place = self._one("SELECT place FROM units WHERE name = ?", rows[-1].name)[0]

    def counts(self) -> dict[str, int]:
        """How many of the listed units are in each state."""
        with self._lock:
            found = self._execute("SELECT state, count(*) FROM units WHERE listed GROUP BY state")
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
            rows = self._execute(f"SELECT {_COLUMNS} FROM units WHERE {where}", *values).fetchall()
        return [_unit_of(row) for row in rows]

    def _set(self, name: str, /, **values) -> None:
        columns = ", ".join(f"{column} = ?" for column in values)
        self._do(f"UPDATE units SET {columns} WHERE name = ?", *values.values(), name)

    def _do(self, statement: str, *values) -> None:
        with self._lock:
            self._execute(statement, *values)

    def _one(self, query: str, *values) -> tuple | None:
        with self._lock:
            return self._execute(query, *values).fetchone()

    def _column(self, query: str, *values) -> list:
        with self._lock:
            return [_text(row[0]) for row in self._execute(query, *values).fetchall()]

    def _execute(self, statement: str, *values):
        try:
            return self._db.execute(statement, [_bound(value) for value in values])
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
    is_done = unit.state == "done" and unit.made_key == planned.key
    return "done" if is_done and same and not fresh and is_there(unit) else "waiting"


_FIELDS = (
    *("name", "source", "verdict", "reason", "warnings", "key", "stamp", "state", "owner", "alone"),
    *("attempts", "failure", "made_key", "content", "files", "row", "seconds", "entry"),
)
_COLUMNS = ", ".join(_FIELDS)


def _bound(value: Any) -> Any:
    """A value as SQLite takes it: paths of undecodable bytes are no text there."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogateescape")
    return value


def _text(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _unit_of(row: tuple) -> Unit:
    plain = {
        name: value if name == "entry" else _text(value)
        for name, value in zip(_FIELDS, row, strict=True)
    }
    for name in ("warnings", "files", "row", "seconds"):
        plain[name] = json.loads(plain[name])
    plain["warnings"], plain["alone"] = tuple(plain["warnings"]), bool(plain["alone"])
    return Unit(packed_entry=plain.pop("entry"), **plain)


def _said(error: sqlite3.Error, path: Path) -> FastmedError:
    if "full" in str(error):
        return DiskFull(f"{path}: cannot be written, no space left on device; free some space")
    if isinstance(error, sqlite3.OperationalError) and os.path.exists(path):
        return FastmedError(f"{path}: {error}; look at its folder's rights and its disk")
    return FastmedError(
        f"{path}: damaged ({error}); remove it and its -wal file: results stay, and are made anew"
    )
