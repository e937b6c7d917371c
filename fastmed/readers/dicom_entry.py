"""DICOM entries: slices and a verdict on them as an entry of an index."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_kind import CONDITION_OF
from fastmed.readers.dicom_notes import Doubt, Notes, in_order
from fastmed.readers.series import Series, name_from_uid
from fastmed.readers.walk import Found


@dataclass(frozen=True, eq=False)
class DicomSlices:
    """What the voxel reader needs: headers by rising z, the plane each lies on, and how many."""

    headers: tuple[Header, ...]
    z_index: tuple[float, ...]
    planes: int


def entry(members, kind: str, verdict: str, reason: str, notes: Notes, **more) -> Series:
    """An entry of slices, of which several may be frames of one file."""
    first = members[0]
    files = list({header.path: header for header in members}.values())
    uids = sorted({header.sop_instance_uid for header in members})
    rows, columns = first.rows, first.columns
    more.setdefault("shape_zyx", (len(members), rows, columns) if rows and columns else None)
    return Series(
        name=name_from_uid(first.series_uid, "\n".join([*identity(first), *uids])),
        source=_source(files),
        kind=kind,
        verdict=verdict,
        reason=reason,
        files=len(files),
        members=tuple(Found(h.path, h.relative, h.file_bytes) for h in files),
        conditions=in_order(notes.conditions),
        **more,
    )


def skipped(members: list[Header], kind: str, reason: str, notes: Notes) -> Series:
    """The entry of what is no CT."""
    notes = notes.copy()
    notes.add(CONDITION_OF[kind])
    return entry(members, kind, "skipped", reason, notes)


def doubted(members: list[Header], doubt: Doubt, notes: Notes) -> Series:
    """The entry of CT slices that are not taken."""
    notes.add(*doubt.conditions)
    return entry(members, "ct", doubt.verdict, str(doubt), notes)


def identity(header: Header) -> tuple[str, ...]:
    """What the slices of a series without a UID have in common."""
    return (
        header.study_uid,
        header.frame_of_reference_uid,
        header.series_number,
        str(header.acquisition_number),
        header.kernel,
        "/".join(header.image_type[:3]),
    )


def _source(members: list[Header]) -> str:
    """The one file, or the folder that all files lie in, relative to the searched folder."""
    if len(members) == 1:
        return members[0].relative
    relative = os.path.commonpath([header.relative for header in members])
    return relative or os.path.basename(os.path.commonpath([h.path for h in members]))
