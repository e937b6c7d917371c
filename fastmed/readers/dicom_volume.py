"""DICOM volumes: slices of one size and orientation, judged by their positions."""

from __future__ import annotations

import math

import numpy as np

from fastmed.geometry import Geometry
from fastmed.readers import dicom_checks as checks
from fastmed.readers import dicom_copies as copies
from fastmed.readers import dicom_stack
from fastmed.readers.dicom_entry import DicomSlices, doubted, entry
from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_notes import Doubt, Notes
from fastmed.readers.dicom_split import Split, declared_split, find_split
from fastmed.readers.series import Series
from fastmed.readers.voxel_content import MAX_VOXELS

MAX_PLANES = 2048


def part_entries(part: list[Header], strict: bool, notes: Notes) -> list[Series]:
    """Judges slices that share rows, columns, pixel spacing and orientation."""
    try:
        checks.check_rescale(part, strict, notes)
        runs, axis = _by_position(part)
        runs, split = _without_copies(runs, notes)
        if split is None:
            members = copies.one_per_position(runs, axis, strict, notes)
            found = _stack_of(members)
            if found is not None and len(members) == sum(map(len, runs)):
                split = find_split(*_with_depths(runs), found.state == dicom_stack.UNIFORM)
        if split is None:
            return [_judged(members, found, strict, notes)]
        notes.add(*split.conditions)
        count = len(split.volumes)
        if not split.declared and strict:
            raise Doubt(f"{split.words}; --lenient makes {count} volumes of them")
        if not split.declared:
            notes.add(warning=f"{split.words}: split into {count} volumes")
    except Doubt as doubt:
        return [doubted(part, doubt, notes)]
    return [_volume_entry(list(volume), strict, notes.copy()) for volume in split.volumes]


def _volume_entry(members: list[Header], strict: bool, notes: Notes) -> Series:
    try:
        return _judged(members, _stack_of(members), strict, notes)
    except Doubt as doubt:
        return doubted(members, doubt, notes)


def _by_position(part: list[Header]) -> tuple[list[list[Header]], int]:
    """Slices by rising depth, those at one position together; the axis they mostly lie along."""
    normal = checks.axes(min(part, key=lambda h: (h.position, copies.rank(h))))[2]
    depths = dicom_stack.along(np.array([h.position for h in part]), normal)
    order = np.argsort(depths, kind="stable")
    runs = [
        sorted((part[order[k]] for k in run), key=copies.rank)
        for run in dicom_stack.same_positions(depths[order])
    ]
    return runs, int(np.argmax(np.abs(normal)))


def _stack_of(members: list[Header]) -> dicom_stack.Stack | None:
    """The stack that sorted, distinct slices make; None of a single one."""
    if len(members) == 1:
        return None
    normal = checks.axes(members[0])[2]
    return dicom_stack.stack(np.array([h.position for h in members]), normal)


def _without_copies(runs: list[list[Header]], notes: Notes) -> tuple[list, Split | None]:
    """Leaves out identical copies, or divides the slices where some of one position differ.

    Copies are then none: what looks the same in two acquisitions may be the air around them.
    """
    if max(map(len, runs)) == 1:
        return runs, None
    if split := declared_split(*_with_depths(runs)):
        return runs, split
    split = find_split(*_with_depths(runs), False)
    if split and copies.differ_somewhere(runs):
        return runs, split
    fewer = Notes()
    single = copies.without_identical_images(runs, fewer)
    notes.add(*fewer.conditions, warning=" ".join(fewer.warnings))
    return single, None


def _with_depths(runs: list[list[Header]]) -> tuple[list[Header], np.ndarray]:
    """All slices by rising depth along their normal, and these depths in mm."""
    members = [header for run in runs for header in run]
    normal = checks.axes(members[0])[2]
    return members, dicom_stack.along(np.array([h.position for h in members]), normal)


def _judged(members: list[Header], found, strict: bool, notes: Notes) -> Series:
    """Lays the grid through sorted, distinct slices that share rows, columns and orientation."""
    if found is None:
        raise Doubt(
            "a series with one slice: the distance between slices is unknown", "single slice"
        )
    first = members[0]
    row, column, _ = checks.axes(first)
    words = found.words
    states = dict.fromkeys([found.state, found.spacing])
    doubts = [state for state in states if state != dicom_stack.UNIFORM]
    notes.add(*(_CONDITION[state] for state in doubts or states))
    step_y, step_x = column * first.pixel_spacing[0], row * first.pixel_spacing[1]
    shape = (found.planes, first.rows, first.columns)
    if found.planes > MAX_PLANES or math.prod(shape) > MAX_VOXELS:
        raise Doubt(
            f"{words}: a uniform grid would take {found.planes} slices of {first.rows} x "
            f"{first.columns}, above the limit of {MAX_PLANES} slices and {MAX_VOXELS} voxels",
            "too large",
        )
    try:
        steps = [found.step_lps_mm, step_y, step_x]
        geometry = Geometry.from_axes(shape, found.first_lps_mm, steps)
    except ValueError as error:  # voxels of nearly no volume
        raise Doubt(f"{words}: {error}", "no geometry") from error
    if geometry.tilt_degrees > dicom_stack.TILT_WORTH_NAMING_DEGREES:
        words = f"tilted {geometry.tilt_degrees:.1f} degrees, {words}"
        notes.add("tilted")
    if doubts:
        if found.spacing == dicom_stack.MISSING and found.planes > 2 * len(members):
            raise Doubt(f"{words}: more than the {len(members)} that are there; find them")
        if strict:
            remedy = " and ".join(_REMEDY[state] for state in doubts)
            raise Doubt(f"{words}; --lenient {remedy}")
        if found.sideways_mm > min(first.pixel_spacing):
            raise Doubt(f"{words}: more than a pixel, so that no one grid holds them")
        notes.add(warning=f"{words}: {', '.join(_DONE[state] for state in doubts)}")
        words += f", laid on a uniform grid of {millimetres_of(geometry)} mm"
    return entry(
        members,
        "ct",
        "ok",
        f"CT volume, {words}{_part_of_file(members)}",
        notes,
        warnings=tuple(notes.warnings),
        shape_zyx=shape,
        geometry=geometry,
        format="dicom",
        stored=DicomSlices(tuple(members), tuple(map(float, found.z_index)), found.planes),
    )


def _part_of_file(members: list[Header]) -> str:
    """Which frames of its files a volume has, where they are not all; each stack says others."""
    files = {header.path: header.frames for header in members}
    total, first = sum(files.values()), min(files)
    if max(files.values()) == 1 or total == len(members):
        return ""
    numbers = [header.frame + 1 for header in members if header.path == first]
    return f", {len(members)} of {total} frames, from {min(numbers)} to {max(numbers)}"


_CONDITION = {
    dicom_stack.UNIFORM: "uniform",
    dicom_stack.MISSING: "missing slices",
    dicom_stack.UNEVEN: "uneven",
    dicom_stack.SHIFTED: "shifted slices",
}
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
