"""DICOM copies: which of several slices at one position stays, and whether that was a choice."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from functools import cache

from fastmed.readers import dicom_stack
from fastmed.readers.dicom_header import NATIVE, Header
from fastmed.readers.dicom_notes import Doubt, Notes
from fastmed.readers.dicom_quiet import quietly


def without_identical_files(headers: list[Header], notes: Notes) -> list[Header]:
    """Drops byte-identical copies of one SOPInstanceUID."""
    digest = cache(_file_digest)  # frames share a file
    named = Counter(map(_image, headers))
    kept, dropped = set(), []
    for header in headers:
        image = _image(header)
        if header.sop_instance_uid and named[image] > 1:
            if (copy := (image, digest(header.path))) in kept:
                dropped.append(header)
            kept.add(copy)
    _note_dropped(dropped, notes)
    gone = {header.path for header in dropped}
    return [header for header in headers if header.path not in gone]


def without_identical_images(runs: list[list[Header]], notes: Notes) -> list[list[Header]]:
    """Of the slices at each position, drops those whose values and place are another's.

    runs: slices by position. A copy under a SOPInstanceUID of its own, or in another transfer
        syntax, is one as well. The first by AcquisitionNumber and SOPInstanceUID stays.
    """
    dropped: list[Header] = []
    kept = [_different(run, dropped) if len(run) > 1 else run for run in runs]
    _note_dropped(dropped, notes)
    return kept


def differ_somewhere(runs: list[list[Header]]) -> bool:
    """Whether slices at one position differ; reads no more than it takes to know."""
    return any(len(run) > 1 and len(_different(run, [])) > 1 for run in runs)


def one_per_position(runs: list[list[Header]], axis: int, strict: bool, notes: Notes) -> list:
    """Lenient keeps the slice of the lowest AcquisitionNumber, then SOPInstanceUID.

    axis: of x, y, z, the one along which a position is named. Strict raises Doubt.
    """
    crowded = [run for run in runs if len(run) > 1]
    if crowded:
        words = _crowd(crowded, axis)
        if strict:
            raise Doubt(f"{words}; --lenient keeps one of each", "duplicate positions")
        notes.add(
            "duplicate positions",
            warning=f"{words}: kept the lowest AcquisitionNumber, then SOPInstanceUID",
        )
    return [run[0] for run in runs]


def rank(header: Header) -> tuple:
    """Which of several slices at one position comes first."""
    acquisition = header.acquisition_number
    known = math.inf if acquisition is None else acquisition
    return (known, header.sop_instance_uid, header.frame, header.relative)


def _image(header: Header) -> tuple[str, int, int]:
    """What identical files of an image have in common, as far as their headers tell."""
    return (header.sop_instance_uid, header.frame, header.file_bytes)


def _file_digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _different(run: list[Header], dropped: list[Header]) -> list[Header]:
    kept: list[tuple[Header, tuple]] = []
    for header in run:
        content = _content(header)
        if any(content == known and _one_place(header, twin) for twin, known in kept):
            dropped.append(header)
        else:
            kept.append((header, content))
    return [header for header, _ in kept]


def _one_place(one: Header, other: Header) -> bool:
    apart = zip(one.position, other.position, strict=True)
    return all(abs(a - b) < dicom_stack.SAME_POSITION_MM for a, b in apart)


def _content(header: Header) -> tuple:
    """What makes the Hounsfield units of a slice: its stored pixels and how they are read."""
    try:
        pixels = hashlib.sha256(_stored_bytes(header)).digest()
    except Exception:  # unreadable pixels, whatever a parser raised on them, are nobody's copy
        pixels = (header.path, header.frame)
    return (
        pixels,
        "" if header.transfer_syntax in NATIVE[:2] else header.transfer_syntax,
        *(header.bits_allocated, header.bits_stored, header.signed),
        *(header.slope, header.intercept, header.rescale_type, header.padding),
    )


def _stored_bytes(header: Header) -> bytes:
    if header.transfer_syntax in NATIVE:
        with open(header.path, "rb") as file:
            file.seek(header.pixel_offset)
            return file.read(header.pixel_bytes)
    if header.frames > 1:  # each frame would take a pass through its whole file
        raise ValueError("a compressed frame among others")
    import pydicom

    with quietly():
        dataset = pydicom.dcmread(header.path, specific_tags=["PixelData"], force=True)
        return dataset.PixelData


def _note_dropped(dropped: list[Header], notes: Notes) -> None:
    if not dropped:
        return
    listed = ", ".join(header.relative for header in dropped[:3])
    listed += ", ..." if dropped[3:] else ""
    one = len(dropped) == 1
    what = "1 identical copy of a slice" if one else f"{len(dropped)} identical copies of slices"
    notes.add("identical copies", warning=f"{what} left out: {listed}")


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
