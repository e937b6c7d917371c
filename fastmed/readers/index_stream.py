"""Index, streaming: files into a store, from there entries one by one, in memory that is bounded.

What the store knows of a file of the same size, time and inode is not read again, and what it
knows of a group whose files are the same is not judged again.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from itertools import islice

from fastmed.readers.companions import has_companion
from fastmed.readers.dicom_header import Header
from fastmed.readers.index_store import Counts, IndexStore
from fastmed.readers.judge import (
    DAMAGED,
    DICOM,
    NAMED,
    OTHER,
    PACKED,
    Fact,
    entries_of,
    entry_of,
    facts_of,
    first_of,
    group_of,
    is_cut_archive,
    is_opened,
    not_images,
)
from fastmed.readers.packed_cut import doubt_what_was_cut
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
    """Brings a store up to what lies in the folders, then yields its entries in order.

    Raises FastmedError where the store is damaged, or its disk is full.
    """
    index = _Stream(store, strict, modality)
    try:
        index.look(listings)
        index.judge()
        yield from index.entries()
    except sqlite3.Error as error:
        raise store.failed(error) from error
    finally:
        if store.database.in_transaction:
            with suppress(sqlite3.Error):
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
        query = "SELECT id, files FROM listings WHERE digest = ?"
        if known := self._sql(query, (digest,)).fetchone():
            self._sql("UPDATE listings SET run = ? WHERE id = ?", (self._run, known[0]))
            self._counts.unchanged += known[1]
            return
        insert = "INSERT INTO listings (run, files) VALUES (?, 0)"
        new = self._sql(insert, (self._run,)).lastrowid
        folder = self._folder(listing.folder, listing.prefix)
        before = self._before(folder, listing)
        for found in listing.founds():
            name = _bytes(os.path.basename(found.path))
            now = (found.file_bytes, found.mtime_ns, found.inode)
            if before.get(name) == now and not has_companion(found.relative):
                self._keep(new, folder, name, found)
            else:
                self._pending.append((new, folder, found))
        if not listing.problems:
            self._complete.append((digest, new))

    def _keep(self, listing: int, folder: int, name: bytes, found: Found) -> None:
        """Notes that a file, or an archive and its members, is what it was."""
        update = "UPDATE files SET listing = ? WHERE folder = ?"
        count = self._sql(f"{update} AND name = ?", (listing, folder, name)).rowcount
        if is_opened(found):
            inside = self._folder(found.path, f"{found.relative}/", packed=True)
            count += self._sql(update, (listing, inside)).rowcount
        self._sql("UPDATE listings SET files = files + ? WHERE id = ?", (count, listing))
        self._counts.unchanged += count

    def _folder(self, path: str, prefix: str, packed: bool = False) -> int:
        """The number of a folder, or of an archive that is one."""
        place = (_bytes(path), _bytes(prefix))
        query = "SELECT id FROM folders WHERE path = ? AND prefix = ?"
        if known := self._sql(query, place).fetchone():
            return known[0]
        insert = "INSERT INTO folders (path, prefix, packed) VALUES (?, ?, ?)"
        return self._sql(insert, (*place, packed)).lastrowid

    def _before(self, folder: int, listing: Listing) -> dict[bytes, tuple[int, int, int]]:
        """By what the files that a listing names were told apart; older listings no longer hold."""
        if not listing.rows:
            return {}
        names = [_bytes(row[0]) for row in listing.rows]
        rows = self._sql(
            "SELECT name, size, mtime_ns, inode, listing, passing FROM files"
            " WHERE folder = ? AND name BETWEEN ? AND ?",
            (folder, min(names), max(names)),
        ).fetchall()
        older = {(row[4],) for row in rows}
        self._many("UPDATE listings SET digest = NULL WHERE id = ?", older)
        return {
            name: (size, mtime, inode)
            for name, size, mtime, inode, _, passing in rows
            if not passing
        }

    def _read_pending(self) -> None:
        """Looks at the files that wait for it, and writes down what they are."""
        home = {found.path: (listing, folder) for listing, folder, found in self._pending}
        inside: dict[str, int] = {}
        for *_, found in filter(lambda pending: is_opened(pending[2]), self._pending):
            inside[found.path] = self._folder(found.path, f"{found.relative}/", packed=True)
            gone = self._sql(
                "SELECT DISTINCT grp FROM files WHERE folder = ?", (inside[found.path],)
            )
            self._forget_verdicts({group for (group,) in gone})
            self._sql("DELETE FROM files WHERE folder = ?", (inside[found.path],))
        facts = facts_of([found for *_, found in self._pending], self._modality)
        passing: set[int] = set()
        while some := list(islice(facts, _PENDING)):
            rows = []
            for fact in some:
                listing, folder = home[fact.found.path]
                folder = inside[fact.found.path] if fact.found.member else folder
                rows.append(self._row(fact, folder, listing))
                passing.update({listing} if fact.passing else ())
            self._many("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            counted = Counter(row[2] for row in rows)
            update = "UPDATE listings SET files = files + ? WHERE id = ?"
            self._many(update, [(count, listing) for listing, count in counted.items()])
            self._counts.read += len(rows)
            self._sql("COMMIT")
            self._sql("BEGIN IMMEDIATE")
        complete = [row for row in self._complete if row[1] not in passing]
        self._many("UPDATE listings SET digest = ? WHERE id = ?", complete)
        self._pending, self._complete = [], []

    def _row(self, fact: Fact, folder: int, listing: int) -> tuple:
        """A row of files; verdicts that rested on what it replaces are forgotten."""
        found = fact.found
        name = _bytes(found.member or os.path.basename(found.path))
        group = None if fact.sort in (OTHER, PACKED) else self._group(fact)
        old = self._sql("SELECT grp FROM files WHERE folder = ? AND name = ?", (folder, name))
        self._forget_verdicts({group, *(old.fetchone() or ())})
        return (
            *(folder, name, listing, found.file_bytes, found.mtime_ns, found.inode, group),
            *(fact.passing, fact.sort, _fact_json(fact)),
        )

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
                "SELECT path, prefix, packed, name, size, mtime_ns, inode, sort, fact"
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
        cut = self._cut_archives(facts)
        for part, entry in enumerate(entries):
            self._store(doubt_what_was_cut(entry, cut, self._strict), group, part, first)

    def _cut_archives(self, facts: list[Fact]) -> dict[str, str]:
        """The condition of each of their archives that was not read to its end, by its path."""
        cut = {}
        for path in {fact.found.path for fact in facts if fact.found.member}:
            rows = self._sql(
                "SELECT path, prefix, packed, name, size, mtime_ns, inode, sort, fact"
                " FROM files JOIN folders ON folders.id = files.folder"
                " WHERE path = ? AND name = ? AND sort = ?",
                (*map(_bytes, os.path.split(path)), DAMAGED),
            )
            owns = filter(is_cut_archive, map(_fact, rows))
            cut |= {own.found.path: own.condition for own in owns}
        return cut

    def _judge_others(self) -> None:
        delete = "DELETE FROM entries WHERE grp = ? AND strict = ?"
        self._sql(delete, (_NO_GROUP, self._strict))
        count = 0

        def others() -> Iterator[tuple[str, str, Found]]:
            nonlocal count
            for row in self._sql(
                "SELECT path, prefix, packed, name, size, mtime_ns, inode"
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
        next_copy: dict[str, int] = {}  # of names that several have
        for place, raw in ranked:
            name = plain = _text(raw)
            copy = next_copy.get(plain.casefold(), 2)
            while not self._sql(take, (_bytes(name.casefold()),)).rowcount:
                name, copy = f"{plain}-{copy}", copy + 1
                next_copy[plain.casefold()] = copy
            self._sql("UPDATE shown SET name = ? WHERE place = ?", (_bytes(name), place))


def _digest(listing: Listing) -> bytes:
    content = repr((listing.folder, listing.prefix, listing.rows)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=20).digest()


def _fact_json(fact: Fact) -> str | None:
    if fact.header is not None:
        return json.dumps([getattr(fact.header, name) for name in _HEADER])
    found = fact.found
    said = [fact.reason, fact.condition, found.problem, found.condition]
    return json.dumps(said) if fact.reason else None


def _fact(row: tuple) -> Fact:
    found, sort, fact = _found(row[:7]), row[7], json.loads(row[8] or '["", "", "", ""]')
    if sort != DICOM:
        reason, condition, problem, of_problem = fact
        found = replace(found, problem=problem, condition=of_problem)
        return Fact(found, sort, reason=reason, condition=condition)
    values = dict(zip(_HEADER, map(_tuples, fact), strict=True))
    return Fact(found, sort, Header(path=found.place, relative=found.relative, **values))


def _found(row: tuple) -> Found:
    folder, prefix, packed, name, size, mtime_ns, inode = row
    folder, prefix, name = map(_text, (folder, prefix, name))
    path, member = (folder, name) if packed else (os.path.join(folder, name), "")
    return Found(path, prefix + name, size, mtime_ns=mtime_ns, inode=inode, member=member)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _bytes(text: str) -> bytes:
    """Bytes of any path, that sort as the texts do."""
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
