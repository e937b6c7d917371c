"""Boxes of a case: checked against its scan, and laid onto the network's grid."""

from __future__ import annotations

import numpy as np

from fastmed.boxes import boxes_from_lps, moved_boxes
from fastmed.geometry import Geometry
from fastmed.training.cases import Case, TruthBox

_BEYOND_VOXELS = 1.0  # how far a box may leave its scan before that is worth a warning


def size_mm(box: TruthBox, scan: Geometry) -> float:
    """Mean length of a box's sides in mm; of a box on a slice, of the two in its plane."""
    if box.box_lps_mm is not None:
        low, high = np.reshape(box.box_lps_mm, (2, 3))
        return float(np.mean(high - low))
    _, y_mm, x_mm = scan.spacing_mm_zyx
    x1, y1, x2, y2 = box.box_px
    return float(((x2 - x1) * x_mm + (y2 - y1) * y_mm) / 2)


def box_problems(case: Case, scan: Geometry, grid: Geometry) -> tuple[list[str], list[str]]:
    """What is wrong with a case's boxes, and what is doubtful, a line for each.

    A box (and a slice that is listed) outside the scan is wrong; a box that leaves it by more than
    a voxel is doubtful. grid: the network's; slices that are listed must be slices of it.
    """
    if case.slices and np.abs(grid.matrix_from(scan)[0, 1:3]).max() > 1e-6:
        return [f"{case.name}: its slices are not axial; slices.csv and its network need that"], []
    problems = [
        f"{case.name}: slice {at} outside the scan, which has the slices 0 to "
        f"{scan.shape_zyx[0] - 1}"
        for at in case.slices
        if at >= scan.shape_zyx[0]
    ]
    warnings = []
    end = np.array(scan.shape_zyx[::-1]) - 0.5
    for truth, box in zip(case.boxes, boxes_in_scan(case, scan), strict=True):
        said = truth.box_lps_mm or truth.box_px
        where = f"{case.name}: box {[round(float(v), 2) for v in said]}"
        where += "" if truth.slice is None else f" on slice {truth.slice}"
        low, high = box[:3], box[3:]
        centre = (low + high) / 2
        if (centre < -0.5).any() or (centre > end).any():
            if truth.slice is None or truth.slice < scan.shape_zyx[0]:
                problems.append(f"{where} outside the scan, its centre is not in it")
        elif (low < -0.5 - _BEYOND_VOXELS).any() or (high > end + _BEYOND_VOXELS).any():
            warnings.append(f"{where} leaves the scan by more than a voxel")
    return problems, warnings


def boxes_on_grid(case: Case, scan: Geometry, grid: Geometry) -> np.ndarray:
    """A detection's truth in voxels of the network's grid, float32.

    Of boxes in the patient [n, 7]: x1, y1, z1, x2, y2, z2 and the class. Of boxes on slices
    [n, 6]: the slice, x1, y1, x2, y2 and the class.
    """
    classes = np.array([box.label for box in case.boxes], np.float64)[:, None]
    if not case.slices:
        boxes = boxes_from_lps(_corners(case), grid)
        return np.hstack([boxes, classes]).astype(np.float32)
    boxes = moved_boxes(boxes_in_scan(case, scan), grid.matrix_from(scan))
    at = np.rint((boxes[:, 2] + boxes[:, 5]) / 2)[:, None]
    return np.hstack([at, boxes[:, (0, 1, 3, 4)], classes]).astype(np.float32)


def slices_on_grid(case: Case, scan: Geometry, grid: Geometry) -> tuple[int, ...]:
    """The slices of the network's grid that somebody looked at, rising."""
    middle = (np.array(scan.shape_zyx[1:]) - 1) / 2
    places = np.array([(at, *middle) for at in case.slices]).reshape(-1, 3)
    return tuple(sorted(np.rint(grid.to_index(scan.to_world(places))[:, 0]).astype(int).tolist()))


def boxes_in_scan(case: Case, scan: Geometry) -> np.ndarray:
    """[n, 6] float64: a case's boxes in voxels of its scan; those on slices one voxel deep."""
    if not case.slices:
        return boxes_from_lps(_corners(case), scan)
    at = np.array([box.slice for box in case.boxes], np.float64)
    x1, y1, x2, y2 = np.array([box.box_px for box in case.boxes]).reshape(-1, 4).T
    return np.stack([x1, y1, at - 0.5, x2, y2, at + 0.5], axis=1)


def _corners(case: Case) -> np.ndarray:
    return np.array([box.box_lps_mm for box in case.boxes], np.float64).reshape(-1, 6)
