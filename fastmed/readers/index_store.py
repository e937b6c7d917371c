"""Index store: what was read of each file, and the verdicts, kept in SQLite between two indexes.

It holds paths, sizes, times, and of headers what verdicts rest on: no names, no birth dates.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import fastmed
from fastmed.cache_folder import cache_folder
from fastmed.errors import FastmedError

try:
    import fcntl
except ImportError:  # where there is no flock, nothing is kept
    fcntl = None

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value);
CREATE TABLE listings (id INTEGER PRIMARY KEY, digest BLOB UNIQUE, run INTEGER, files INTEGER);
CREATE TABLE folders (id INTEGER PRIMARY KEY, path BLOB, prefix BLOB, packed INTEGER,
    UNIQUE (path, prefix));
CREATE TABLE groups (id INTEGER PRIMARY KEY, key BLOB UNIQUE);
CREATE TABLE files (folder INTEGER, name BLOB, listing INTEGER, size INTEGER, mtime_ns INTEGER,
    inode INTEGER, grp INTEGER, passing INTEGER, sort TEXT, fact TEXT, UNIQUE (folder, name));
CREATE INDEX files_of_group ON files (grp);
CREATE INDEX files_of_sort ON files (sort) WHERE sort = 'other';
CREATE TABLE judged (strict INTEGER, grp INTEGER, PRIMARY KEY (strict, grp)) WITHOUT ROWID;
CREATE TABLE entries (id INTEGER PRIMARY KEY, strict INTEGER, grp INTEGER, part INTEGER,
    first BLOB, source BLOB, kind TEXT, name BLOB, rank INTEGER, content TEXT);
CREATE INDEX entries_of_group ON entries (grp);
"""
_SHOWN = "CREATE TEMP TABLE shown (place INTEGER PRIMARY KEY, id INTEGER, name BLOB)"
_TAKEN = "CREATE TEMP TABLE taken (folded BLOB PRIMARY KEY) WITHOUT ROWID"
_KEPT_DAYS = 90  # a store that no index has used for so long is removed
# What else decides a verdict: parsers, and decoders, without which a series cannot be read.
_JUDGES = ("numpy", "pydicom", "nibabel", "SimpleITK", "pillow")
_DECODERS = (
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "pyjpegls",
    "python-gdcm",
    "imagecodecs",
)


@dataclass
class Counts:
    """What an index had to do: files read, files as they were, and files that are there no more."""

    read: int = 0
    unchanged: int = 0
    gone: int = 0

    def __str__(self) -> str:
        files = "1 file" if self.read == 1 else f"{self.read} files"
        return f"{files} read, {self.unchanged} unchanged since the last index, {self.gone} gone"


class IndexStore:
    """One SQLite database of one set of searched folders; counts says what the last index did.

    path: where another index finds what this one writes; None where it does not.
    """

    def __init__(self, database: sqlite3.Connection, path: Path | None) -> None:
        self.database = database
        self.path = path
        self.counts = Counts()
        database.execute(_SHOWN)
        database.execute(_TAKEN)

    @property
    def kept(self) -> bool:
        """Whether another index finds what this one writes."""
        return self.path is not None

    def failed(self, error: sqlite3.Error) -> FastmedError:
        """What a user is told where the store cannot be used any longer."""
        where = self.path or f"the index's store in {tempfile.gettempdir()}"
        if "full" in str(error):
            return FastmedError(f"{where}: no space left on device; free some space")
        remedy = "remove it" if self.path else "look at that disk"
        return FastmedError(f"{where} cannot be used ({error}); {remedy}")


@contextmanager
def open_store(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    modality: str = "ct",
    fresh: bool = False,
) -> Iterator[IndexStore]:
    """Opens the store of the searched paths in the cache folder; makes it where there is none.

    fresh: forget what it holds.

    While another process uses it, this one works on a copy that is not kept; where the cache
    folder cannot be written, on an empty one.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    roots = sorted({os.path.abspath(path) for path in paths})
    key = hashlib.sha256(repr((roots, modality)).encode("utf-8", "surrogatepass")).hexdigest()
    path = cache_folder("index") / f"index-{key[:32]}.sqlite"
    with _lock(path.with_suffix(".lock")) as free:
        kept = free and _opened(path, fresh)
        other = None if free or fresh else _copied(path)
        with closing(kept or other or _temporary()) as database:
            yield IndexStore(database, path if kept else None)


@contextmanager
def temporary_store() -> Iterator[IndexStore]:
    """A store of its own that ends with its use; SQLite puts on disk what its cache cannot hold."""
    with closing(_temporary()) as database:
        yield IndexStore(database, None)


@cache
def rules() -> str:
    """Stands for everything that judges: other rules, other decoders, and nothing kept holds."""
    digest = hashlib.sha256(fastmed.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for name in (*_JUDGES, *_DECODERS):
        try:
            digest.update(f"{name} {metadata.version(name)}\n".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{name} absent\n".encode())
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether this process alone may write the store; a killed process holds no lock."""
    if fcntl is None:
        yield False
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free
    finally:
        os.close(file)


def _opened(path: Path, fresh: bool) -> sqlite3.Connection | None:
    """Opens or makes the store at `path`; None where it cannot be written."""
    for attempt in range(2):
        try:
            if attempt or fresh:
                _remove(path)
            _remove_old(path.parent)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            os.utime(path)
            database = _connected(str(path))
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            return _with_schema(database)
        except sqlite3.DatabaseError:  # a damaged store is made anew
            continue
        except OSError:
            return None
    return None


def _copied(path: Path) -> sqlite3.Connection | None:
    """A copy of what another process works on, to read from; None where there is none."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as source:
            database = _connected("")
            source.backup(database)
        return _with_schema(database)
    except sqlite3.DatabaseError:
        return None


def _temporary() -> sqlite3.Connection:
    database = _connected("")
    database.execute("PRAGMA journal_mode = MEMORY")
    database.execute("PRAGMA synchronous = OFF")
    return _with_schema(database)


def _connected(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)


def _with_schema(database: sqlite3.Connection) -> sqlite3.Connection:
    """The database with empty tables, where it has none or some of other rules."""
    database.execute("BEGIN IMMEDIATE")
    known = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
    if known:
        row = database.execute("SELECT value FROM meta WHERE name = 'rules'").fetchone()
        known = row is not None and row[0] == rules()
    if not known:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in tables:
            database.execute(f'DROP TABLE "{name}"')
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        database.execute("INSERT INTO meta VALUES ('rules', ?)", (rules(),))
        database.execute("INSERT INTO meta VALUES ('run', 0)")
    database.execute("COMMIT")
    return database


def _remove_old(folder: Path) -> None:
    """Removes stores whose folders nobody has indexed for a long time."""
    oldest = time.time() - _KEPT_DAYS * 86400
    for path in folder.glob("index-*.sqlite"):
        if path.stat().st_mtime < oldest:
            with _lock(path.with_suffix(".lock")) as free:
                if free:
                    _remove(path)


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
