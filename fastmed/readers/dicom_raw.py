"""Raw DICOM headers: the bytes of the attributes that fastmed needs, as pydicom finds them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from fastmed.readers.dicom_quiet import quietly

_MARK_END = 132  # a preamble of 128 bytes, then "DICM"
_HEAD_BYTES = 1 << 16  # most headers fit; a longer one is read again from the file
_MOST_INFLATED = 1 << 30  # bytes of a deflated file, which pydicom unpacks into memory
_PIECE = 1 << 20

# By rising tag.
ATTRIBUTES = {
    "image_type": 0x00080008,
    "sop_class_uid": 0x00080016,
    "sop_instance_uid": 0x00080018,
    "modality": 0x00080060,
    "slice_thickness": 0x00180050,
    "reconstruction_diameter": 0x00181100,
    "kernel": 0x00181210,
    "study_uid": 0x0020000D,
    "series_uid": 0x0020000E,
    "series_number": 0x00200011,
    "acquisition_number": 0x00200012,
    "position": 0x00200032,
    "orientation": 0x00200037,
    "frame_of_reference_uid": 0x00200052,
    "samples": 0x00280002,
    "photometric": 0x00280004,
    "frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "pixel_spacing": 0x00280030,
    "bits_allocated": 0x00280100,
    "bits_stored": 0x00280101,
    "high_bit": 0x00280102,
    "pixel_representation": 0x00280103,
    "padding": 0x00280120,
    "padding_limit": 0x00280121,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "rescale_type": 0x00281054,
}
TAGS = [*ATTRIBUTES.values()]
_PIXEL_DATA = 0x7FE00010
_PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
_UNDEFINED, _UNDEFINED_LENGTH = 0xFFFFFFFF, b"\xff\xff\xff\xff"
_PIXEL_VRS = (b"OB", b"OW", b"UN")  # odd where they stand for a length, which no length is
_FRAGMENT, _END_OF_FRAGMENTS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE = (_IMPLICIT_LITTLE, _EXPLICIT_LITTLE, _EXPLICIT_BIG)


class TooLarge(ValueError):
    """That a file unpacks to more than any scan holds."""


class RawHeader(NamedTuple):
    """What a file says before anything is made of it.

    media_class_uid, media_instance_uid: those of the file meta group.
    values: of ATTRIBUTES in their order; b"" where absent.
    cut_short: whether compressed pixels lack their end.
    pixel_offset: first byte of the pixels' value, 0 where there are none.
    pixel_length: of that value in bytes, as it says itself: 2^32 - 1 for compressed ones.
    """

    transfer_syntax: str
    implicit: bool
    little: bool
    media_class_uid: str
    media_instance_uid: str
    values: tuple[bytes, ...]
    has_pixels: bool
    cut_short: bool
    pixel_offset: int
    pixel_length: int


def read_raw(path: str | os.PathLike, file_bytes: int) -> RawHeader | None:
    """Reads a header by pydicom; None where the file is not DICOM.

    Raises OSError where it cannot be opened, TooLarge where it unpacks to too much, and ValueError
    where pydicom cannot read it.
    """
    with open(path, "rb") as file:
        head = file.read(_MARK_END)
        if not _looks_like_dicom(head):
            return None
        import pydicom  # noqa: F401  out here, so that a broken pydicom is no damaged file

        head += file.read(_HEAD_BYTES)
        try:
            with quietly():
                return _read(file, head, file_bytes)
        except (OSError, TooLarge):
            raise
        except Exception as error:  # pydicom raises whatever its parsers meet in damaged bytes
            if head[128:132] != b"DICM":
                return None
            raise ValueError("pydicom cannot read it") from error


def is_marked(path: str | os.PathLike) -> bool:
    """Whether a file has the DICM mark."""
    with open(path, "rb") as file:
        return file.read(_MARK_END)[128:] == b"DICM"


def _looks_like_dicom(head: bytes) -> bool:
    """Whether there is a DICM mark, or, in old files without one, group 2 or 8 at the start."""
    little = head[:2] in (b"\x08\x00", b"\x02\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x08", b"\x00\x02") and head[2:3] == b"\x00"
    return head[128:132] == b"DICM" or ((little or big) and len(head) == _MARK_END)


def _read(file, head: bytes, file_bytes: int) -> RawHeader:
    try:
        dataset, tail = _parse(io.BytesIO(head))
        complete = len(tail.bytes) == 12 or len(head) == file_bytes
    except Exception:  # perhaps only because the header goes on behind `head`
        complete = False
    if not complete:
        _check_inflated(file, _MARK_END if head[128:_MARK_END] == b"DICM" else 0)
        file.seek(0)
        dataset, tail = _parse(file)
    raw = _raw_header(dataset, tail)
    is_open = raw.has_pixels and tail.bytes[8:12] == _UNDEFINED_LENGTH
    if is_open and raw.transfer_syntax not in NATIVE:
        return raw._replace(cut_short=not _has_end(file, tail.offset + 12))
    return raw


def _check_inflated(file, meta_offset: int) -> None:
    """Raises TooLarge where a deflated file unpacks to too much; zlib.error where it does not."""
    from pydicom.filereader import read_dataset

    file.seek(meta_offset)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflate.eof and (piece := file.read(_PIECE)):
        while piece:
            total += len(inflate.decompress(piece, _PIECE))
            if total > _MOST_INFLATED:
                raise TooLarge(
                    f"it unpacks to more than {_MOST_INFLATED} bytes, which no file of a CT holds; "
                    "if it is one, store it in another transfer syntax"
                )
            piece = inflate.unconsumed_tail


@dataclass(frozen=True)
class _Tail:
    """Where the header ends and the 12 bytes that follow it: those of PixelData, or none."""

    offset: int
    bytes: bytes


def _parse(file):
    """Returns (dataset, _Tail)."""
    import pydicom

    dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS, force=True)
    tail = _Tail(file.tell(), file.read(12))
    if getattr(dataset.file_meta, "TransferSyntaxUID", "") == _DEFLATED:
        file.seek(0)
        there = _PIXEL_DATA in pydicom.dcmread(file, specific_tags=[_PIXEL_DATA])
        tail = _Tail(0, _PIXEL_DATA_TAG * 3 if there else b"")
    return dataset, tail


def _raw_header(dataset, tail: _Tail) -> RawHeader:
    meta = getattr(dataset, "file_meta", {})
    syntax = str(meta.get("TransferSyntaxUID", "") or "")
    implicit, little = dataset.original_encoding
    if not syntax:
        syntax = _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
    group, element = struct.unpack("<HH" if little else ">HH", tail.bytes[:4].ljust(4, b"\0"))
    has_pixels = group << 16 | element == _PIXEL_DATA
    has_vr = tail.bytes[4:6] in _PIXEL_VRS  # whatever the transfer syntax says, as pydicom reads it
    length = (tail.bytes[8:12] if has_vr else tail.bytes[4:8]).ljust(4, b"\0")
    return RawHeader(
        transfer_syntax=syntax,
        implicit=implicit,
        little=little,
        media_class_uid=str(meta.get("MediaStorageSOPClassUID", "") or ""),
        media_instance_uid=str(meta.get("MediaStorageSOPInstanceUID", "") or ""),
        values=tuple(_value(dataset, tag) for tag in TAGS),
        has_pixels=has_pixels,
        cut_short=False,
        pixel_offset=tail.offset + (12 if has_vr else 8) if has_pixels else 0,
        pixel_length=struct.unpack("<L" if little else ">L", length)[0] if has_pixels else 0,
    )


def _has_end(file, offset: int) -> bool:
    """Walks the fragments of compressed pixels to the mark behind the last one."""
    while True:
        file.seek(offset)
        mark = file.read(8)
        if mark[:4] != _FRAGMENT or len(mark) < 8:
            return mark[:4] == _END_OF_FRAGMENTS
        offset += 8 + struct.unpack("<L", mark[4:])[0]


def _value(dataset, tag: int) -> bytes:
    element = dataset.get_item(tag)
    value = element.value if element is not None else None
    if not isinstance(value, bytes):
        return b""
    if len(value) < element.length != _UNDEFINED:
        raise ValueError(f"the value of {tag:08X} is cut short")
    return value
