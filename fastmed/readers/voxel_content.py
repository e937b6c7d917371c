"""Voxel content: CT or label map? For formats that do not say, the voxels have to."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fastmed.geometry import Geometry
from fastmed.readers.dicom_stack import TILT_WORTH_NAMING_DEGREES

AIR_HU = -1024.0  # of voxels that have no value
KERNEL_INTEGERS = ("u1", "i2", "u2", "i4")  # that the kernels take as they are stored
MAX_VOXELS = 2**30  # of one scan, whatever holds it
NOT_A_NUMBER = "voxels are not a number"  # in a reader's warning
AIR_BELOW_HU = -200.0  # a body, its lungs and the air around it are never all above this
_LABELS = 256  # a label map has no more different values than this
_BORDERS = 0.3  # and no more than this share of its neighbouring voxels differ


def content(blocks: Iterable[np.ndarray], slope: float, intercept: float) -> tuple[str, str]:
    """Tells what stored voxels are: returns (kind, reason), kind "ct", "label map" or "not in hu".

    blocks: 1D pieces of the stored voxels in file order; reading stops at the first voxel below
        AIR_BELOW_HU. Label maps are whole numbers from 0, few and lying in flat areas.
    """
    values: set[float] = set()
    borders = voxels = 0
    low, high, whole = np.inf, -np.inf, True
    for block in blocks:
        if not block.size:
            continue
        block_low, block_high = float(np.nanmin(block)), float(np.nanmax(block))
        ends = block_low * slope + intercept, block_high * slope + intercept
        low, high = min(low, *ends), max(high, *ends)
        if low < AIR_BELOW_HU:
            return "ct", ""
        voxels += block.size
        if whole and len(values) <= _LABELS:
            borders += int(np.count_nonzero(np.diff(block)))
            whole = block.dtype.kind in "iu" or bool(np.all(block == np.rint(block)))
            values.update(np.unique(block).tolist() if whole else ())
    if voxels and whole and low >= 0 and len(values) <= _LABELS and borders <= _BORDERS * voxels:
        count = len(values - {0})
        return "label map", f"a label map ({count} {'label' if count == 1 else 'labels'}), not CT"
    found = f"its values run from {low:g} to {high:g}" if voxels else "it has no voxels"
    return "not in hu", (
        f"{found}: neither Hounsfield units (air is missing: nothing lies below "
        f"{AIR_BELOW_HU:g}) nor labels; store the scan in HU"
    )


def too_large(shape: tuple[int, ...]) -> str:
    """Why voxels of this shape are not read, from the header alone; "" where they may be."""
    if math.prod(shape) <= MAX_VOXELS:
        return ""
    size = " x ".join(map(str, shape))
    return f"it says that it has {size} voxels, above the limit of {MAX_VOXELS}; crop it"


def as_kernels_take_it(voxels: np.ndarray) -> np.ndarray:
    """The same values in native byte order and in a type of the kernels."""
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    if voxels.dtype.kind == "f":
        return voxels.astype(np.float64) if voxels.dtype.itemsize > 8 else voxels
    if voxels.dtype.str[1:] in KERNEL_INTEGERS:
        return voxels
    if voxels.dtype == np.int8:
        return voxels.astype(np.int16)
    fits = int(voxels.min()) >= -(2**31) and int(voxels.max()) < 2**31
    return voxels.astype(np.int32 if fits else np.float64)


def conditions_of(kind: str, geometry: Geometry) -> tuple[str, ...]:
    """The conditions of voxels of this kind that lie on one grid."""
    if kind != "ct":
        return (kind,)
    if geometry.shape_zyx[0] == 1:
        return ("single slice",)
    leans = geometry.tilt_degrees > TILT_WORTH_NAMING_DEGREES
    return ("uniform", "tilted") if leans else ("uniform",)
