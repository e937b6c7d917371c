"""Owners: which processes work on an output folder, and which of them still live."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path


class Owner:
    """A process at work on a folder: it holds a lock on a file there for as long as it lives.

    token: its name in the journal. The system drops the lock however the process ends, so that
    others can tell the living from the dead, also in another container.
    """

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(6)
        self._folder = folder
        self._path = _lock_file(folder, self.token)
        self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)

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
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(file)


def tokens_of(folder: Path) -> list[str]:
    """The tokens of all lock files in a folder, of the living and the dead."""
    return [path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*")]


_PREFIX = ".owner-"


def _lock_file(folder: Path, token: str) -> Path:
    return folder / f"{_PREFIX}{token}"
