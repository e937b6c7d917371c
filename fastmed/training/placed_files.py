"""Placed files: originals under new names, by hard link or copy, never written to."""

from __future__ import annotations

import filecmp
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fastmed.errors import FastmedError
from fastmed.writers.atomic import write_atomically

LINKED, COPIED, KEPT = "hard-linked", "copied", "there already"
_PIECE_BYTES = 1 << 20


def place(source: str | os.PathLike, target: str | os.PathLike, *, copy: bool) -> str:
    """Makes `target` the same file as `source`, or one of the same bytes; missing folders too.

    copy: True copies; False links, and copies where the disk cannot link (another disk, or a file
        system without hard links). A target of the same content is kept; another is replaced at
        once, so that it is never half-written.

    Returns LINKED, COPIED or KEPT. Raises FastmedError that names the file where a disk refuses.
    """
    source, target = os.path.realpath(source), Path(target)
    try:
        if target.exists():
            is_link = os.path.samefile(source, target)
            if not (is_link and copy) and (is_link or filecmp.cmp(source, target, shallow=False)):
                return KEPT
        if not copy and _link(source, target):
            return LINKED
    except OSError as error:
        name = error.filename or source
        raise FastmedError(f"{name}: {(error.strerror or str(error)).lower()}") from error
    write_atomically(target, _pieces(source))
    return COPIED


def _link(source: str, target: Path) -> bool:
    """Whether the disk could link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:64]}.{secrets.token_hex(6)}.tmp")
    try:
        os.link(source, temporary)
    except OSError:
        return False
    try:
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True


def _pieces(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
    except OSError as error:
        raise FastmedError(f"{path}: {(error.strerror or str(error)).lower()}") from error
