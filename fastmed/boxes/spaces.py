"""Boxes from one space to another: between grids, and between a grid and the patient."""

from __future__ import annotations

import numpy as np

from fastmed.geometry import Geometry


def moved_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The boxes on another grid.

    A box stands for the ellipsoid that fills it, and its image is the upright box around the
    ellipsoid's image. For flips, zooms and exchanged axes that is the image of the box itself; a
    turn makes it larger only as far as the ellipsoid reaches, where the box around the eight turned
    corners would grow by up to 73 % a side.

    Args:
        boxes: [n, 6] (x1, y1, z1, x2, y2, z2) in voxels.
        matrix: [3, 4] from an index (z, y, x, 1) of their grid to one (z, y, x) of the other.

    Returns:
        [n, 6] float64 in voxels of the other grid.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    linear = matrix[:, :3]
    middle, half = _middle_and_half(boxes)
    middle = middle[:, ::-1] @ linear.T + matrix[:, 3]
    half = _reach(half[:, ::-1], linear)
    return _corners(middle[:, ::-1], half[:, ::-1])


def boxes_to_lps(boxes_grid: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Boxes [n, 6] in voxels of a grid as upright boxes [n, 6] float64 in LPS mm.

    Both (x1, y1, z1, x2, y2, z2); as `moved_boxes`, of any geometry, flipped or tilted.
    """
    middle, half = _middle_and_half(boxes_grid)
    half = _reach(half[:, ::-1], geometry.steps_lps_mm.T)
    return _corners(geometry.to_world(middle[:, ::-1]), half)


def boxes_from_lps(boxes_lps: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Boxes [n, 6] in LPS mm as upright boxes [n, 6] float64 in voxels of a grid.

    The inverse of `boxes_to_lps` where the grid's axes are the patient's.
    """
    middle, half = _middle_and_half(boxes_lps)
    half = _reach(half, np.linalg.inv(geometry.steps_lps_mm.T))
    return _corners(geometry.to_index(middle)[:, ::-1], half[:, ::-1])


def _reach(half: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """How far the images of ellipsoids of half lengths [n, 3] reach along each new axis."""
    return np.sqrt(half**2 @ (linear**2).T)


def _middle_and_half(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.split(np.asarray(boxes, dtype=np.float64).reshape(-1, 6), 2, axis=1)
    return (low + high) / 2, (high - low) / 2


def _corners(middle: np.ndarray, half: np.ndarray) -> np.ndarray:
    return np.concatenate([middle - half, middle + half], axis=1)
