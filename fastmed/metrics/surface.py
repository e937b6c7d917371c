"""Distances between the surfaces of two masks in mm: Hausdorff 95 and surface Dice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmed.geometry import Geometry

_ROUNDING_MM = 1e-6  # two voxels of 0.7 mm are 1.4 mm, whatever the last bit says


@dataclass(frozen=True)
class SurfaceScores:
    """Distances of two surfaces.

    hausdorff_95_mm: NaN where both masks are empty, infinite where one is.
    surface_dice: 0..1; NaN where both masks are empty, 0 where one is.
    """

    hausdorff_95_mm: float
    surface_dice: float


def surface_scores(
    prediction: np.ndarray, target: np.ndarray, geometry: Geometry, tolerance_mm: float = 2.0
) -> SurfaceScores:
    """Compares the surfaces of two masks [D, H, W] on one grid.

    The surface of a mask is its voxels that have a neighbour (of 6) outside the mask or outside
    the grid; along an axis of size 1 there are no neighbours, so that a slice has an outline. A
    distance is that from the centre of a surface voxel to the nearest one of the other surface, in
    the patient's millimetres: anisotropic voxels and a tilted gantry's shear need no resampling.

    hausdorff_95_mm is the larger of the two directed 95th percentiles (linear between ranks), not
        the percentile of both directions pooled.
    surface_dice is the share of both surfaces' voxels that lie within the tolerance of the other:
        Nikolov et al., Clinically Applicable Segmentation of Head and Neck Anatomy for
        Radiotherapy, J Med Internet Res 23(7), 2021 (arXiv:1809.04430, 2018). There every element
        counts by its area; here every surface voxel counts the same.

    Raises ValueError where the shapes are not the geometry's or the tolerance is negative.
    """
    if not tolerance_mm >= 0:
        raise ValueError(f"tolerance_mm {tolerance_mm}: expected 0 or more")
    from_prediction, from_target = surface_distances(prediction, target, geometry)
    sizes = len(from_prediction), len(from_target)
    if sizes == (0, 0):
        return SurfaceScores(float("nan"), float("nan"))
    if 0 in sizes:
        return SurfaceScores(float("inf"), 0.0)
    distances = from_prediction, from_target
    near = sum(np.count_nonzero(d <= tolerance_mm + _ROUNDING_MM) for d in distances)
    return SurfaceScores(
        hausdorff_95_mm=float(max(np.percentile(d, 95) for d in distances)),
        surface_dice=float(near / sum(sizes)),
    )


def surface_distances(
    prediction: np.ndarray, target: np.ndarray, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of a mask to the nearest one of the other.

    Returns those of the prediction's surface and those of the target's, 1D float64, in the order
    of the voxels; infinite where the other mask is empty. Raises as `surface_scores` does.
    """
    for name, mask in (("prediction", prediction), ("target", target)):
        if mask.shape != geometry.shape_zyx:
            raise ValueError(f"{name}: has shape {mask.shape}, the geometry {geometry.shape_zyx}")
    surfaces = [_surface(np.asarray(mask) != 0) for mask in (prediction, target)]
    return (
        _distances(surfaces[0], surfaces[1], geometry),
        _distances(surfaces[1], surfaces[0], geometry),
    )


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices [N, 3] (z, y, x) of the surface voxels, in the order of the voxels."""
    box = _box(mask)
    if box is None:
        return np.empty((0, 3), np.int64)
    piece = mask[box]
    inside = piece.copy()
    for axis in range(3):
        if mask.shape[axis] == 1:
            continue
        along, rest = np.moveaxis(piece, axis, 0), np.moveaxis(inside, axis, 0)
        rest[1:] &= along[:-1]
        rest[:-1] &= along[1:]
        rest[0] = rest[-1] = False
    return np.argwhere(piece & ~inside) + [extent.start for extent in box]


def _box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box around a mask; None where it is empty."""
    box = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        occupied = np.flatnonzero(mask.any(axis=axes))
        if not occupied.size:
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def _distances(surface: np.ndarray, other: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Distance of each voxel of `surface` [N, 3] to the nearest of `other` [M, 3], in mm."""
    if not len(other):
        return np.full(len(surface), np.inf)
    from scipy.spatial import KDTree

    # Where the surfaces share a voxel the distance is 0, which of a good mask spares most queries.
    flat, flat_other = (np.ravel_multi_index(s.T, geometry.shape_zyx) for s in (surface, other))
    apart = ~np.isin(flat, flat_other, assume_unique=True)
    distances = np.zeros(len(surface))
    if apart.any():
        tree = KDTree(geometry.to_world(other), leafsize=32, balanced_tree=False)
        distances[apart] = tree.query(geometry.to_world(surface[apart]), workers=-1)[0]
    return distances
