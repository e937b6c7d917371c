"""Findings: what a model found in one scan, in the scan's own space."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fastmed.geometry import Geometry
from fastmed.spec import Label
from fastmed.volume import Volume

_VOXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Mask:
    """The figures of one label: volume in ml, mean HU (None where it is empty), voxel count.

    Of a grey image: no volume, the mean grey value, and pixels.
    """

    label: str
    volume_ml: float | None
    mean_hu: float | None
    voxels: int


@dataclass(frozen=True)
class Score:
    """The probability, 0..1, that a scan has a label; those of one scan sum to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Box:
    """One finding that has a place: a box, in the patient's space and on the scan's slices.

    score: its probability, 0..1; 1 where it is an annotation.
    box_lps_mm: (x1, y1, z1, x2, y2, z2), the smallest upright box in LPS mm that holds it; of grey
        images in pixels.
    diameter_mm: mean length of its sides (of a box on one slice: of the two in the plane).
    slices: first and last slice of the scan that it lies on, both counted.
    key_sop_instance_uid: the slice through its middle; "" where the scan has no UIDs.
    key_box_px: (x1, y1, x2, y2) on that slice, in its pixels; integers are pixel centres.
    """

    label: str
    score: float
    box_lps_mm: tuple[float, float, float, float, float, float]
    diameter_mm: float
    slices: tuple[int, int]
    key_sop_instance_uid: str = ""
    key_box_px: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class Findings:
    """The result of one model on one scan.

    series: the Volume's name; source: its path; model: the spec's name; modality: the spec's.
    labels: [D, H, W] uint8 or int16 label map on `geometry`, the scan's own grid; 0 is background;
        None where the model labels no voxels.
    classes: what the label values mean.
    masks: the figures of each class, in that order; empty without a label map.
    scores: of a classification, class 0 (the spec's `negative`) first; else empty.
    boxes: of a detection, by falling score; else empty.
    slice_labels: for scans laid onto a uniform grid, the [H, W] labels of each original slice by
        SOPInstanceUID, of a frame with -<frame> behind it; else empty.
    """

    series: str
    source: str
    model: str
    geometry: Geometry
    labels: np.ndarray | None
    classes: tuple[Label, ...]
    masks: tuple[Mask, ...] = ()
    slice_labels: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    modality: str = "ct"
    boxes: tuple[Box, ...] = ()


def measure_masks(
    volume: Volume, labels: np.ndarray, classes: tuple[Label, ...], modality: str = "ct"
) -> tuple[Mask, ...]:
    """Measures volume in ml, mean HU and voxel count of each class of a [D, H, W] label map.

    modality: "ct", or "grey" for images without mm, whose masks have no volume.
    """
    size = classes[-1].value + 1
    voxels, sums = np.zeros(size, np.int64), np.zeros(size)
    planes = max(1, _VOXELS_AT_ONCE // max(1, math.prod(labels.shape[1:])))
    for first in range(0, len(labels), planes):  # of a whole scan the indices alone may take a GB
        flat = labels[first : first + planes].reshape(-1)
        inside = np.flatnonzero(flat != 0)  # five times as fast as on the labels themselves
        values = flat[inside]
        stored = volume.voxels[first : first + planes].reshape(-1)[inside]
        voxels += np.bincount(values, minlength=size)[:size]
        sums += np.bincount(values, weights=stored, minlength=size)[:size]
    milliliters = volume.geometry.voxel_volume_mm3 / 1000 if modality == "ct" else None
    return tuple(
        Mask(
            label=label.name,
            volume_ml=None if milliliters is None else float(voxels[label.value] * milliliters),
            mean_hu=_mean_hu(volume, sums[label.value], voxels[label.value]),
            voxels=int(voxels[label.value]),
        )
        for label in classes
    )


def _mean_hu(volume: Volume, stored_sum: float, voxels: int) -> float | None:
    return float(volume.slope * stored_sum / voxels + volume.intercept) if voxels else None
