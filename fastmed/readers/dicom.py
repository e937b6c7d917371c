"""DICOM: from headers to series, each with a verdict and the grid its slices make."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from fastmed.geometry import Geometry
from fastmed.readers import dicom_checks as checks
from fastmed.readers import dicom_stack
from fastmed.readers.dicom_checks import Doubt
from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_kind import kind_of
from fastmed.readers.series import Series, name_from_uid
from fastmed.readers.walk import Found

MAX_PLANES = 2048
MAX_VOXELS = 2**30


@dataclass(frozen=True, eq=False)
class DicomSlices:
    """What the voxel reader needs: headers by rising z, the plane each lies on, and how many."""

    headers: tuple[Header, ...]
    z_index: tuple[float, ...]
    planes: int


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
    if kind == "ct":
        return _ct_entries(members, strict)
    verdict = "refused" if kind == "enhanced ct" else "skipped"
    return [_entry(members, kind, verdict, reason)]


def _series_key(header: Header) -> tuple:
    """What the files of one series have in common; without a series UID, its stable attributes."""
    if header.series_uid:
        return (header.study_uid, header.series_uid)
    return (
        os.path.dirname(header.path),
        *_identity(header),
    )


def _identity(header: Header) -> tuple:
    return (
        header.study_uid,
        header.frame_of_reference_uid,
        header.series_number,
        str(header.acquisition_number),
        header.kernel,
        "/".join(header.image_type[:3]),
    )


def _entry(members: list[Header], kind: str, verdict: str, reason: str, **more) -> Series:
    first = members[0]
    uids = sorted({header.sop_instance_uid for header in members})
    identity = "\n".join([*_identity(first), *uids])
    rows, columns = first.rows, first.columns
    more.setdefault("shape_zyx", (len(members), rows, columns) if rows and columns else None)
    return Series(
        name=name_from_uid(first.series_uid, identity),
        source=_source(members),
        kind=kind,
        verdict=verdict,
        reason=reason,
        files=len(members),
        members=tuple(Found(h.path, h.relative, h.file_bytes) for h in members),
        **more,
    )


def _source(members: list[Header]) -> str:
    """The one file, or the folder that all files lie in, relative to the searched folder."""
    if len(members) == 1:
        return members[0].relative
    relative = os.path.commonpath([header.relative for header in members])
    return relative or os.path.basename(os.path.commonpath([h.path for h in members]))


def _ct_entries(members: list[Header], strict: bool) -> list[Series]:
    """Judges the CT slices of one series; lenient may make several volumes of them."""
    warnings: list[str] = []
    try:
        checks.check_files(members)
        kept = checks.without_copies(members, warnings)
        checks.check_geometry(kept)
        parts = checks.parts_on_one_grid(kept)
        if len(parts) > 1 and strict:
            raise Doubt(
                f"{checks.differences(parts)}; --lenient makes {len(parts)} volumes of them"
            )
    except Doubt as doubt:
        return [_entry(members, "ct", doubt.verdict, str(doubt))]
    if len(parts) > 1:
        warnings.append(f"{checks.differences(parts)}: split into {len(parts)} volumes")
    return [_volume_entry(part, strict, list(warnings)) for part in parts]


def _volume_entry(members: list[Header], strict: bool, warnings: list[str]) -> Series:
    try:
        members = checks.one_per_position(members, strict, warnings)
        checks.check_rescale(members, strict, warnings)
        return _judged(members, strict, warnings)
    except Doubt as doubt:
        return _entry(members, "ct", doubt.verdict, str(doubt))


def _judged(members: list[Header], strict: bool, warnings: list[str]) -> Series:
    """Lays the grid through sorted, distinct slices that share rows, columns and orientation."""
    if len(members) == 1:
        raise Doubt("a series with one slice: the distance between slices is unknown")
    first = members[0]
    row, column, normal = checks.axes(first)
    found = dicom_stack.stack(np.array([h.position for h in members]), normal)
    words = found.words
    step_y, step_x = column * first.pixel_spacing[0], row * first.pixel_spacing[1]
    shape = (found.planes, first.rows, first.columns)
    if found.planes > MAX_PLANES or math.prod(shape) > MAX_VOXELS:
        raise Doubt(
            f"{words}: a uniform grid would take {found.planes} slices of {first.rows} x "
            f"{first.columns}, above the limit of {MAX_PLANES} slices and {MAX_VOXELS} voxels"
        )
    geometry = Geometry.from_axes(shape, found.first_lps_mm, [found.step_lps_mm, step_y, step_x])
    if geometry.tilt_degrees > dicom_stack.TILT_WORTH_NAMING_DEGREES:
        words = f"tilted {geometry.tilt_degrees:.1f} degrees, {words}"
    if found.state != dicom_stack.UNIFORM:
        if strict:
            raise Doubt(f"{words}; --lenient {_REMEDY[found.state]}")
        if found.sideways_mm > min(first.pixel_spacing):
            raise Doubt(f"{words}: more than a pixel, so that no one grid holds them")
        warnings.append(f"{words}: {_DONE[found.state]}")
        words += f", laid on a uniform grid of {millimetres_of(geometry)} mm"
    return _entry(
        members,
        "ct",
        "ok",
        f"CT volume, {words}",
        warnings=tuple(warnings),
        shape_zyx=shape,
        geometry=geometry,
        format="dicom",
        stored=DicomSlices(tuple(members), tuple(map(float, found.z_index)), found.planes),
    )


_REMEDY = {
    dicom_stack.MISSING: "interpolates them",
    dicom_stack.UNEVEN: "interpolates a uniform grid at the smallest gap",
    dicom_stack.SHIFTED: "takes them as lying on it",
}
_DONE = {
    dicom_stack.MISSING: "interpolated between their neighbours",
    dicom_stack.UNEVEN: "interpolated to a uniform grid at the smallest gap",
    dicom_stack.SHIFTED: "taken as lying on it",
}


def millimetres_of(geometry: Geometry) -> str:
    """Distance between the planes along their normal, in words."""
    return dicom_stack.millimetres(abs(float(geometry.steps_lps_mm[0] @ geometry.normal)))
