"""Compressed DICOM frames decoded by imagecodecs and the native module, both without Python's lock.

A stream is decoded only where what it says of itself is what its DICOM header says, so that no
size that damage made up is allocated. All else is left to pydicom.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_native import is_built, native_frame, native_rle
from fastmed.readers.dicom_stream import StreamFacts, stream_facts

_BASE = "1.2.840.10008.1.2."
_RLE = f"{_BASE}5"
_JPEG_2000 = {f"{_BASE}4.{n}": "jpeg2k" for n in (90, 91)}
_HTJ2K = {f"{_BASE}4.{n}": "jpeg2k" for n in (201, 202, 203)}  # OpenJPH may never end on damage
_JPEG_LS = {f"{_BASE}4.{n}": "jpegls" for n in (80, 81)}
_JPEG = {f"{_BASE}4.{n}": "jpeg8" for n in (50, 51, 57, 70)}  # libjpeg-turbo: 8 to 16 bits
_JPEG_END = b"\xff\xd9"  # without it CharLS takes seconds to see that a stream is cut short
_CODECS = {**_JPEG_2000, **_HTJ2K, **_JPEG_LS, **_JPEG}


@cache
def has_codec(transfer_syntax: str) -> bool:
    """Whether frames of a transfer syntax can be decoded here, as far as it tells."""
    return is_built() and (transfer_syntax == _RLE or _codec(transfer_syntax) is not None)


def codecs() -> dict[str, bool]:
    """The formats that imagecodecs may decode for the reader, and whether it does here."""
    return {
        "JPEG 2000 and HTJ2K": _codec(f"{_BASE}4.90") is not None,
        "JPEG-LS": _codec(f"{_BASE}4.80") is not None,
        "JPEG": _codec(f"{_BASE}4.57") is not None,
    }


def decode_frame(header: Header, target: np.ndarray) -> bool:
    """Decodes a slice into `target` [H, W]; False where that is for pydicom to do or to refuse.

    Raises RuntimeError on damaged JPEG-LS, over which pydicom's decoder may never end, and where a
    stream is larger than its header says: pydicom's decoders would allocate what it asks for.
    """
    if not has_codec(header.transfer_syntax) or header.samples != 1 or header.frames != 1:
        return False
    frame = native_frame(header.path)
    if frame is None:
        return False
    facts = None if header.transfer_syntax == _RLE else stream_facts(frame)
    if facts is not None and facts.rows * facts.columns * facts.samples > target.size:
        raise RuntimeError(
            f"its stream has {facts.rows} x {facts.columns} pixels of {facts.samples} samples, its "
            f"header says {target.shape[0]} x {target.shape[1]} of 1"
        )
    try:
        pixels = _decoded(header, frame, facts, target)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        if header.transfer_syntax in _JPEG_LS:
            raise RuntimeError(f"{error}" or type(error).__name__) from error
        return False
    if pixels is None or pixels.shape != target.shape:
        return False
    target[...] = pixels
    return True


def _codec(transfer_syntax: str):
    """imagecodecs' decoding function, None where this build of it lacks one."""
    name = _CODECS.get(transfer_syntax)
    if name is None:
        return None
    try:
        import imagecodecs
    except ImportError:
        return None
    codec = getattr(imagecodecs, name.upper(), None)
    available = codec is not None and codec.available
    return getattr(imagecodecs, f"{name}_decode") if available else None


def _decoded(
    header: Header, frame: bytes, facts: StreamFacts | None, target: np.ndarray
) -> np.ndarray | None:
    """The pixels in the type of `target`; None where the stream is not what the header says."""
    if header.transfer_syntax == _RLE:
        if not native_rle(frame, target):
            return None
        return _without_bits(target, header.bits_allocated - header.bits_stored)
    fits = facts is not None and facts[:3] == (*target.shape, 1)
    if header.transfer_syntax in _JPEG_LS and not (
        fits and frame.rstrip(b"\0").endswith(_JPEG_END)
    ):
        raise RuntimeError("its stream is cut short, or not of the size that its header says")
    if not fits:
        return None
    pixels = _codec(header.transfer_syntax)(frame)
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize != target.dtype.itemsize:
        return None
    return _without_bits(pixels.view(target.dtype), _unused_bits(header, facts))


def _unused_bits(header: Header, facts: StreamFacts) -> int:
    """How many high bits of a decoded pixel are no part of its value, by the rules of pydicom."""
    if header.transfer_syntax in _JPEG:
        return header.bits_allocated - header.bits_stored
    mends = header.signed if header.transfer_syntax in _JPEG_LS else header.signed != facts.signed
    return header.bits_allocated - facts.precision if mends else 0


def _without_bits(pixels: np.ndarray, unused: int) -> np.ndarray:
    """Drops the unused high bits, so that the highest used one is the sign of signed pixels."""
    return (pixels << unused) >> unused if unused > 0 else pixels
