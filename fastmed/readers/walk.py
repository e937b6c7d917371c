"""Walk: every file under the given folders once, in a stable order, links and loops included."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastmed.errors import UsageError

MANIFEST = "manifest.json"
_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """One file: where to open it, its path under the searched folder, its size in bytes.

    problem: why it cannot be looked at (a broken link, a forbidden folder); "" else.
    mtime_ns, inode: by which, and its size, a changed file is told from an unchanged one.
    member: its name inside the packed archive at `path`; "" for a file that lies there itself.
    """

    path: str
    relative: str
    file_bytes: int
    problem: str = ""
    mtime_ns: int = 0
    inode: int = 0
    member: str = ""

    @property
    def place(self) -> str:
        """A name of its own on this machine: its path, with the member's name inside it."""
        return f"{self.path}/{self.member}" if self.member else self.path


def walk(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    exclude: str | os.PathLike | Iterable[str | os.PathLike] = (),
) -> Iterator[Found]:
    """Yields the files in `paths` (files or folders), by name, each file once.

    Links are followed; a folder or file reached twice, as in a loop, counts once. Folders in
    `exclude`, and folders inside a searched one that hold the results of a run, are left out, as
    are pipes, sockets and devices.

    Raises UsageError where a path does not exist.
    """
    roots = [os.path.abspath(path) for path in _listed(paths)]
    for root in roots:
        if not os.path.exists(root):
            raise UsageError(f"{root}: no such file or folder")
    seen: set[tuple[int, int]] = set()
    for path in _listed(exclude):
        if os.path.exists(path):
            seen.add(_identity(os.stat(path)))
    for root in roots:
        if os.path.isdir(root):
            yield from _walk_folder(root, seen)
        else:
            yield from _file(root, os.path.basename(root), seen)


def _walk_folder(root: str, seen: set) -> Iterator[Found]:
    waiting = [root]
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):
            yield from _file(path, _relative(path, root), seen)
            continue
        try:
            identity = _identity(os.stat(path))
            names = sorted(os.listdir(path), reverse=True)
        except OSError as error:
            yield Found(path, _relative(path, root), 0, error.strerror or str(error))
            continue
        is_result = path != root and MANIFEST in names and _is_result(Path(path, MANIFEST))
        if identity not in seen and not is_result:
            seen.add(identity)
            waiting += [os.path.join(path, name) for name in names]


def _listed(paths) -> list[str]:
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    return [os.fspath(path) for path in paths]


def _file(path: str, relative: str, seen: set) -> Iterator[Found]:
    try:
        status = os.stat(path)
    except OSError as error:
        link = "a link to a file that is absent" if os.path.islink(path) else error.strerror
        yield Found(path, relative, 0, link or str(error))
        return
    if stat.S_ISREG(status.st_mode) and _identity(status) not in seen:
        seen.add(_identity(status))
        yield Found(
            path, relative, status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino
        )


def _relative(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_result(manifest: Path) -> bool:
    """Whether a manifest.json was written by a run of fastmed."""
    try:
        if manifest.stat().st_size > _MANIFEST_BYTES:
            return False
        content = json.loads(manifest.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and (
        "fastmed" in content or content.get("program") == "fastmed"
    )
