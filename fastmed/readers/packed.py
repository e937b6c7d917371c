"""Packed archives: .zip, .tar and .tar.gz as folders, without trusting anything that they say.

Members are copied out one by one, into names of our own: no path of an archive is ever followed,
no link, no device. What an archive says of sizes is checked before anything is unpacked.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from fastmed.errors import SeriesError
from fastmed.readers.packed_limits import PATH_CHARS, Unsafe, check_member, check_name
from fastmed.readers.packed_tar import tar_items
from fastmed.readers.packed_zip import zip_items
from fastmed.readers.walk import Found

_ZIP = (".zip",)
_TAR = (".tar", ".tar.gz", ".tgz")
_DETACHED = (".mhd", ".nhdr", ".npy")  # they may be read together with a file beside them
_UNREADABLE = (
    *(zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, EOFError, ValueError),
    *(NotImplementedError, RuntimeError),  # an unknown method, a password
)
_PIECE = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file inside an archive; `open` is good until the next member is asked for."""

    found: Found
    open: Callable[[], BinaryIO] | None


def is_packed(name: str) -> bool:
    """Whether a file is searched as a folder, as far as its name tells."""
    name = name.lower()
    return name.endswith((*_ZIP, *_TAR)) and not os.path.basename(name).startswith("._")


def members(archive: Found) -> Iterator[Member]:
    """Yields the files in an archive, each once, in the order in which they lie there.

    What cannot be unpacked has a problem and no `open`; last comes the archive itself where it is
    damaged, after all that could be read before.
    """
    items = zip_items if archive.relative.lower().endswith(_ZIP) else tar_items
    seen: set[str] = set()
    try:
        for item in items(archive.path):
            problem, condition, name = item.problem, item.condition, item.name
            if len(name) > PATH_CHARS:  # 200,000 of these would fill the memory
                problem = f"its name is longer than {PATH_CHARS} characters; it is not unpacked"
                name = f"{name[:80]}... (member {len(seen) + 1})"
            while name in seen:
                name, problem = f"{name} (again)", "its name is in the archive more than once"
            seen.add(name)
            try:
                check_name(name)
                check_member(item.size, item.packed_size)
                if is_packed(name):
                    raise Unsafe("an archive inside an archive is not opened; unpack it first")
            except Unsafe as unsafe:
                problem, condition = problem or str(unsafe), condition or unsafe.condition
            found = replace(
                archive,
                relative=f"{archive.relative}/{name}",
                file_bytes=item.size,
                problem=problem,
                condition=condition,
                member=name,
            )
            yield Member(found, None if problem else item.open)
    except Unsafe as unsafe:
        yield Member(replace(archive, problem=str(unsafe), condition=unsafe.condition), None)
    except _UNREADABLE as error:
        word = "truncated" if isinstance(error, (EOFError, tarfile.ReadError)) else "damaged"
        reason = f"the archive is {word} ({_words(error)}); {len(seen)} files could be read before"
        yield Member(replace(archive, problem=reason, condition=word), None)


def copy_out(member: Member, path: str | os.PathLike) -> None:
    """Unpacks one member to `path`.

    Raises SeriesError where its bytes are damaged, OSError where the disk fails.
    """
    try:
        with member.open() as source, open(path, "wb") as target:
            left = member.found.file_bytes
            while piece := source.read(min(_PIECE, left + 1)):
                left -= len(piece)
                if left < 0:
                    raise ValueError("it holds more than it says")
                target.write(piece)
        if left:
            raise EOFError("it holds less than it says")
    except Unsafe as unsafe:
        raise SeriesError(str(unsafe)) from unsafe
    except Exception as error:  # each way of packing raises errors of its own on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise SeriesError(f"it cannot be unpacked ({_words(error)}); copy it again") from error


@contextmanager
def unpacked(founds: Iterable[Found]) -> Iterator[list[Found]]:
    """Gives files, in the same order, that can be opened: members lie in a folder until the end.

    Raises SeriesError where a member is damaged, or no longer in its archive.
    """
    founds = list(founds)
    if not any(found.member for found in founds):
        yield founds
        return
    with tempfile.TemporaryDirectory(prefix="fastmed-") as room:
        there: dict[str, Found] = {}
        for path in dict.fromkeys(found.path for found in founds if found.member):
            inside = [found for found in founds if found.path == path and found.member]
            there.update(_unpack(inside, Path(room, str(len(there)))))
        yield [there[found.place] if found.member else found for found in founds]


def _unpack(wanted: list[Found], room: Path) -> dict[str, Found]:
    """Unpacks members of one archive, and what lies beside a file that may need it."""
    by_name = {found.member: found for found in wanted}
    stems = {_stem(name) for name in by_name if name.lower().endswith(_DETACHED)}
    folders: dict[str, Path] = {}
    there: dict[str, Found] = {}
    first = wanted[0]
    archive = replace(first, relative=first.relative[: -len(first.member) - 1], member="")
    for member in members(archive):
        name = member.found.member
        if name not in by_name and _stem(name) not in stems:
            continue
        if member.open is None:
            raise SeriesError(f"{member.found.relative}: {member.found.problem}")
        inner = os.path.dirname(name)
        folder = folders.setdefault(inner, room / str(len(folders)))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / os.path.basename(name)
        try:
            copy_out(member, path)
        except SeriesError as error:
            raise SeriesError(f"{member.found.relative}: {error}") from error
        if name in by_name:
            there[by_name[name].place] = replace(by_name[name], path=str(path), member="")
            if len(there) == len(by_name) and not stems:
                break
    if absent := [found for found in wanted if found.place not in there]:
        raise SeriesError(f"{absent[0].relative} is no longer there; index the archive again")
    return there


def batches(
    archive: Found, wanted: Callable[[Found], bool], count: int, total_bytes: int
) -> Iterator[list[tuple[Found, Found | None]]]:
    """Yields (member, the same as a file that can be opened), some at a time, in one pass.

    Raises OSError where the archive cannot be read, or the disk has no room for a batch.

    wanted: which members are unpacked; of the others, and of what is damaged, the second is None.
    The files of a batch are gone when the next is asked for.
    """
    batch: list[tuple[Found, Found | None]] = []
    held = 0
    with tempfile.TemporaryDirectory(prefix="fastmed-") as room:
        for member in members(archive):
            found, file = member.found, None
            if member.open is not None and wanted(found):
                path = os.path.join(room, str(len(batch)))
                try:
                    copy_out(member, path)
                    file = replace(found, path=path, member="")
                    held += found.file_bytes
                except SeriesError as error:
                    found = replace(found, problem=str(error), condition="damaged")
            batch.append((found, file))
            if len(batch) == count or held > total_bytes:
                yield batch
                batch, held = _emptied(room), 0
        yield batch


def _emptied(room: str) -> list:
    for entry in os.scandir(room):
        os.unlink(entry)
    return []


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _words(error: BaseException) -> str:
    text = re.sub(r"[^ -~]|'.*'", "", str(error)) or type(error).__name__
    return " ".join(text.split())[:100]
