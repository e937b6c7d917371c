"""DICOM headers: what fastmed needs to know of one file, read without touching its pixels.

The native module reads them where it is built and the file is as usual; pydicom reads the rest.
Both give raw bytes, which get their meaning here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fastmed.readers.dicom_native import native_raw
from fastmed.readers.dicom_raw import ATTRIBUTES, NATIVE, RawHeader, TooLarge, is_marked, read_raw
from fastmed.readers.dicom_words import CODE
from fastmed.readers.walk import Found

__all__ = ["NATIVE", "Header", "TooLarge", "read_header", "read_headers"]

_DAMAGED = (
    "its DICOM header is damaged, cut short or does not say what it holds; copy the file again "
    "from its archive"
)
_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR, which has no attributes of an image
_SERIES_KEPT = 256  # series whose shared attributes are remembered between slices


@dataclass(frozen=True, slots=True)
class Header:
    """One DICOM file. Text is "" and numbers are None where absent or not a number.

    Code words are "?" where they are none.
    path: where to open it; relative: under the searched folder.
    position (3), orientation (6), pixel_spacing (2): LPS mm as the file gives them; () if absent.
    padding: (low, high) of the stored values that stand for "no voxel here"; None without them.
    pixel_offset: first byte of native pixels, None for compressed ones; pixel_length: how many
        bytes they are, as they say themselves.
    has_pixels: whether the file goes on after its header with pixel data.
    cut_short: whether compressed pixels lack their end.
    high_bit: -1 if absent.
    frame: which image of a multi-frame file this is, from 0; position and the like are its own.
    stack: of which of the stacks or points in time that a multi-frame file declares; "" if none.
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
    slice_thickness: float | None = None
    reconstruction_diameter: float | None = None
    high_bit: int = -1
    pixel_length: int = 0
    frame: int = 0
    stack: str = ""

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one uncompressed image."""
        return self.rows * self.columns * self.samples * ((self.bits_allocated + 7) // 8)


def read_header(path: str, relative: str, file_bytes: int) -> Header | None:
    """Reads one file's header; None where the file is not DICOM.

    Raises OSError where it cannot be opened and ValueError where the header is damaged.
    """
    (answer,) = read_headers([Found(path, relative, file_bytes)])
    if isinstance(answer, Exception):
        raise answer
    return answer


def read_headers(
    founds: Sequence[Found],
) -> list[Header | OSError | ValueError | None]:
    """Reads the headers of many files in threads; a few hundred at a time are best.

    Returns for each file what `read_header` returns or would raise.
    """
    raws = native_raw([found.path for found in founds])
    return [_answer(found, raw) for found, raw in zip(founds, raws, strict=True)]


def _answer(found: Found, raw: RawHeader | None) -> Header | OSError | ValueError | None:
    try:
        raw = raw or read_raw(found.path, found.file_bytes)
        try:
            return raw and _header(found, raw)
        except ValueError:
            if not is_marked(found.path):
                return None
            raise
    except (OSError, TooLarge) as error:
        return error
    except ValueError as error:
        return _damaged(error)


def _damaged(cause: ValueError) -> ValueError:
    damaged = ValueError(_DAMAGED)
    damaged.__cause__ = cause
    return damaged


def _header(found: Found, raw: RawHeader) -> Header:
    values = dict(zip(ATTRIBUTES, raw.values, strict=True))
    own_uid, position = values.pop("sop_instance_uid"), values.pop("position")
    shared = _meaning(tuple(values.values()), raw.little)
    sop_class_uid = shared["sop_class_uid"] or raw.media_class_uid
    if not (any(raw.values) or raw.media_instance_uid or sop_class_uid == _DIRECTORY):
        raise ValueError("it ends within its file meta, so that its class may be cut, too")
    if not (sop_class_uid.startswith("1.") or shared["modality"].isalpha()):
        raise ValueError("it does not say what it holds")
    is_native = raw.has_pixels and raw.transfer_syntax in NATIVE
    return Header(
        path=found.path,
        relative=found.relative,
        file_bytes=found.file_bytes,
        transfer_syntax=raw.transfer_syntax,
        sop_instance_uid=_text(own_uid) or raw.media_instance_uid,
        position=_decimals(position),
        has_pixels=raw.has_pixels,
        cut_short=raw.cut_short,
        pixel_offset=raw.pixel_offset if is_native else None,
        pixel_length=raw.pixel_length if is_native else 0,
        **(shared | {"sop_class_uid": sop_class_uid}),
    )


_SHARED = [name for name in ATTRIBUTES if name not in ("sop_instance_uid", "position")]


@lru_cache(maxsize=_SERIES_KEPT)
def _meaning(values: tuple[bytes, ...], little: bool) -> dict:
    """What the attributes say that the slices of a series mostly share, by the names in Header."""
    raw = dict(zip(_SHARED, values, strict=True))

    def number(name: str, missing: int = 0) -> int:
        value = raw[name][:2]
        return struct.unpack("<H" if little else ">H", value)[0] if len(value) == 2 else missing

    signed = number("pixel_representation") == 1
    return {
        "sop_class_uid": _text(raw["sop_class_uid"]),
        "modality": _code(raw["modality"]),
        "image_type": tuple(word.strip().upper() for word in _text(raw["image_type"]).split("\\")),
        "kernel": _text(raw["kernel"]),
        "study_uid": _text(raw["study_uid"]),
        "series_uid": _text(raw["series_uid"]),
        "frame_of_reference_uid": _text(raw["frame_of_reference_uid"]),
        "series_number": _text(raw["series_number"]),
        "acquisition_number": _whole(raw["acquisition_number"]),
        "orientation": _decimals(raw["orientation"]),
        "pixel_spacing": _decimals(raw["pixel_spacing"]),
        "rows": number("rows"),
        "columns": number("columns"),
        "samples": number("samples", missing=1),
        "frames": _whole(raw["frames"]) or 1,
        "photometric": _code(raw["photometric"]),
        "bits_allocated": number("bits_allocated"),
        "bits_stored": number("bits_stored") or number("bits_allocated"),
        "high_bit": number("high_bit", missing=-1),
        "signed": signed,
        "slope": _first_decimal(raw["slope"]),
        "intercept": _first_decimal(raw["intercept"]),
        "rescale_type": _code(raw["rescale_type"]),
        "padding": _padding(raw["padding"], raw["padding_limit"], signed, little),
        "slice_thickness": _first_decimal(raw["slice_thickness"]),
        "reconstruction_diameter": _first_decimal(raw["reconstruction_diameter"]),
    }


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")


def _code(value: bytes) -> str:
    """A code word; other text, as damage brings it, may hold a name and is never shown."""
    word = _text(value).upper()
    return word if CODE.fullmatch(word) else "?"


def _decimals(value: bytes) -> tuple[float, ...]:
    text = _text(value)
    return tuple(map(_decimal, text.split("\\"))) if text else ()


def _first_decimal(value: bytes) -> float | None:
    return next(iter(_decimals(value)), None)


def _whole(value: bytes) -> int | None:
    number = _first_decimal(value)
    return int(number) if number is not None and math.isfinite(number) else None


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
