"""Index, streaming: files into a store, from there entries one by one, in memory that is bounded.

What the store knows of a file of the same size, time and inode is not read again, and what it
knows of a group whose files are the same is not judged again.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace

from fastmed.readers.dicom_header import Header
from fastmed.readers.index_store import Counts, IndexStore
from fastmed.readers.judge import (
    DICOM,
    NAMED,
    OTHER,
    Fact,
    entries_of,
    entry_of,
    facts_of,
    first_of,
    group_of,
    has_companion,
    not_images,
)
from fastmed.readers.series import RANK, Series
from fastmed.readers.series_json import series_dict, series_from_dict
from fastmed.readers.walk import Found, Listing

_HEADER = [field.name for field in fields(Header) if field.name not in ("path", "relative")]
_PENDING = 512  # files that are looked at between two commits
_GROUPS = 64  # groups that are judged between two commits
_NO_GROUP = 0  # of the entry of all files that are no scan


def stream(
    listings: Iterable[Listing], store: IndexStore, *, strict: bool, modality: str
) -> Iterator[Series]:
    """Brings a store up to what lies in the folders, then yields its entries in order."""
    index = _Stream(store, strict, modality)
    try:
        index.look(listings)
        index.judge()
        yield from index.entries()
    finally:
        if store.database.in_transaction:
            store.database.execute("ROLLBACK")


class _Stream:
    def __init__(self, store: IndexStore, strict: bool, modality: str) -> None:
        self._sql = store.database.execute
        self._many = store.database.executemany
        self._strict = strict
        self._modality = modality
        self._counts = store.counts = Counts()
        self._run = 0
        self._pending: list[tuple[int, int, Found]] = []  # (listing, folder, file to look at)
        self._complete: list[tuple[bytes, int]] = []  # (digest, listing), when those are stored

    def look(self, listings: Iterable[Listing]) -> None:
        """Reads the files that are new or changed, and forgets those that are gone."""
        self._sql("BEGIN IMMEDIATE")
        self._sql("UPDATE meta SET value = value + 1 WHERE name = 'run'")
        (self._run,) = self._sql("SELECT value FROM meta WHERE name = 'run'").fetchone()
        for listing in listings:
            self._look_at(listing)
            if len(self._pending) >= _PENDING:
                self._read_pending()
        self._read_pending()
        self._forget_the_gone()
        self._sql("COMMIT")

    def judge(self) -> None:
        """Judges the groups that have changed, or that were never judged so strictly."""
        unjudged = (
            "SELECT id FROM groups WHERE NOT EXISTS"
            f" (SELECT 1 FROM judged WHERE strict = ? AND grp = groups.id) LIMIT {_GROUPS}"
        )
        while groups := self._sql(unjudged, (self._strict,)).fetchall():
            self._sql("BEGIN IMMEDIATE")
            for (group,) in groups:
                self._judge_group(group)
                self._sql("INSERT INTO judged VALUES (?, ?)", (self._strict, group))
            self._sql("COMMIT")
        self._sql("BEGIN IMMEDIATE")
        self._judge_others()
        self._name()
        self._sql("COMMIT")

    def entries(self) -> Iterator[Series]:
        """Yields what was judged, sorted by source, under names that are unique."""
        query = (
            "SELECT content, shown.name, place FROM shown JOIN entries ON entries.id = shown.id"
            " WHERE place > ? ORDER BY place LIMIT 64"
        )
        place = 0
        while rows := self._sql(query, (place,)).fetchall():
            for content, name, place in rows:  # noqa: B007  the last one is where to go on
                yield replace(series_from_dict(json.loads(content)), name=_text(name))

    def _look_at(self, listing: Listing) -> None:
        digest = _digest(listing)
        known = self._sql("SELECT id FROM listings WHERE digest = ?", (digest,)).fetchone()
        if known:
            self._sql("UPDATE listings SET run = ? WHERE id = ?", (self._run, known[0]))
            self._counts.unchanged += len(listing.rows)
            return
        new = self._sql("INSERT INTO listings (run) VALUES (?)", (self._run,)).lastrowid
        folder, before = self._folder(listing)
        same = []
        for found in listing.founds():
            name = _bytes(os.path.basename(found.path))
            now = (found.file_bytes, found.mtime_ns, found.inode)
            if before.get(name) == now and not has_companion(found.relative):
                same.append((new, folder, name))
            else:
                self._pending.append((new, folder, found))
        self._many("UPDATE files SET listing = ? WHERE folder = ? AND name = ?", same)
        self._counts.unchanged += len(same)
        if not listing.problems:
            self._complete.append((digest, new))

    def _folder(self, listing: Listing) -> tuple[int, dict[bytes, tuple[int, int, int]]]:
        """Its number, and what is known of the files that the listing names."""
        place = (_bytes(listing.folder), _bytes(listing.prefix))
        query = "SELECT id FROM folders WHERE path = ? AND prefix = ?"
        known = self._sql(query, place).fetchone()
        if not known:
            insert = "INSERT INTO folders (path, prefix, packed) VALUES (?, ?, 0)"
            return self._sql(insert, place).lastrowid, {}
        names = [_bytes(row[0]) for row in listing.rows]
        if not names:
            return known[0], {}
        rows = self._sql(
            "SELECT name, size, mtime_ns, inode FROM files"
            " WHERE folder = ? AND name BETWEEN ? AND ? AND NOT passing",
            (known[0], min(names), max(names)),
        )
        return known[0], {name: tuple(row) for name, *row in rows}

    def _read_pending(self) -> None:
        where = {found.place: (listing, folder) for listing, folder, found in self._pending}
        rows, changed, passing = [], set(), set()
        for fact in facts_of([found for *_, found in self._pending], self._modality):
            listing, folder = where[fact.found.place]
            name = _bytes(os.path.basename(fact.found.path))
            old = self._sql("SELECT grp FROM files WHERE folder = ? AND name = ?", (folder, name))
            changed.update(old.fetchone() or ())
            group = None if fact.sort == OTHER else self._group(fact)
            changed.add(group)
            if fact.passing:
                passing.add(listing)
            found = fact.found
            rows.append(
                (folder, name, listing, found.file_bytes, found.mtime_ns, found.inode, group,
                 fact.passing, fact.sort, _fact_json(fact))
            )  # fmt: skip
        self._many("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._forget_verdicts(changed)
        complete = [row for row in self._complete if row[1] not in passing]
        self._many("UPDATE listings SET digest = ? WHERE id = ?", complete)
        self._counts.read += len(rows)
        self._pending, self._complete = [], []
        self._sql("COMMIT")
        self._sql("BEGIN IMMEDIATE")

    def _group(self, fact: Fact) -> int:
        key = group_of(fact) if fact.sort == DICOM else ("file", fact.found.place)
        key = _bytes(json.dumps(key))
        known = self._sql("SELECT id FROM groups WHERE key = ?", (key,)).fetchone()
        if known:
            return known[0]
        return self._sql("INSERT INTO groups (key) VALUES (?)", (key,)).lastrowid

    def _forget_verdicts(self, groups: set[int | None]) -> None:
        numbers = [(group,) for group in groups if group is not None]
        self._many("DELETE FROM judged WHERE grp = ?", numbers)
        self._many("DELETE FROM entries WHERE grp = ?", numbers)

    def _forget_the_gone(self) -> None:
        stale = "listing IN (SELECT id FROM listings WHERE run <> ?)"
        gone = self._sql(f"SELECT DISTINCT grp FROM files WHERE {stale}", (self._run,))
        self._forget_verdicts({group for (group,) in gone})
        self._counts.gone = self._sql(f"DELETE FROM files WHERE {stale}", (self._run,)).rowcount
        self._sql("DELETE FROM listings WHERE run <> ?", (self._run,))
        self._sql("DELETE FROM groups WHERE NOT EXISTS (SELECT 1 FROM files WHERE grp = groups.id)")

    def _judge_group(self, group: int) -> None:
        facts = [
            _fact(row)
            for row in self._sql(
                "SELECT path, prefix, name, size, mtime_ns, inode, sort, fact"
                " FROM files JOIN folders ON folders.id = files.folder WHERE grp = ?",
                (group,),
            )
        ]
        first = "\0".join(first_of(facts))
        if facts[0].sort == DICOM:
            entries = entries_of(facts, self._strict)
        else:
            (fact,) = facts
            entry = entry_of(fact, self._strict, self._modality)
            entries = [entry] if entry else []
            if entry is None:  # of a kind that may hold a scan, and does not
                self._sql("UPDATE files SET sort = ? WHERE grp = ?", (OTHER, group))
        for part, entry in enumerate(entries):
            self._store(entry, group, part, first)

    def _judge_others(self) -> None:
        delete = "DELETE FROM entries WHERE grp = ? AND strict = ?"
        self._sql(delete, (_NO_GROUP, self._strict))
        count = 0

        def others() -> Iterator[tuple[str, str, Found]]:
            nonlocal count
            for row in self._sql(
                "SELECT path, prefix, name, size, mtime_ns, inode, sort, NULL"
                " FROM files JOIN folders ON folders.id = files.folder WHERE sort = 'other'"
            ):
                count += 1
                found = _found(row)
                yield found.relative, found.place, found

        named = [found for *_, found in heapq.nsmallest(NAMED, others(), key=lambda row: row[:2])]
        if named:
            self._store(not_images(named, count, self._modality), _NO_GROUP, 0, "")

    def _store(self, entry: Series, group: int, part: int, first: str) -> None:
        self._sql(
            "INSERT INTO entries (strict, grp, part, first, source, kind, name, rank, content)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._strict,
                group,
                part,
                _bytes(first),
                _bytes(entry.source),
                entry.kind,
                _bytes(entry.name),
                RANK[entry.verdict],
                json.dumps(series_dict(entry)),
            ),
        )

    def _name(self) -> None:
        """Puts the entries in order and names them as `with_unique_names` does."""
        self._sql("DELETE FROM shown")
        self._sql("DELETE FROM taken")
        order = "source, kind, name, first, part"
        self._sql(
            f"INSERT INTO shown (place, id) SELECT row_number() OVER (ORDER BY {order}), id"
            " FROM entries WHERE strict = ?",
            (self._strict,),
        )
        ranked = self._sql(
            "SELECT place, entries.name FROM shown JOIN entries ON entries.id = shown.id"
            " ORDER BY rank, place"
        )
        take = "INSERT OR IGNORE INTO taken VALUES (?)"
        for place, raw in ranked:
            name, copy = _text(raw), 2
            while not self._sql(take, (_bytes(name.casefold()),)).rowcount:
                name, copy = f"{_text(raw)}-{copy}", copy + 1
            self._sql("UPDATE shown SET name = ? WHERE place = ?", (_bytes(name), place))


def _digest(listing: Listing) -> bytes:
    content = repr((listing.folder, listing.prefix, listing.rows)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=20).digest()


def _fact_json(fact: Fact) -> str | None:
    if fact.header is not None:
        return json.dumps([getattr(fact.header, name) for name in _HEADER])
    return json.dumps([fact.reason, fact.condition, fact.found.problem]) if fact.reason else None


def _fact(row: tuple) -> Fact:
    found, sort, fact = _found(row), row[6], json.loads(row[7] or '["", "", ""]')
    if sort != DICOM:
        reason, condition, problem = fact
        return Fact(replace(found, problem=problem), sort, reason=reason, condition=condition)
    values = dict(zip(_HEADER, map(_tuples, fact), strict=True))
    return Fact(found, sort, Header(path=found.place, relative=found.relative, **values))


def _found(row: tuple) -> Found:
    folder, prefix, name = map(_text, row[:3])
    path = os.path.join(folder, name)
    return Found(path, prefix + name, row[3], mtime_ns=row[4], inode=row[5])


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _bytes(text: str) -> bytes:
    """Bytes of any path, that sort as the texts do."""
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
