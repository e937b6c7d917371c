"""Tar archives, gzipped or not, read from their start to their end; no link is followed."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from fastmed.readers.packed_limits import MEMBERS, Item, Unsafe, check_ratio

_READ_BYTES = 16 << 20  # tarfile itself asks for no more, unless a header lies
_GZIP = b"\x1f\x8b"


def tar_items(path: str) -> Iterator[Item]:
    """Yields the members of a tar archive.

    Raises Unsafe where it is too large, TarError or EOFError where it is damaged or cut short,
    OSError.
    """
    with open(path, "rb") as file:
        packed_size = os.fstat(file.fileno()).st_size
        is_gzip = file.read(2) == _GZIP
        file.seek(0)
        stream = _Counted(gzip.GzipFile(fileobj=file) if is_gzip else file, packed_size)
        try:
            with tarfile.TarFile(fileobj=stream, mode="r") as tar:
                yield from _items(tar, is_gzip)
        except gzip.BadGzipFile as error:
            raise tarfile.TarError(str(error)) from error
        if not stream.last:
            raise EOFError("the mark that ends it is absent")
        if any(stream.last):
            raise tarfile.TarError("a header is no header")


def _items(tar: tarfile.TarFile, is_gzip: bool) -> Iterator[Item]:
    count = 0
    while (info := tar.next()) is not None:
        tar.members = []  # which it would keep, all of them
        count += 1
        if count > MEMBERS:
            raise Unsafe(f"it holds more files than the limit of {MEMBERS}", "too large")
        if info.size < 0:  # it would lead back to what was read
            raise tarfile.TarError("a header says that it is smaller than any is")
        if info.issym():
            problem = "a link, which is not followed inside an archive"
        elif info.issparse():
            problem = "a sparse file, which is not unpacked"
        elif info.isreg():
            problem = ""
        else:
            continue  # a folder; a device; a second name of a file that is there
        yield Item(
            name=info.name,
            size=info.size,
            packed_size=info.size,  # that of a gzipped one is not known: the whole is watched
            open=lambda info=info: tar.extractfile(info),
            problem=problem,
            condition="damaged" if problem else "",
        )


class _Counted(io.RawIOBase):
    """A stream that gives no more than its packed size allows, and remembers its last block."""

    def __init__(self, source: BinaryIO, packed_size: int) -> None:
        self._source = source
        self._packed_size = packed_size
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _READ_BYTES:
            raise tarfile.TarError("a header says that it is larger than any is")
        self.last = self._source.read(size)
        check_ratio(self._source.tell(), self._packed_size)
        return self.last

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        while self._source.tell() < offset - _READ_BYTES:  # by pieces, so that all is watched
            self._source.seek(_READ_BYTES, os.SEEK_CUR)
            check_ratio(self._source.tell(), self._packed_size)
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
