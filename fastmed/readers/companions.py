"""Companions: the files beside an image file that hold its voxels, or say where they lie."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from itertools import islice

from fastmed.errors import SeriesError
from fastmed.readers.walk import Found, stamp

IMAGES = (".mha", ".mhd", ".nrrd", ".nhdr")
ARRAYS = (".npy",)
_HEADER_BYTES = 1 << 20
_MOST = 65536  # files that one header may name
_NAME_CHARS = 1000
_META = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*(\S[^\r\n]*)", re.M)
_NRRD = re.compile(rb"^data ?file:[ \t]*(\S[^\r\n]*)", re.M | re.I)
_NUMBERED = re.compile(
    r"([^%]*%0?\d{0,2}d[^%\s]*)\s+(-?\d{1,9})\s+(-?\d{1,9})\s+(-?[1-9]\d{0,8})(?:\s+\d{1,9})?",
    re.ASCII,
)


def has_companion(relative: str) -> bool:
    """Whether another file beside this one may say what is in it, as far as its name tells."""
    return relative.lower().endswith((*IMAGES, *ARRAYS))


def companions(found: Found, modality: str) -> list[Found]:
    """The files that are read together with this one, as far as they are there, as it names them.

    found: a file that can be opened. Raises OSError where it cannot be, SeriesError where it names
        what is no file: a pipe or a device may never end, a long name or a strange pattern
        may crash its reader.
    """
    lower, folder = found.relative.lower(), os.path.dirname(found.path)
    if lower.endswith(IMAGES):
        names = islice(_named_in(found.path, nrrd=lower.endswith((".nrrd", ".nhdr"))), _MOST)
    elif lower.endswith(ARRAYS) and modality == "ct":
        names = iter([os.path.splitext(os.path.basename(found.path))[0] + ".json"])
    else:
        return []
    there = []
    for name in dict.fromkeys(names):
        if len(name) > _NAME_CHARS:
            raise SeriesError(
                f"it names a file of more than {_NAME_CHARS} characters for its voxels"
            )
        path = os.path.normpath(os.path.join(folder, name))
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            relative = os.path.normpath(os.path.join(os.path.dirname(found.relative), name))
            size, mtime_ns, inode = stamp(status)
            there.append(
                Found(path, relative.replace(os.sep, "/"), size, mtime_ns=mtime_ns, inode=inode)
            )
        elif not stat.S_ISDIR(status.st_mode):
            raise SeriesError("it names a pipe or a device for its voxels; name a file there")
    return there


def is_read_from_elsewhere(found: Found, modality: str) -> bool:
    """Whether what a file holds may change while the list of its folder does not show it there:
    a companion is a link, lies in another folder, or is of another name."""
    stem = os.path.splitext(found.path)[0]
    try:
        return any(
            os.path.splitext(beside.path)[0] != stem or os.path.islink(beside.path)
            for beside in companions(found, modality)
        )
    except (OSError, SeriesError):
        return True


def _named_in(path: str, *, nrrd: bool) -> Iterator[str]:
    """The data files that a MetaImage or NRRD header names, as it writes them.

    Raises SeriesError for a pattern that is none, over which the library that reads it may crash.
    """
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    if nrrd:
        head = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    said = (_NRRD if nrrd else _META).search(head)
    if said is None:
        return
    value = os.fsdecode(said[1].strip())
    if value.upper().split()[:1] == ["LIST"]:
        lines = head[said.end() :].splitlines()
        yield from (os.fsdecode(line.strip()) for line in lines if line.strip())
    elif numbered := _NUMBERED.fullmatch(value):
        first, last, step = (int(numbered[k]) for k in (2, 3, 4))
        yield from (numbered[1] % k for k in range(first, last + (1 if step > 0 else -1), step))
    elif "%" in value:
        raise SeriesError("it names its voxels by a pattern that is none; name one file")
    elif value.upper() != "LOCAL":
        yield value
