"""DICOM: from headers to series, each with a verdict and the grid its slices make."""

from __future__ import annotations

import os
from collections import defaultdict

from fastmed.readers import dicom_checks as checks
from fastmed.readers import dicom_copies as copies
from fastmed.readers.dicom_encryption import has_encrypted_attributes
from fastmed.readers.dicom_entry import doubted, identity, skipped
from fastmed.readers.dicom_frames import frames_of
from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_kind import is_derived, kind_of
from fastmed.readers.dicom_notes import Doubt, Notes
from fastmed.readers.dicom_parts import differences, parts_on_one_grid
from fastmed.readers.dicom_volume import part_entries
from fastmed.readers.series import Series


def series_of(headers: list[Header], *, strict: bool) -> list[Series]:
    """Groups headers into series, judges each, and returns one entry for each volume or group."""
    groups: dict[tuple[str, ...], list[Header]] = defaultdict(list)
    for header in headers:
        groups[group_key(header)].append(header)
    first = sorted(groups.values(), key=lambda group: min((h.relative, h.path) for h in group))
    return [entry for group in first for entry in judge_group(group, strict=strict)]


def group_key(header: Header) -> tuple[str, ...]:
    """What the files that are judged together have in common: their kind and their series."""
    kind, reason = kind_of(header)
    return (kind, reason if kind != "ct" else "", *_series_key(header))


def judge_group(members: list[Header], *, strict: bool) -> list[Series]:
    """Judges all files of one group_key, in any order; one entry for each volume, or one of all.

    strict: refuse what is doubtful; False goes on where that is possible, with a warning.
    """
    members = sorted(members, key=lambda h: (h.relative, h.path))
    kind, reason = kind_of(members[0])
    if kind not in ("ct", "enhanced ct"):
        return [skipped(members, kind, reason, Notes())]
    notes = Notes(["enhanced multi-frame"] if kind == "enhanced ct" else [])
    try:
        checks.check_files(members)
        slices = members if kind == "ct" else [f for file in members for f in frames_of(file)]
    except Doubt as doubt:
        return [doubted(members, _or_encrypted(doubt, members), notes)]
    return _entries_by_kind(slices, strict, notes)


def _series_key(header: Header) -> tuple:
    """What the files of one series have in common; without a series UID, its stable attributes."""
    if header.series_uid:
        return (header.study_uid, header.series_uid)
    return (
        os.path.dirname(header.path),
        *identity(header),
    )


def _entries_by_kind(slices: list[Header], strict: bool, notes: Notes) -> list[Series]:
    """Judges CT slices; a multi-frame file may also hold other frames, which are skipped."""
    by_kind: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for one in slices:
        by_kind[kind_of(one)].append(one)
    entries = []
    for (kind, reason), members in by_kind.items():
        if kind in ("ct", "enhanced ct"):
            entries += _ct_entries(members, strict, notes.copy())
        else:
            entries.append(skipped(members, kind, reason, notes))
    return entries


def _ct_entries(members: list[Header], strict: bool, notes: Notes) -> list[Series]:
    """Judges the CT slices of one series; lenient may make several volumes of them."""
    try:
        kept = copies.without_identical_files(members, notes)
        if any(map(is_derived, kept)):
            notes.add("derived")
        checks.check_geometry(kept)
        parts = parts_on_one_grid(kept)
        if len(parts) > 1:
            words, conditions = differences(parts)
            notes.add(*conditions)
            if strict:
                raise Doubt(f"{words}; --lenient makes {len(parts)} volumes of them")
            notes.add(warning=f"{words}: split into {len(parts)} volumes")
    except Doubt as doubt:
        return [doubted(members, _or_encrypted(doubt, members), notes)]
    return [entry for part in parts for entry in part_entries(part, strict, notes.copy())]


def _or_encrypted(doubt: Doubt, members: list[Header]) -> Doubt:
    """The doubt, or that what is absent from these slices is there for those who have the key."""
    absent = {"no geometry", "truncated", "damaged"} & {*doubt.conditions}
    if absent and has_encrypted_attributes(members[0].path):
        return Doubt(_ENCRYPTED.format(members[0].relative), "encrypted", verdict="failed")
    return doubt


_ENCRYPTED = (
    "{}: attributes that a volume needs are encrypted (EncryptedAttributesSequence); have whoever "
    "holds the key decrypt the series"
)
