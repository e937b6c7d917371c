"""Walk: every file under the given folders once, in a stable order, links and loops included."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastmed.errors import UsageError

MANIFEST = "manifest.json"
_MANIFEST_BYTES = 4096  # of its beginning; the list of series that follows may be long
_BY_FASTMED = re.compile(rb'\s*\{\s*"(program"\s*:\s*"fastmed"|fastmed"\s*:)')
_PIECE = 4096  # files of one folder that are listed at once
_63_BITS = (1 << 63) - 1  # which is what SQLite holds; inodes and times may be larger


@dataclass(frozen=True, slots=True)
class Found:
    """One file: where to open it, its path under the searched folder, its size in bytes.

    problem: why it cannot be looked at (a broken link, a forbidden folder); "" else.
    mtime_ns, inode: by which, and its size, a changed file is told from an unchanged one.
    member: its name inside the packed archive at `path`; "" for a file that lies there itself.
    condition: which of `series.CONDITIONS` the problem is; "" where it is damage or there is none.
    """

    path: str
    relative: str
    file_bytes: int
    problem: str = ""
    mtime_ns: int = 0
    inode: int = 0
    member: str = ""
    condition: str = ""

    @property
    def place(self) -> str:
        """A name of its own on this machine: its path, with the member's name inside it."""
        return f"{self.path}/{self.member}" if self.member else self.path


@dataclass(frozen=True, slots=True)
class Listing:
    """Some files of one folder, by name.

    folder: where it is; prefix: what stands before a file's name in its relative path.
    rows: (name, bytes, mtime_ns, inode) of each file.
    problems: what lies there and cannot be looked at.
    """

    folder: str
    prefix: str
    rows: list[tuple[str, int, int, int]]
    problems: list[Found]

    def founds(self) -> Iterator[Found]:
        """The files one by one."""
        for name, size, mtime_ns, inode in self.rows:
            path = os.path.join(self.folder, name)
            yield Found(path, self.prefix + name, size, mtime_ns=mtime_ns, inode=inode)
        yield from self.problems


def walk(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    exclude: str | os.PathLike | Iterable[str | os.PathLike] = (),
) -> Iterator[Found]:
    """Yields the files in `paths` (files or folders), each file once, folder after folder.

    Links are followed; a folder or file reached twice, as in a loop, counts once, and a file that
    a searched folder holds counts there. Folders in `exclude`, and folders inside a searched one
    that hold the results of a run, are left out, as are pipes, sockets and devices.

    Raises UsageError where a path does not exist.
    """
    for listing in listings(paths, exclude):
        yield from listing.founds()


def listings(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    exclude: str | os.PathLike | Iterable[str | os.PathLike] = (),
) -> Iterator[Listing]:
    """Yields what `walk` does, folder by folder, large folders piece by piece; always alike.

    Memory grows with the number of folders, of linked files, and of names in one folder, not with
    the number of files. Raises UsageError where a path does not exist.
    """
    roots = [os.path.abspath(path) for path in _listed(paths)]
    for root in roots:
        if not os.path.exists(root):
            raise UsageError(f"{root}: no such file or folder")
    excluded = {_identity(os.stat(path)) for path in _listed(exclude) if os.path.exists(path)}
    yield from _Walk(excluded).listings(roots)


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Size, mtime_ns and inode of a file, by which a changed one is told from an unchanged one."""
    return status.st_size, status.st_mtime_ns & _63_BITS, status.st_ino & _63_BITS


class _Walk:
    """One walk: which folders were searched, and which files were met that may be met again."""

    def __init__(self, excluded: set[tuple[int, int]]) -> None:
        self._excluded = excluded
        self._folders: set[tuple[int, int]] = set()
        self._files: set[tuple[int, int]] = set()  # with several names, or reached by a link
        self._links: list[tuple[str, str]] = []  # (path, relative), looked at when all is searched

    def listings(self, roots: list[str]) -> Iterator[Listing]:
        for root in roots:
            if os.path.isdir(root):
                yield from self._below(root)
            else:
                self._links.append((root, os.path.basename(root)))
        for path, relative in self._links:
            yield from self._linked(path, relative)

    def _below(self, root: str) -> Iterator[Listing]:
        waiting = [root]
        while waiting:
            path = waiting.pop()
            relative = "" if path == root else path[len(root.rstrip(os.sep)) + 1 :] + "/"
            relative = relative.replace(os.sep, "/")
            try:
                identity = _identity(os.stat(path))
                if identity in self._folders or identity in self._excluded:
                    continue
                names, folders, links = _names(path)
            except OSError as error:
                folder, name = os.path.split(path)
                problem = Found(path, relative[:-1] or name, 0, error.strerror or str(error))
                yield Listing(folder, relative[: -len(name) - 1], [], [problem])
                continue
            if path != root and MANIFEST in names and _is_result(Path(path, MANIFEST)):
                continue
            self._folders.add(identity)
            for name in sorted(links):
                if os.path.isdir(os.path.join(path, name)):
                    folders.append(name)
                else:
                    self._links.append((os.path.join(path, name), relative + name))
            waiting += [os.path.join(path, name) for name in sorted(folders, reverse=True)]
            yield from self._pieces(path, relative, sorted(names))

    def _pieces(self, folder: str, prefix: str, names: list[str]) -> Iterator[Listing]:
        """Cuts a folder where it is long, not between files that differ in their extension."""
        rows: list[tuple[str, int, int, int]] = []
        problems: list[Found] = []
        before = ""
        start = folder.rstrip(os.sep) + os.sep
        for name in names:
            if len(rows) >= _PIECE and os.path.splitext(name)[0] != os.path.splitext(before)[0]:
                yield Listing(folder, prefix, rows, problems)
                rows, problems = [], []
            before = name
            try:
                status = os.stat(start + name)
            except OSError as error:
                problems.append(Found(start + name, prefix + name, 0, error.strerror or str(error)))
                continue
            if self._is_new(status):
                rows.append((name, *stamp(status)))
        if rows or problems:
            yield Listing(folder, prefix, rows, problems)

    def _is_new(self, status: os.stat_result, linked: bool = False) -> bool:
        """Whether this is a file, met for the first time; notes it where it may be met again."""
        if not stat.S_ISREG(status.st_mode):
            return False
        if self._excluded and _identity(status) in self._excluded:
            return False
        if status.st_nlink > 1 or linked:
            if _identity(status) in self._files:
                return False
            self._files.add(_identity(status))
        return True

    def _linked(self, path: str, relative: str) -> Iterator[Listing]:
        """A file reached by a link, or named itself, where no searched folder holds it."""
        folder, name = os.path.split(path)
        prefix = relative[: len(relative) - len(name)]
        try:
            status = os.stat(path)
            home = _identity(os.stat(os.path.dirname(os.path.realpath(path))))
        except OSError as error:
            absent = "a link to a file that is absent" if os.path.islink(path) else error.strerror
            problem = Found(path, relative, 0, absent or str(error))
            yield Listing(folder, prefix, [], [problem])
            return
        if home not in self._folders and self._is_new(status, linked=True):
            yield Listing(folder, prefix, [(name, *stamp(status))], [])


def _names(folder: str) -> tuple[list[str], list[str], list[str]]:
    """The names in a folder: of files, of folders, of links."""
    names: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                links.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                names.append(entry.name)
    return names, folders, links


def _listed(paths) -> list[str]:
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    return [os.fspath(path) for path in paths]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_result(manifest: Path) -> bool:
    """Whether a manifest.json was written by a run of fastmed, as its beginning says."""
    try:
        with manifest.open("rb") as file:
            return bool(_BY_FASTMED.match(file.read(_MANIFEST_BYTES)))
    except OSError:
        return False
