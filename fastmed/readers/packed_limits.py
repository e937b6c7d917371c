"""Limits of packed archives: what is refused before a byte of it is unpacked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

MEMBERS = 200_000  # of one archive: their list is held in memory
MEMBER_BYTES = 8 << 30
_HARMLESS_BYTES = 1 << 30  # below this, an archive may unpack to any multiple of its size
_RATIO = 200  # CT is packed 2 to 5 times, a label map perhaps 100 times
PATH_CHARS = 4096  # of a file with its folders
_NAME_BYTES = 200  # of a file without its folders; common disks take 255
_DRIVE = re.compile(r"[A-Za-z]:")


class Unsafe(Exception):
    """Why a member or an archive is not unpacked, and under which of `series.CONDITIONS`."""

    def __init__(self, reason: str, condition: str = "damaged") -> None:
        super().__init__(reason)
        self.condition = condition


@dataclass(frozen=True)
class Item:
    """What an archive says of one member; `open` is good until the next is asked for."""

    name: str
    size: int
    packed_size: int
    open: Callable[[], BinaryIO]
    problem: str = ""
    condition: str = ""


def check_name(name: str) -> None:
    """Raises Unsafe where a name leads out of the archive or is none that a file can have."""
    parts = re.split(r"[/\\]", name)
    if ".." in parts or name[:1] in ("/", "\\") or _DRIVE.match(name):
        raise Unsafe("its name leads out of the archive; it is not unpacked")
    if not parts[-1].strip(".") or "\0" in name:
        raise Unsafe("its name is no name of a file; it is not unpacked")
    if len(name.rsplit("/", 1)[-1].encode("utf-8", "surrogatepass")) > _NAME_BYTES:
        raise Unsafe(f"its name is longer than {_NAME_BYTES} bytes; it is not unpacked")


def check_member(size: int, packed_size: int) -> None:
    """Raises Unsafe where a member is larger than any scan, or packed like none."""
    if size > MEMBER_BYTES:
        raise Unsafe(f"{size} bytes, above the limit of {MEMBER_BYTES}", "too large")
    check_ratio(size, packed_size)


def check_ratio(size: int, packed_size: int) -> None:
    """Raises Unsafe where this much, packed into so few bytes, holds no scans."""
    if size > max(_HARMLESS_BYTES, packed_size * _RATIO):
        raise Unsafe(
            f"{packed_size} bytes unpack to {size} or more, above the limit of {_RATIO} times as "
            "many: no scan is packed like this",
            "too large",
        )
