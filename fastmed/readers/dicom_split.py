"""DICOM split: several volumes among the slices of one grid, told by what makes each uniform.

An attribute divides slices into volumes only where the positions agree: each of its values must
have a uniform stack of its own. One stack that is uniform as a whole is one volume, however its
acquisitions are numbered; only reconstructions that lie between each other are then still two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastmed.readers import dicom_stack
from fastmed.readers.dicom_checks import axes
from fastmed.readers.dicom_header import Header

_FEWEST = 3  # slices that show a uniform stack: any two do


@dataclass(frozen=True)
class Split:
    """Several volumes: the slices of each, by rising z, in words, and with its conditions.

    declared: whether the file itself says that these are several stacks.
    """

    volumes: tuple[tuple[Header, ...], ...]
    words: str
    conditions: tuple[str, ...]
    declared: bool = False


def find_split(headers: list[Header], depths_mm: np.ndarray, uniform: bool) -> Split | None:
    """Divides slices of one grid, sorted by depth along their normal; None where they are one.

    uniform: whether all of them together make one uniform stack, no two at one position.
    """
    if not uniform and (split := declared_split(headers, depths_mm)):
        return split
    acquisition_of = _numbers([header.acquisition_number for header in headers])
    if not uniform and (groups := _uniform_groups(headers, depths_mm, acquisition_of)):
        groups = _joined(groups)
        if len(groups) > 1:
            words = f"{len(groups)} acquisitions in one series ({_counts(groups)} slices)"
            return Split(groups, words, ("several acquisitions",))
    found = _reconstructions(headers, depths_mm, acquisition_of, uniform)
    if found is None and not uniform:
        found = _interleaved(headers, depths_mm)
    return found


def declared_split(headers: list[Header], depths_mm: np.ndarray) -> Split | None:
    """Divides frames into the stacks that their files declare; None where they declare none."""
    groups = _uniform_groups(headers, depths_mm, _numbers([header.stack for header in headers]))
    return Split(groups, f"{len(groups)} stacks", (), declared=True) if groups else None


def _reconstructions(headers, depths_mm, acquisition_of, uniform: bool) -> Split | None:
    """Reconstructions of the same region, told apart by one attribute, or by all together."""
    told_by = {
        words: _numbers([attribute(header) for header in headers])
        for words, attribute in _RECONSTRUCTION.items()
    }
    if not uniform:  # one line through all slices leaves no two places in the plane
        told_by["places in the plane"] = _numbers(_places_in_plane(headers))
    told_by = {words: numbers for words, numbers in told_by.items() if numbers.any()}
    for words, numbers in told_by.items():
        groups = _uniform_groups(headers, depths_mm, numbers)
        if groups and _overlap(groups):
            return _overlapping(groups, f"of different {words}")
    together = [*told_by.values(), *([acquisition_of] if acquisition_of.any() else [])]
    if len(together) > 1:
        groups = _uniform_groups(headers, depths_mm, _numbers(list(zip(*together, strict=True))))
        if groups and _overlap(groups):
            split = _overlapping(groups, f"of different {' and '.join(told_by)}")
            if acquisition_of.any():
                conditions = ("several acquisitions", *split.conditions)
                return Split(split.volumes, f"{split.words}, of several acquisitions", conditions)
            return split
    return None


def _interleaved(headers, depths_mm) -> Split | None:
    """Two stacks that nothing but their positions tells apart: every other slice is one's."""
    groups = _uniform_groups(headers, depths_mm, np.arange(len(headers)) % 2)
    return _overlapping(groups, "at positions between each other") if groups else None


def _overlapping(groups, told: str) -> Split:
    words = f"{len(groups)} overlapping reconstructions in one series, {told}"
    return Split(groups, f"{words} ({_counts(groups)} slices)", ("overlapping reconstructions",))


_RECONSTRUCTION: dict[str, Callable[[Header], object]] = {
    "kernels": lambda header: header.kernel,
    "slice thicknesses": lambda header: header.slice_thickness,
    "reconstruction diameters": lambda header: header.reconstruction_diameter,
    "image types": lambda header: header.image_type,
}


def _places_in_plane(headers) -> list[tuple[float, ...]]:
    """Where each slice's first pixel is along rows and columns, to 0.1 mm."""
    row, column, _ = axes(headers[0])
    positions = np.array([header.position for header in headers])
    return [tuple(place) for place in np.round(positions @ np.stack([row, column], 1), 1).tolist()]


def _numbers(values: list) -> np.ndarray:
    """Numbers equal values alike, from 0 on, by first appearance."""
    known: dict = {}
    return np.array([known.setdefault(value, len(known)) for value in values])


def _uniform_groups(headers, depths_mm, numbers) -> tuple[tuple[Header, ...], ...]:
    """The slices of each number, where each has a uniform stack of its own; else ()."""
    count = int(numbers.max()) + 1
    if count < 2 or np.bincount(numbers).min() < _FEWEST:
        return ()
    groups = []
    for number in range(count):
        members = np.flatnonzero(numbers == number)
        group = tuple(headers[k] for k in members)
        if np.diff(depths_mm[members]).min() < dicom_stack.SAME_POSITION_MM:
            return ()
        if not _is_uniform(group):
            return ()
        groups.append(group)
    return tuple(groups)


def _is_uniform(group) -> bool:
    positions = np.array([header.position for header in group])
    return dicom_stack.stack(positions, axes(group[0])[2]).state == dicom_stack.UNIFORM


def _joined(groups) -> tuple[tuple[Header, ...], ...]:
    """Makes one of neighbours that go on from each other at the same step, as one scan does."""
    normal = axes(groups[0][0])[2]

    def depth(header: Header) -> float:
        return float(normal @ header.position)

    joined: list[tuple[Header, ...]] = []
    for group in sorted(groups, key=lambda group: depth(group[0])):
        follows = joined and depth(group[0]) - depth(joined[-1][-1]) > dicom_stack.SAME_POSITION_MM
        if follows and _is_uniform(joined[-1] + group):
            joined[-1] += group
        else:
            joined.append(group)
    return tuple(joined)


def _overlap(groups) -> bool:
    """Whether any two stacks share a part of their reach."""
    normal = axes(groups[0][0])[2]
    ends = [(float(normal @ g[0].position), float(normal @ g[-1].position)) for g in groups]
    return any(later[0] <= earlier[1] for earlier, later in pairwise(sorted(ends)))


def _counts(groups) -> str:
    shown = " and ".join(str(len(group)) for group in groups[:4])
    return shown + (" and more" if groups[4:] else "")
