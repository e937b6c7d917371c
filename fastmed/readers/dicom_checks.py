"""DICOM checks: the slices of one series against what a CT volume needs, in words where they fail.

Each function takes headers of one series and returns those that go on. What it cannot take raises
Doubt; what lenient mends, and strict may, is appended to `warnings`.
"""

from __future__ import annotations

import filecmp
import math
from collections import defaultdict

import numpy as np

from fastmed.readers import dicom_stack
from fastmed.readers.dicom_decode import why_not
from fastmed.readers.dicom_header import NATIVE, Header

_COSINE_TOLERANCE = 1e-3  # 0.06 degrees: 0.25 mm at the edge of a 500 mm field of view
_SPACING_TOLERANCE = 1e-3  # relative: 0.5 mm over 500 mm
_RESCALE_TYPES = ("", "HU", "US")  # US is "unspecified", which several scanners write for HU


class Doubt(Exception):
    """Why a series is not taken; `verdict` is "refused" or "failed"."""

    def __init__(self, reason: str, verdict: str = "refused") -> None:
        super().__init__(reason)
        self.verdict = verdict


def check_files(headers: list[Header]) -> None:
    """Finds files that are cut short, hold no pixels, or pixels that nothing here decodes."""
    for header in headers:
        name = header.relative
        if not header.has_pixels:
            raise Doubt(f"{name} has no pixel data; copy it again from its archive", "failed")
        if not (header.rows and header.columns and header.bits_allocated in (8, 16, 32)):
            raise Doubt(
                f"{name} has {header.rows} rows, {header.columns} columns and "
                f"{header.bits_allocated} bits per pixel, which is no CT image",
                "failed",
            )
        if header.cut_short:
            raise Doubt(
                f"{name} is truncated: the end of its compressed pixels is absent; copy it again "
                "from its archive",
                "failed",
            )
        if header.transfer_syntax not in NATIVE:
            if reason := why_not(header.transfer_syntax):
                raise Doubt(f"{name}: {reason}", "failed")
        else:
            there = header.file_bytes - header.pixel_offset
            if there < header.pixel_bytes:
                raise Doubt(
                    f"{name} is truncated: {max(there, 0)} of {header.pixel_bytes} bytes of "
                    "pixels; copy it again from its archive",
                    "failed",
                )


def without_copies(headers: list[Header], warnings: list[str]) -> list[Header]:
    """Drops byte-identical copies of one SOPInstanceUID."""
    by_uid: dict[str, list[Header]] = defaultdict(list)
    dropped = []
    for header in headers:
        twins = by_uid[header.sop_instance_uid] if header.sop_instance_uid else []
        if any(filecmp.cmp(header.path, twin.path, shallow=False) for twin in twins):
            dropped.append(header)
        else:
            by_uid[header.sop_instance_uid].append(header)
    if dropped:
        listed = ", ".join(header.relative for header in dropped[:3]) + (
            ", ..." if dropped[3:] else ""
        )
        what = (
            "1 identical copy of a slice"
            if len(dropped) == 1
            else (f"{len(dropped)} identical copies of slices")
        )
        warnings.append(f"{what} left out: {listed}")
    gone = {header.path for header in dropped}
    return [header for header in headers if header.path not in gone]


def check_geometry(headers: list[Header]) -> None:
    """Checks that each slice says where it lies, at right angles, and how large its pixels are."""
    for header in headers:
        name, spacing = header.relative, header.pixel_spacing
        if len(header.position) != 3 or not all(map(math.isfinite, header.position)):
            raise Doubt(f"{name} has no usable ImagePositionPatient {_shown(header.position)}")
        if len(header.orientation) != 6 or not all(map(math.isfinite, header.orientation)):
            raise Doubt(
                f"{name} has no usable ImageOrientationPatient {_shown(header.orientation)}"
            )
        row, column = np.array(header.orientation).reshape(2, 3)
        off = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
        if off > 2 * _COSINE_TOLERANCE:
            raise Doubt(
                f"{name}: the axes in ImageOrientationPatient {_shown(header.orientation)} are "
                "not unit vectors at right angles"
            )
        if len(spacing) != 2 or not all(math.isfinite(s) and s > 0 for s in spacing):
            raise Doubt(f"{name} has no usable PixelSpacing {_shown(spacing)}")
        if header.photometric not in ("MONOCHROME2", ""):
            raise Doubt(
                f"{name} is {header.photometric}, which no CT is: its values may be inverted"
            )


def parts_on_one_grid(headers: list[Header]) -> list[list[Header]]:
    """Splits slices by rows, columns, pixel spacing and orientation; the largest part first."""
    parts: list[list[Header]] = []
    for header in headers:
        for part in parts:
            if _same_plane(header, part[0]):
                part.append(header)
                break
        else:
            parts.append([header])
    return sorted(parts, key=len, reverse=True)


def differences(parts: list[list[Header]]) -> str:
    """Says what keeps the parts of one series from being one volume."""
    firsts = [part[0] for part in parts]
    words = []
    shapes = sorted({(h.rows, h.columns) for h in firsts}, reverse=True)
    if len(shapes) > 1:
        words.append("sizes (" + " and ".join(f"{r} x {c}" for r, c in shapes[:3]) + ")")
    spacings = sorted({h.pixel_spacing for h in firsts})
    if len(spacings) > 1 and not all(
        np.allclose(s, spacings[0], rtol=_SPACING_TOLERANCE) for s in spacings
    ):
        listed = " and ".join(dicom_stack.millimetres(s[0]) for s in spacings[:3])
        words.append(f"pixel spacings ({listed} mm)")
    if not all(_same_direction(h, firsts[0]) for h in firsts):
        words.append("orientations")
    counts = " and ".join(str(len(part)) for part in parts[:4])
    return f"slices of mixed {' and '.join(words)} in one series ({counts} slices)"


def one_per_position(headers: list[Header], strict: bool, warnings: list[str]) -> list[Header]:
    """Sorts slices along their normal; lenient keeps one of several at the same position.

    It keeps the one with the lowest AcquisitionNumber, then the lowest SOPInstanceUID.
    """
    headers = sorted(headers, key=lambda h: (h.position, _rank(h)))
    normal = axes(headers[0])[2]
    depths = dicom_stack.along(np.array([h.position for h in headers]), normal)
    order = np.argsort(depths, kind="stable")
    runs = [
        sorted((headers[order[k]] for k in run), key=_rank)
        for run in dicom_stack.same_positions(depths[order])
    ]
    crowded = [run for run in runs if len(run) > 1]
    if crowded:
        words = _crowd(crowded, int(np.argmax(np.abs(normal))))
        if strict:
            raise Doubt(f"{words}; --lenient keeps one of each")
        warnings.append(f"{words}: kept the lowest AcquisitionNumber, then SOPInstanceUID")
    return [run[0] for run in runs]


def check_rescale(headers: list[Header], strict: bool, warnings: list[str]) -> None:
    """Checks that the values can be made Hounsfield units."""
    for header in headers:
        name, kind = header.relative, header.rescale_type
        if kind not in _RESCALE_TYPES:
            raise Doubt(f"{name}: its RescaleType {kind[:16]!r} is not HU")
        for word, value in (("Slope", header.slope), ("Intercept", header.intercept)):
            if value is not None and (not math.isfinite(value) or (word == "Slope" and value == 0)):
                raise Doubt(f"{name}: Rescale{word} {value} is not usable")
    bare = [h for h in headers if h.slope is None or h.intercept is None]
    if bare and strict and bare[0].rescale_type != "HU":
        raise Doubt(
            f"{bare[0].relative} has no RescaleSlope and RescaleIntercept: its values may not be "
            "Hounsfield units; --lenient takes them as such"
        )
    if bare:
        warnings.append(
            f"no RescaleSlope or RescaleIntercept in {len(bare)} of {len(headers)} slices: "
            "slope 1, intercept 0 assumed"
        )


def axes(header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit LPS vectors along a row, down a column, and across the slice."""
    row, column = np.array(header.orientation).reshape(2, 3)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def _same_plane(one: Header, other: Header) -> bool:
    return (
        (one.rows, one.columns) == (other.rows, other.columns)
        and all(
            abs(a - b) <= _SPACING_TOLERANCE * b
            for a, b in zip(one.pixel_spacing, other.pixel_spacing, strict=True)
        )
        and _same_direction(one, other)
    )


def _same_direction(one: Header, other: Header) -> bool:
    return one.orientation == other.orientation or all(
        abs(a - b) <= _COSINE_TOLERANCE
        for a, b in zip(one.orientation, other.orientation, strict=True)
    )


def _rank(header: Header) -> tuple:
    acquisition = header.acquisition_number
    return (math.inf if acquisition is None else acquisition, header.sop_instance_uid)


def _crowd(crowded: list[list[Header]], axis: int) -> str:
    first = crowded[0]
    place = f"{'xyz'[axis]} = {first[0].position[axis]:.1f} mm"
    names = " and ".join(header.relative for header in first[:2])
    acquisitions = sorted({h.acquisition_number for run in crowded for h in run} - {None})
    words = f"{len(first)} different slices at {place} ({names})"
    if len(crowded) > 1:
        words += f", and the same at {len(crowded) - 1} more positions"
    if len(acquisitions) > 1:
        words += f", of {len(acquisitions)} acquisitions"
    return words


def _shown(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{v:g}' for v in values)})" if values else "(it is absent)"
