"""Slice stacks: whether the positions of a series' slices make one grid, and in words why not.

Pure functions on ImagePositionPatient (LPS mm). Slice thickness, slice location and file or
instance numbers are never looked at: they are free to lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAME_POSITION_MM = 0.01  # closer along the normal than this is the same position
TOLERANCE_MM = 0.1  # how far a slice may lie off the uniform grid: positions are often rounded
TOLERANCE_OF_GAP = 0.1  # and never more than this share of the distance between slices
TILT_WORTH_NAMING_DEGREES = 0.05

UNIFORM, MISSING, UNEVEN, SHIFTED = "uniform", "missing slices", "uneven", "shifted sideways"


@dataclass(frozen=True, eq=False)
class Stack:
    """A uniform grid through a stack of slices.

    state: UNIFORM, or what is doubtful: MISSING, UNEVEN or SHIFTED.
    spacing: UNIFORM, MISSING or UNEVEN, also where the state is SHIFTED.
    words: the spacing in words, or what is wrong and where.
    first_lps_mm [3]: position of grid plane 0; step_lps_mm [3]: from one plane to the next.
    planes: number of planes; z_index [n]: where each slice lies among them, rising, 0 .. planes-1.
    sideways_mm: how far a slice lies beside the line through the first and the last one.
    """

    state: str
    spacing: str
    words: str
    first_lps_mm: np.ndarray
    step_lps_mm: np.ndarray
    planes: int
    z_index: np.ndarray
    sideways_mm: float


def along(positions_lps_mm: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Distance in mm of each position [n, 3] along the unit normal [3]."""
    return np.asarray(positions_lps_mm, dtype=np.float64) @ normal


def same_positions(depths_mm: np.ndarray) -> list[list[int]]:
    """Groups sorted depths [n] into runs of the same position; most runs have one member."""
    breaks = np.flatnonzero(np.diff(depths_mm) >= SAME_POSITION_MM) + 1
    return [part.tolist() for part in np.split(np.arange(len(depths_mm)), breaks)]


def stack(positions_lps_mm: np.ndarray, normal: np.ndarray) -> Stack:
    """Judges positions [n, 3], n >= 2, sorted by rising depth along `normal`, all distinct.

    Slices are uniform where each lies within TOLERANCE_MM (and TOLERANCE_OF_GAP of the gap) of the
    evenly spaced points between the first and the last; that line need not follow the normal, as
    a tilted gantry shows. Other stacks get a grid at their smallest gap, which a slice in
    tolerance of a plane is taken to lie on.
    """
    positions = np.asarray(positions_lps_mm, dtype=np.float64)
    depths = along(positions, normal)
    gaps = np.diff(depths)
    span = positions[-1] - positions[0]
    share = (depths - depths[0]) / (depths[-1] - depths[0])
    sideways = float(
        np.linalg.norm(positions - (positions[0] + share[:, None] * span), axis=1).max()
    )
    per_mm = float(np.linalg.norm(span) / (depths[-1] - depths[0]))  # along the table per normal

    count = len(positions)
    step_mm = (depths[-1] - depths[0]) / (count - 1)
    residual = np.abs(depths - depths[0] - step_mm * np.arange(count)).max()
    if residual <= _tolerance(step_mm):
        z_index, planes = np.arange(count, dtype=np.float64), count
        spacing, words = UNIFORM, f"uniform {millimetres(step_mm)} mm"
    else:
        z_index, planes = _grid_at_smallest_gap(depths, gaps)
        spacing, words = _name_the_gaps(positions, gaps, normal, per_mm)
    state = spacing
    if sideways > _tolerance(step_mm):
        words = f"slices lie up to {sideways:.2f} mm beside the line of the stack" + (
            "" if spacing == UNIFORM else f", {words}"
        )
        state = SHIFTED
    step = span / (planes - 1)
    return Stack(state, spacing, words, positions[0], step, planes, z_index, sideways)


def millimetres(value: float) -> str:
    """A length as people write it: 2, 0.75, 1.25."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _tolerance(gap_mm: float) -> float:
    return min(TOLERANCE_MM, TOLERANCE_OF_GAP * gap_mm)


def _grid_at_smallest_gap(depths: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, int]:
    """Lays planes from the first to the last slice, no further apart than the smallest gap."""
    near_smallest = gaps <= gaps.min() + 2 * _tolerance(gaps.min())
    smallest = float(gaps[near_smallest].mean())
    steps = np.rint(gaps / smallest)
    if np.abs(gaps - steps * smallest).max() <= 2 * _tolerance(smallest):
        intervals = int(steps.sum())
    else:
        intervals = int(np.ceil((depths[-1] - depths[0]) / smallest - 0.01))
    z_index = (depths - depths[0]) / (depths[-1] - depths[0]) * intervals
    step_mm = (depths[-1] - depths[0]) / intervals
    on_plane = np.abs(z_index - np.rint(z_index)) * step_mm <= _tolerance(step_mm)
    return np.where(on_plane, np.rint(z_index), z_index), intervals + 1


def _name_the_gaps(positions, gaps, normal, per_mm: float) -> tuple[str, str]:
    """Tells slices that are missing from a uniform series from a series spaced unevenly."""
    usual = _most_common(gaps)
    steps = np.rint(gaps / usual)
    whole = np.abs(gaps - steps * usual) <= 2 * _tolerance(usual)
    wide = np.flatnonzero(steps > 1)
    if whole.all() and steps.min() >= 1 and 0 < len(wide) < len(gaps) / 2:
        axis = int(np.argmax(np.abs(normal)))
        places = [
            f"{int(steps[k]) - 1} between {'xyz'[axis]} = {positions[k, axis]:.1f} "
            f"and {positions[k + 1, axis]:.1f} mm"
            for k in wide
        ]
        total = int(steps[wide].sum()) - len(wide)
        noun = "slice" if total == 1 else "slices"
        if len(places) == 1:
            return MISSING, f"{total} {noun} missing {places[0].split(' ', 1)[1]}"
        listed = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if places[3:] else "")
        return MISSING, f"{total} {noun} missing: {listed}"

    words = f"unevenly spaced ({_listing(gaps)} mm"
    if per_mm > 1.0 / np.cos(np.radians(TILT_WORTH_NAMING_DEGREES)):
        words += f" along the normal; {_listing(gaps * per_mm)} along the table"
    return UNEVEN, words + ")"


def _most_common(gaps: np.ndarray) -> float:
    """The mean of the largest family of like gaps; of equal families the one of smaller gaps."""
    families = _families(gaps)
    return float(max(families, key=len).mean())


def _families(gaps: np.ndarray) -> list[np.ndarray]:
    ordered = np.sort(gaps)
    tolerance = max(_tolerance(float(ordered[0])), 1e-6)
    breaks = np.flatnonzero(np.diff(ordered) > tolerance) + 1
    return np.split(ordered, breaks)


def _listing(gaps: np.ndarray) -> str:
    means = [f"{family.mean():.2f}" for family in _families(gaps)]
    if len(means) == 1:
        return f"{gaps.min():.3f} to {gaps.max():.3f}"
    if len(means) > 4:
        return f"{len(means)} different gaps, {gaps.min():.2f} to {gaps.max():.2f}"
    return ", ".join(means[:-1]) + " and " + means[-1]
