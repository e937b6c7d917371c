"""Owners: which processes work on an output folder, and which of them still live."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path


class Owner:
    """A process at work on a folder: it holds a lock on a file there for as long as it lives.

    token: its name in the journal. note: what others may read of it while it lives. The system
    drops the lock however the process ends, so that others can tell the living from the dead, also
    in another container.
    """

    def __init__(self, folder: Path, note: str = "") -> None:
        self.token = secrets.token_hex(6)
        self._path = _lock_file(folder, self.token)
        while True:
            self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if _is_at(self._file, self._path):
                break
            os.close(self._file)  # who looked for the dead has removed it before it was locked
        os.write(self._file, note.encode())

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *_) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def is_alive(folder: Path, token: str) -> bool:
    """Whether the process behind a token still runs; the lock file of a dead one is removed."""
    path = _lock_file(folder, token)
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        if _is_at(file, path):
            path.unlink(missing_ok=True)
        return False
    finally:
        os.close(file)


def living(folder: Path) -> dict[str, str]:
    """The token and the note of each process that works on a folder."""
    notes = {}
    for token in tokens_of(folder):
        with suppress(FileNotFoundError):
            note = _lock_file(folder, token).read_text()
            if is_alive(folder, token):
                notes[token] = note
    return notes


def tokens_of(folder: Path) -> list[str]:
    """The tokens of all lock files in a folder, of the living and the dead."""
    return [path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*")]


_PREFIX = ".owner-"


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        there, own = os.stat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _lock_file(folder: Path, token: str) -> Path:
    return folder / f"{_PREFIX}{token}"
