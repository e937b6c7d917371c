"""Where the lungs are in a chest CT: a coarse mask by HU and enclosure, and the box around it.

Only the box is needed, so that all of it happens on the scan's own lattice thinned to about 3 mm.
"""

from __future__ import annotations

import numpy as np
import torch

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.ops import window_resample
from fastmed.volume import Volume

AIR_BELOW_HU = -320.0
SPECK_ML = 50.0  # less is no lung: a bubble in the gut, the air in an ear
GAS_BELOW_HU = -970.0  # median: gas in gut or beside an arm has -1000, emphysema about -950
MARGIN_MM = 5.0  # of the box around the mask: the pleura and what grows on it
_COARSE_MM = 3.0
_INSIDE = 0.5  # share of a lung that lies within the outline of the body
_SLIM = 0.02  # of the largest slice of the mask: a slice with less holds airways, not lungs
_IN_PLANE = np.array([[[0] * 3] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0] * 3] * 3])


def lung_mask(volume: Volume) -> tuple[np.ndarray, Geometry]:
    """Finds both lungs: returns a mask [D, H, W] bool on a grid of about 3 mm, and that grid.

    In this order, in HU: air below -320; what touches a side of the image within its slice is
    outside the patient and goes (the top and bottom slice are no side: the lungs of a short scan
    touch them); of the connected pieces that remain, those of 50 ml or more that are no gas (their
    median above -970 HU) and lie inside the body (the largest piece of tissue once what is thinner
    than two voxels is gone, as is the shell of a table) are lungs, with the airways that hang on
    them; holes are filled slice by slice. No piece is kept for being the largest.

    The grid is the scan's own lattice, sheared as it is, with z to the head.

    Raises SeriesError, saying what was found instead, where no piece is a lung.
    """
    from scipy import ndimage

    coarse = _thinned(volume.geometry)
    hu = window_resample(
        torch.from_numpy(np.ascontiguousarray(volume.voxels)),
        torch.from_numpy(volume.geometry.matrix_from(coarse)),
        coarse.shape_zyx,
        scale=volume.slope,
        shift=volume.intercept,
    ).numpy()
    air = hu < AIR_BELOW_HU
    enclosed = _off_the_sides(air)
    pieces, _ = ndimage.label(enclosed)
    millilitres = np.bincount(pieces.reshape(-1)) * coarse.voxel_volume_mm3 / 1000
    large = [k for k in range(1, len(millilitres)) if millilitres[k] >= SPECK_ML]
    body = _body(~air) if large else None
    lungs, others = [], []
    for k in large:
        piece = pieces == k
        median = float(np.median(hu[piece]))
        if median < GAS_BELOW_HU:
            others.append(f"{millilitres[k]:.0f} ml of gas (median {median:.0f} HU)")
        elif body[piece].mean() < _INSIDE:
            others.append(f"{millilitres[k]:.0f} ml outside the body")
        else:
            lungs.append(k)
    if not lungs:
        sides_ml = np.count_nonzero(air & ~enclosed) * coarse.voxel_volume_mm3 / 1000
        inside = "; ".join(others) or f"no piece of {SPECK_ML:.0f} ml or more"
        raise SeriesError(
            f"no lungs found. Below {AIR_BELOW_HU:.0f} HU lie {sides_ml:.0f} ml that touch the "
            f"sides of the image, and enclosed by tissue: {inside}. This model needs a chest CT "
            "in HU whose images hold both lungs whole"
        )
    return _filled(np.isin(pieces, lungs)), coarse


def lung_box(volume: Volume) -> Geometry:
    """The upright box around both lungs, with a margin of 5 mm, within the scan.

    At its top and bottom it ends where the mask thins out to the airways.

    Raises SeriesError where the scan shows no lungs.
    """
    mask, coarse = lung_mask(volume)
    first, last = _slices_of_lungs(mask.sum(axis=(1, 2)))
    inside = np.argwhere(mask[first : last + 1]) + (first, 0, 0)
    upright = volume.geometry.grid((_COARSE_MM,) * 3)
    at = upright.to_index(coarse.to_world(inside))
    margin = 0.5 + MARGIN_MM / _COARSE_MM
    low = np.floor(at.min(axis=0) - margin + 0.5).astype(int)
    high = np.ceil(at.max(axis=0) + margin + 0.5).astype(int)
    low, high = np.maximum(low, 0), np.minimum(high, upright.shape_zyx)
    return upright.crop(low, high - low)


def _thinned(geometry: Geometry) -> Geometry:
    scan = geometry.along_patient()
    voxels = np.multiply(scan.shape_zyx, scan.spacing_mm_zyx) / _COARSE_MM
    return scan.resized(tuple(int(n) for n in np.maximum(np.rint(voxels), 1)))


def _off_the_sides(mask: np.ndarray) -> np.ndarray:
    """The mask without its in-plane pieces that touch the first or last row or column."""
    from scipy import ndimage

    pieces, count = ndimage.label(mask, _IN_PLANE)
    touching = np.zeros(count + 1, dtype=bool)
    for side in (pieces[:, 0], pieces[:, -1], pieces[:, :, 0], pieces[:, :, -1]):
        touching[side] = True
    touching[0] = True
    return ~touching[pieces]


def _filled(mask: np.ndarray) -> np.ndarray:
    """The mask and what it encloses within each slice."""
    return mask | _off_the_sides(~mask)


def _body(tissue: np.ndarray) -> np.ndarray:
    """The outline of the patient, slice by slice: the largest piece of what is not thin, filled."""
    from scipy import ndimage

    solid = ndimage.binary_dilation(ndimage.binary_erosion(tissue, border_value=1))
    pieces, count = ndimage.label(solid)
    if not count:
        return solid
    sizes = np.bincount(pieces.reshape(-1))
    sizes[0] = 0
    return _filled(pieces == sizes.argmax())


def _slices_of_lungs(areas: np.ndarray) -> tuple[int, int]:
    """First and last slice of the run around the largest one that is not slim."""
    slim = np.flatnonzero(areas < _SLIM * areas.max())
    largest = areas.argmax()
    first = slim[slim < largest].max(initial=-1) + 1
    last = slim[slim > largest].min(initial=len(areas)) - 1
    return int(first), int(last)
