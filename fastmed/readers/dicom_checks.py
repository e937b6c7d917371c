"""DICOM checks: slices one by one against what a CT volume needs, in words where they fail."""

from __future__ import annotations

import math

import numpy as np

from fastmed.readers.dicom_decode import why_not
from fastmed.readers.dicom_header import NATIVE, Header
from fastmed.readers.dicom_notes import Doubt, Notes
from fastmed.readers.voxel_content import AIR_BELOW_HU

COSINE_TOLERANCE = 1e-3  # 0.06 degrees: 0.25 mm at the edge of a 500 mm field of view
_FARTHEST_MM = 1e6  # no patient lies farther from anything; beyond it, arithmetic gives way
_PIXEL_MM = (1e-4, 1e3)
_RESCALE_TYPES = ("", "HU", "US")  # US is "unspecified", which several scanners write for HU


def check_files(headers: list[Header]) -> None:
    """Finds files that are cut short, hold no pixels, or pixels that nothing here decodes."""
    for header in headers:
        name = header.relative
        if not header.has_pixels:
            raise Doubt(
                f"{name} has no pixel data; copy it again from its archive",
                "truncated",
                verdict="failed",
            )
        if not (header.rows and header.columns and header.bits_allocated in (8, 16, 32)):
            raise Doubt(
                f"{name} has {header.rows} rows, {header.columns} columns and "
                f"{header.bits_allocated} bits per pixel, which is no CT image",
                "damaged",
                verdict="failed",
            )
        if header.cut_short:
            raise Doubt(
                f"{name} is truncated: the end of its compressed pixels is absent; copy it again "
                "from its archive",
                "truncated",
                verdict="failed",
            )
        if header.transfer_syntax not in NATIVE:
            if reason := why_not(header.transfer_syntax):
                raise Doubt(f"{name}: {reason}", "unsupported transfer syntax", verdict="failed")
        else:
            there = min(header.file_bytes - header.pixel_offset, header.pixel_length)
            expected = header.pixel_bytes * header.frames
            if there >= 2 * expected:
                raise Doubt(
                    f"{name} has {there} bytes of pixels where its header describes {expected}: "
                    "the one or the other is wrong; copy it again from its archive",
                    "damaged",
                    verdict="failed",
                )
            if there < expected:
                raise Doubt(
                    f"{name} is truncated: {max(there, 0)} of {expected} bytes of pixels; copy it "
                    "again from its archive",
                    "truncated",
                    verdict="failed",
                )


def check_geometry(headers: list[Header]) -> None:
    """Checks that each slice says where it lies, at right angles, and how large its pixels are."""
    sound = set()
    for header in headers:
        if len(header.position) != 3 or not all(abs(p) < _FARTHEST_MM for p in header.position):
            raise Doubt(
                f"{header.relative} has no usable ImagePositionPatient {_shown(header.position)}",
                "no geometry",
            )
        plane = (header.orientation, header.pixel_spacing, header.photometric)
        if plane not in sound:
            _check_plane(header)
            sound.add(plane)


def _check_plane(header: Header) -> None:
    name, spacing = header.relative, header.pixel_spacing
    if len(header.orientation) != 6 or not all(map(math.isfinite, header.orientation)):
        raise Doubt(
            f"{name} has no usable ImageOrientationPatient {_shown(header.orientation)}",
            "no geometry",
        )
    row, column = np.array(header.orientation).reshape(2, 3)
    off = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    if off > 2 * COSINE_TOLERANCE:
        raise Doubt(
            f"{name}: the axes in ImageOrientationPatient {_shown(header.orientation)} are "
            "not unit vectors at right angles",
            "no geometry",
        )
    if len(spacing) != 2 or not all(_PIXEL_MM[0] < s < _PIXEL_MM[1] for s in spacing):
        raise Doubt(f"{name} has no usable PixelSpacing {_shown(spacing)}", "no geometry")
    if header.photometric not in ("MONOCHROME2", ""):
        raise Doubt(
            f"{name} is {header.photometric}, which no CT is: its values may be inverted",
            "not in hu",
        )


def check_rescale(headers: list[Header], strict: bool, notes: Notes) -> None:
    """Checks that the values can be made Hounsfield units, and can then be those of air."""
    for header in headers:
        name, kind = header.relative, header.rescale_type
        if header.high_bit not in (-1, header.bits_stored - 1):
            raise Doubt(
                f"{name}: its HighBit {header.high_bit} does not fit its BitsStored "
                f"{header.bits_stored}: which bits hold the values is unknown",
                "not in hu",
            )
        if kind not in _RESCALE_TYPES:
            raise Doubt(f"{name}: its RescaleType {kind[:16]!r} is not HU", "not in hu")
        for word, value in (("Slope", header.slope), ("Intercept", header.intercept)):
            if value is not None and (not math.isfinite(value) or (word == "Slope" and value == 0)):
                raise Doubt(f"{name}: Rescale{word} {value} is not usable", "no rescale")
    bare = [h for h in headers if h.slope is None or h.intercept is None]
    if bare:
        notes.add("no rescale")
    lowest = min(map(_lowest_hu, {_value_range(header) for header in headers}))
    if lowest > AIR_BELOW_HU:
        raise Doubt(
            f"{headers[0].relative}: its stored values and rescale reach no lower than {lowest:g}, "
            "so that they cannot be Hounsfield units, which have air near -1000",
            "not in hu",
        )
    if bare and strict and bare[0].rescale_type != "HU":
        raise Doubt(
            f"{bare[0].relative} has no RescaleSlope and RescaleIntercept: its values may not be "
            "Hounsfield units; --lenient takes them as such"
        )
    if bare:
        notes.add(
            warning=f"no RescaleSlope or RescaleIntercept in {len(bare)} of {len(headers)} slices: "
            "slope 1, intercept 0 assumed"
        )


def axes(header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit LPS vectors along a row, down a column, and across the slice."""
    row, column = np.array(header.orientation).reshape(2, 3)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def _value_range(header: Header) -> tuple[int, bool, float, float]:
    slope = 1.0 if header.slope is None else header.slope
    bits = min(header.bits_stored, header.bits_allocated)
    return bits, header.signed, slope, header.intercept or 0.0


def _lowest_hu(value_range: tuple[int, bool, float, float]) -> float:
    bits, signed, slope, intercept = value_range
    low = -(2 ** (bits - 1)) if signed else 0
    return min(slope * low, slope * (low + 2**bits - 1)) + intercept


def _shown(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{v:g}' for v in values)})" if values else "(it is absent)"
