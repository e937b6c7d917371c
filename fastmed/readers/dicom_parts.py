"""DICOM parts: slices of one series that share rows, columns, pixel spacing and orientation."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from fastmed.readers import dicom_stack
from fastmed.readers.dicom_checks import COSINE_TOLERANCE
from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_notes import Doubt

_SPACING_TOLERANCE = 1e-3  # relative: 0.5 mm over 500 mm
_MOST = 256  # parts: each slice is held against each of them


def parts_on_one_grid(headers: list[Header]) -> list[list[Header]]:
    """Splits slices by rows, columns, pixel spacing and orientation; the largest part first.

    Raises Doubt where nearly every slice would be a part of its own.
    """
    alike: dict[tuple, list[Header]] = defaultdict(list)
    for header in headers:
        alike[header.rows, header.columns, header.pixel_spacing, header.orientation].append(header)
    parts: list[list[Header]] = []
    for group in alike.values():
        for part in parts:
            if _same_plane(group[0], part[0]):
                part += group
                break
        else:
            parts.append(group)
        if len(parts) > _MOST:
            words, conditions = differences(parts)
            raise Doubt(f"{words}: they lie in more than {_MOST} different planes", *conditions)
    return sorted(parts, key=len, reverse=True)


def differences(parts: list[list[Header]]) -> tuple[str, tuple[str, ...]]:
    """Says what keeps the parts of one series from being one volume, and its conditions."""
    firsts = [part[0] for part in parts]
    words, conditions = [], []
    shapes = sorted({(h.rows, h.columns) for h in firsts}, reverse=True)
    if len(shapes) > 1:
        words.append("sizes (" + " and ".join(f"{r} x {c}" for r, c in shapes[:3]) + ")")
        conditions.append("mixed shapes")
    spacings = sorted({h.pixel_spacing for h in firsts})
    if not all(np.allclose(s, spacings[0], rtol=_SPACING_TOLERANCE) for s in spacings):
        listed = " and ".join(dicom_stack.millimetres(s[0]) for s in spacings[:3])
        words.append(f"pixel spacings ({listed} mm)")
        conditions.append("mixed spacings")
    if not all(_same_direction(h, firsts[0]) for h in firsts):
        words.append("orientations")
        conditions.append("mixed orientations")
    counts = " and ".join(str(len(part)) for part in parts[:4])
    sentence = f"slices of mixed {' and '.join(words)} in one series ({counts} slices)"
    return sentence, tuple(conditions)


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
        abs(a - b) <= COSINE_TOLERANCE
        for a, b in zip(one.orientation, other.orientation, strict=True)
    )
