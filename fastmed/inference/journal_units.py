"""Units: the rows of the journal, as SQLite and as Python have them."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

SCHEMA = """
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
  results TEXT NOT NULL,            -- names the model and the settings that are to make it
  key TEXT NOT NULL,
  stamp TEXT NOT NULL,
  plan INTEGER NOT NULL,            -- the last one that listed it
  asked INTEGER NOT NULL,           -- whether that one wants it done
  state TEXT NOT NULL,
  owner TEXT,
  claimed_key TEXT NOT NULL DEFAULT '',
  claimed_stamp TEXT NOT NULL DEFAULT '',
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
    made_stamp: str
    is_wanted: bool
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

    results: names what the run makes, of whatever entry.

    is_wanted: False where the run was asked for others only.
    """

    name: str
    source: str
    verdict: str
    reason: str
    warnings: tuple[str, ...]
    entry: dict[str, Any]
    results: str
    key: str
    stamp: str
    is_wanted: bool = True


_FIELDS = (
    *("name", "source", "verdict", "reason", "warnings", "key", "stamp", "state", "owner", "alone"),
    *(
        "attempts",
        "failure",
        "made_key",
        "made_stamp",
        "wanted",
        "content",
        "files",
        "row",
        "seconds",
        "entry",
    ),
)
COLUMNS = ", ".join(_FIELDS)


def bound(value: Any) -> Any:
    """A value as SQLite takes it: paths of undecodable bytes are no text there."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogateescape")
    return value


def text_of(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def unit_of(row: tuple) -> Unit:
    plain = {
        name: value if name == "entry" else text_of(value)
        for name, value in zip(_FIELDS, row, strict=True)
    }
    for name in ("warnings", "files", "row", "seconds"):
        plain[name] = json.loads(plain[name])
    plain["warnings"], plain["alone"] = tuple(plain["warnings"]), bool(plain["alone"])
    plain["is_wanted"] = bool(plain.pop("wanted"))
    return Unit(packed_entry=plain.pop("entry"), **plain)
