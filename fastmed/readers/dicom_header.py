"""DICOM headers: what fastmed needs to know of one file, read without touching its pixels."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass, replace

from fastmed.readers.dicom_quiet import quietly
from fastmed.readers.dicom_words import CODE

_MARK_END = 132  # a preamble of 128 bytes, then "DICM"
_HEAD_BYTES = 1 << 16  # most headers fit; a longer one is read again from the file

_ATTRIBUTES = {
    "image_type": 0x00080008,
    "sop_class_uid": 0x00080016,
    "sop_instance_uid": 0x00080018,
    "modality": 0x00080060,
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
    "pixel_representation": 0x00280103,
    "padding": 0x00280120,
    "padding_limit": 0x00280121,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "rescale_type": 0x00281054,
}
_TAGS = [*_ATTRIBUTES.values()]
_PIXEL_DATA = 0x7FE00010
_PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
_UNDEFINED_LENGTH = b"\xff\xff\xff\xff"
_FRAGMENT, _END_OF_FRAGMENTS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_DAMAGED = "its DICOM header is damaged or cut short; copy the file again from its archive"
NATIVE = (_IMPLICIT_LITTLE, _EXPLICIT_LITTLE, _EXPLICIT_BIG)


@dataclass(frozen=True, slots=True)
class Header:
    """One DICOM file. Text is "" and numbers are None where absent or not a number.

    Code words are "?" where they are none.
    path: where to open it; relative: under the searched folder.
    position (3), orientation (6), pixel_spacing (2): LPS mm as the file gives them; () if absent.
    padding: (low, high) of the stored values that stand for "no voxel here"; None without them.
    pixel_offset: first byte of native pixels, None for compressed ones.
    has_pixels: whether the file goes on after its header with pixel data.
    cut_short: whether compressed pixels lack their end.
    """

    path: str
    relative: str
    file_bytes: int
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    modality: str
    image_type: tuple[str, ...]
    kernel: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    series_number: str
    acquisition_number: int | None
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    signed: bool
    slope: float | None
    intercept: float | None
    rescale_type: str
    padding: tuple[int, int] | None
    has_pixels: bool
    cut_short: bool
    pixel_offset: int | None

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one uncompressed image."""
        return self.rows * self.columns * self.samples * ((self.bits_allocated + 7) // 8)


def read_header(path: str, relative: str, file_bytes: int) -> Header | None:
    """Reads one file's header; None where the file is not DICOM.

    Raises OSError where it cannot be opened and ValueError where the header is damaged.
    """
    with open(path, "rb") as file:
        head = file.read(_MARK_END)
        if not _looks_like_dicom(head):
            return None
        import pydicom  # noqa: F401  out here, so that a broken pydicom is no damaged file

        head += file.read(_HEAD_BYTES)
        try:
            with quietly():
                return _read(file, head, path, relative, file_bytes)
        except OSError:
            raise
        except Exception as error:  # pydicom raises whatever its parsers meet in damaged bytes
            if head[128:132] != b"DICM":
                return None
            raise ValueError(_DAMAGED) from error


def _looks_like_dicom(head: bytes) -> bool:
    """Whether there is a DICM mark, or, in old files without one, group 2 or 8 at the start."""
    bare = (
        head[:2] in (b"\x08\x00", b"\x02\x00") and head[3:4] == b"\x00" and len(head) == _MARK_END
    )
    return head[128:132] == b"DICM" or bare


def _read(file, head: bytes, path: str, relative: str, file_bytes: int) -> Header:
    try:
        dataset, tail = _parse(io.BytesIO(head))
        complete = len(tail.bytes) == 12 or len(head) == file_bytes
    except Exception:  # perhaps only because the header goes on behind `head`
        complete = False
    if not complete:
        file.seek(0)
        dataset, tail = _parse(file)
    header = _header(path, relative, file_bytes, dataset, tail)
    if not (header.sop_class_uid.startswith("1.") or header.modality.isalpha()):
        raise ValueError("it does not say what it holds")
    if header.has_pixels and tail.bytes[8:12] == _UNDEFINED_LENGTH:
        return replace(header, cut_short=not _has_end(file, tail.offset + 12))
    return header


@dataclass(frozen=True)
class _Tail:
    """Where the header ends and the 12 bytes that follow it: those of PixelData, or none."""

    offset: int
    bytes: bytes


def _parse(file):
    """Returns (dataset, _Tail)."""
    import pydicom

    dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
    tail = _Tail(file.tell(), file.read(12))
    if getattr(dataset.file_meta, "TransferSyntaxUID", "") == _DEFLATED:
        file.seek(0)
        there = _PIXEL_DATA in pydicom.dcmread(file, specific_tags=[_PIXEL_DATA])
        tail = _Tail(0, _PIXEL_DATA_TAG * 3 if there else b"")
    return dataset, tail


def _header(path, relative, file_bytes, dataset, tail: _Tail) -> Header:
    meta = getattr(dataset, "file_meta", {})
    syntax = str(meta.get("TransferSyntaxUID", "") or "")
    implicit, little = dataset.original_encoding
    if not syntax:
        syntax = _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
    values = {name: _raw(dataset, tag) for name, tag in _ATTRIBUTES.items()}

    def text(name: str) -> str:
        return values[name].decode("latin-1").strip(" \0")

    def code(name: str) -> str:
        """A code word; other text, as damage brings it, may hold a name and is never shown."""
        word = text(name).upper()
        return word if CODE.fullmatch(word) else "?"

    def number(name: str, missing: int = 0) -> int:
        raw = values[name][:2]
        return struct.unpack("<H" if little else ">H", raw)[0] if len(raw) == 2 else missing

    def decimals(name: str) -> tuple[float, ...]:
        return tuple(_decimal(part) for part in text(name).split("\\")) if text(name) else ()

    def first_decimal(name: str) -> float | None:
        return decimals(name)[0] if text(name) else None

    def whole(name: str) -> int | None:
        value = first_decimal(name)
        return int(value) if value is not None and math.isfinite(value) else None

    signed = number("pixel_representation") == 1
    group, element = struct.unpack("<HH" if little else ">HH", tail.bytes[:4].ljust(4, b"\0"))
    has_pixels = group << 16 | element == _PIXEL_DATA
    offset = tail.offset + (8 if implicit else 12) if has_pixels and syntax in NATIVE else None
    return Header(
        path=path,
        relative=relative,
        file_bytes=file_bytes,
        transfer_syntax=syntax,
        sop_class_uid=text("sop_class_uid") or str(meta.get("MediaStorageSOPClassUID", "") or ""),
        sop_instance_uid=text("sop_instance_uid")
        or str(meta.get("MediaStorageSOPInstanceUID", "") or ""),
        modality=code("modality"),
        image_type=tuple(word.strip().upper() for word in text("image_type").split("\\")),
        kernel=text("kernel"),
        study_uid=text("study_uid"),
        series_uid=text("series_uid"),
        frame_of_reference_uid=text("frame_of_reference_uid"),
        series_number=text("series_number"),
        acquisition_number=whole("acquisition_number"),
        position=decimals("position"),
        orientation=decimals("orientation"),
        pixel_spacing=decimals("pixel_spacing"),
        rows=number("rows"),
        columns=number("columns"),
        samples=number("samples", missing=1),
        frames=whole("frames") or 1,
        photometric=code("photometric"),
        bits_allocated=number("bits_allocated"),
        bits_stored=number("bits_stored") or number("bits_allocated"),
        signed=signed,
        slope=first_decimal("slope"),
        intercept=first_decimal("intercept"),
        rescale_type=code("rescale_type"),
        padding=_padding(values["padding"], values["padding_limit"], signed, little),
        has_pixels=has_pixels,
        cut_short=False,
        pixel_offset=offset,
    )


def _has_end(file, offset: int) -> bool:
    """Walks the fragments of compressed pixels to the mark behind the last one."""
    while True:
        file.seek(offset)
        mark = file.read(8)
        if mark[:4] != _FRAGMENT or len(mark) < 8:
            return mark[:4] == _END_OF_FRAGMENTS
        offset += 8 + struct.unpack("<L", mark[4:])[0]


def _raw(dataset, tag: int) -> bytes:
    element = dataset.get_item(tag)
    value = element.value if element is not None else None
    return value if isinstance(value, bytes) else b""


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _padding(value: bytes, limit: bytes, signed: bool, little: bool) -> tuple[int, int] | None:
    """Reads the padding range; both ends have the VR that PixelRepresentation asks for."""
    if len(value) < 2:
        return None
    letter = ("<" if little else ">") + ("h" if signed else "H")
    ends = [struct.unpack(letter, raw[:2])[0] for raw in (value, limit) if len(raw) >= 2]
    return min(ends), max(ends)
