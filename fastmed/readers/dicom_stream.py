"""Compressed streams: the size and sample type that a frame states, before anything is decoded."""

from __future__ import annotations

import struct
from typing import NamedTuple

_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}


class StreamFacts(NamedTuple):
    """What a stream says of itself; JPEG and JPEG-LS know no sign."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool


def stream_facts(frame: bytes) -> StreamFacts | None:
    """Reads a JPEG, JPEG-LS or JPEG 2000 stream's own header; None where it has none that fits."""
    try:
        if frame.startswith(_JPEG_2000_START):
            return _jpeg_2000(frame)
        return _jpeg(frame) if frame.startswith(_JPEG_START) else None
    except (struct.error, IndexError):
        return None


def _jpeg_2000(frame: bytes) -> StreamFacts:
    x1, y1, x0, y0 = struct.unpack_from(">4L", frame, 8)
    (samples,) = struct.unpack_from(">H", frame, 40)
    depth = frame[42]
    return StreamFacts(y1 - y0, x1 - x0, samples, (depth & 0x7F) + 1, bool(depth & 0x80))


def _jpeg(frame: bytes) -> StreamFacts | None:
    offset = 2
    while frame[offset] == 0xFF:
        marker = frame[offset + 1]
        if marker in _FRAME_MARKERS:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", frame, offset + 4)
            return StreamFacts(rows, columns, samples, precision, False)
        if marker == 0xFF:  # a filler before a marker
            offset += 1
        elif marker in _WITHOUT_LENGTH:
            offset += 2
        else:
            offset += 2 + struct.unpack_from(">H", frame, offset + 2)[0]
    return None
