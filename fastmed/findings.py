"""Findings: what a model found in one scan, in the scan's own space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmed.geometry import Geometry
from fastmed.spec import Label


@dataclass(frozen=True)
class Mask:
    """The figures of one label: volume in ml, mean HU (None where it is empty), voxel count."""

    label: str
    volume_ml: float
    mean_hu: float | None
    voxels: int


@dataclass(frozen=True, eq=False)
class Findings:
    """The result of one model on one scan.

    series: the Volume's name; source: its path; model: the spec's name.
    labels: [D, H, W] uint8 or int16 label map on `geometry`, the scan's own grid; 0 is background.
    classes: what the label values mean.
    masks: the figures of each class, in that order.
    slice_labels: for scans laid onto a uniform grid, the [H, W] labels of each original slice by
        SOPInstanceUID; else empty.
    """

    series: str
    source: str
    model: str
    geometry: Geometry
    labels: np.ndarray
    classes: tuple[Label, ...]
    masks: tuple[Mask, ...]
    slice_labels: dict[str, np.ndarray]
    warnings: tuple[str, ...] = ()
