"""Zip archives: what lies in them, from their directory, which is measured before it is read."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from fastmed.readers.packed_limits import MEMBERS, Item, Unsafe, check_ratio

_DIRECTORY_BYTES = 64 << 20
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_MARK, _ENTRY = b"PK", b"PK\x01\x02"
_END_BYTES, _LOCATOR_BYTES, _RECORD_BYTES, _COMMENT_BYTES = 22, 20, 56, 1 << 16
_ENCRYPTED = 1


def zip_items(path: str) -> Iterator[Item]:
    """Yields the members of a zip archive in the order of their bytes.

    Raises Unsafe where it is too large, BadZipFile where it is damaged, OSError.
    """
    with open(path, "rb") as file:
        _check_directory(file)
        with zipfile.ZipFile(file) as packed:
            items = [info for info in packed.infolist() if not info.is_dir()]
            check_ratio(sum(info.file_size for info in items), os.fstat(file.fileno()).st_size)
            for info in sorted(items, key=lambda info: info.header_offset):
                yield _item(packed, info)


def _item(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Item:
    problem = condition = ""
    if info.flag_bits & _ENCRYPTED:
        problem, condition = "encrypted by a password; unpack it with the password", "encrypted"
    elif stat.S_ISLNK(info.external_attr >> 16):
        problem, condition = "a link, which is not followed inside an archive", "damaged"
    name, size, packed_size = info.filename, info.file_size, info.compress_size
    return Item(name, size, packed_size, lambda: packed.open(info), problem, condition)


def _check_directory(file: BinaryIO) -> None:
    """Raises Unsafe where the list of members is too long to be held in memory."""
    if file.read(2) != _MARK:
        raise zipfile.BadZipFile("it is no zip archive")
    length = file.seek(0, os.SEEK_END)
    tail_at = max(0, length - _END_BYTES - _COMMENT_BYTES - _LOCATOR_BYTES)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        raise EOFError("the list of its files, which ends it, is absent")
    count, size = struct.unpack("<HL", tail[at + 10 : at + 16])
    locator = tail[at - _LOCATOR_BYTES : at] if at >= _LOCATOR_BYTES else b""
    if locator.startswith(_LOCATOR_64):
        # There zipfile looks for it, wherever the locator says that it is.
        file.seek(max(0, tail_at + at - _LOCATOR_BYTES - _RECORD_BYTES))
        record = file.read(_RECORD_BYTES)
        if record.startswith(_END_64) and len(record) == _RECORD_BYTES:
            count, size = struct.unpack("<QQ", record[32:48])
            at -= _LOCATOR_BYTES + _RECORD_BYTES
    if count <= MEMBERS and size <= _DIRECTORY_BYTES:  # which may list more than it says
        file.seek(max(0, tail_at + at - size))
        count = max(count, file.read(size).count(_ENTRY))
    if count > MEMBERS or size > _DIRECTORY_BYTES:
        raise Unsafe(f"it lists {count} files, above the limit of {MEMBERS}", "too large")
    file.seek(0)
