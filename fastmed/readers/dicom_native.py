"""The native DICOM reader: headers and uncompressed pixels in threads, without Python's lock.

Where it is not built (it needs POSIX), and for every file that is not as usual, others read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastmed.readers.dicom_raw import TAGS, RawHeader

try:
    from fastmed import _host
except ImportError:
    _host = None


class PixelSlice(NamedTuple):
    """One uncompressed slice; stored values from low to high become air, none where low > high."""

    path: str
    offset: int
    low: int
    high: int
    air: int


class SliceRead(NamedTuple):
    """What became of a slice: bytes that its file held, errno or 0, pixels that were padding."""

    file_bytes: int
    error: int
    padded: int


def is_built() -> bool:
    """Whether this installation has the native module."""
    return _host is not None


def native_raw(paths: Sequence[str]) -> list[RawHeader | None]:
    """Reads headers; None where the file cannot be opened, is no DICOM or is unusual."""
    if _host is None:
        return [None] * len(paths)
    answers = _host.read_headers([os.fsencode(path) for path in paths], TAGS, cores())
    return [answer and RawHeader(*answer) for answer in answers]


def native_frame(path: str) -> bytes | None:
    """The one compressed frame of a file; None where it is not whole, or the file unusual."""
    return None if _host is None else _host.read_frame(os.fsencode(path))


def native_rle(frame: bytes, target: np.ndarray) -> bool:
    """Decodes a frame of RLE into `target` [H, W]; False where it does not fill it exactly."""
    return _host.decode_rle(frame, memoryview(target).cast("B"), target.dtype.itemsize)


def native_slices(
    slices: Sequence[PixelSlice], voxels: np.ndarray, *, big_endian: bool, unused_bits: int
) -> list[SliceRead]:
    """Reads slices into `voxels` [n, H, W] (C order; 1, 2 or 4 bytes per voxel).

    unused_bits: high bits of each pixel that are no part of its value.
    """
    answers = _host.read_slices(
        [os.fsencode(each.path) for each in slices],
        [each.offset for each in slices],
        [(each.low, each.high, each.air) for each in slices],
        memoryview(voxels).cast("B"),
        voxels.dtype.itemsize,
        voxels.dtype.kind == "i",
        big_endian,
        unused_bits,
        cores(),
    )
    return [SliceRead(*answer) for answer in zip(*answers, strict=True)]


def cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
