"""Segmentation: logits on the network's grid become labels on the scan's own grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmed.findings import Findings, measure_masks
from fastmed.geometry import Geometry
from fastmed.ops import resample_argmax
from fastmed.spec import Spec
from fastmed.volume import Volume


def decode(logits: Tensor, grid: Geometry, volume: Volume, spec: Spec) -> Findings:
    """Turns logits [classes, D, H, W] on `grid` into labels and figures on the scan's own grid.

    The label of a voxel is the argmax of the logits interpolated at its centre, ties to the lowest
    class; the grid's outermost logits hold to the edge of the scan. Then comes the spec's clean-up.
    Scans that were laid onto a uniform grid also get labels on each original slice: cut from the
    same logits or, after a clean-up, those of the nearest cleaned slice.
    """
    labels = _labels(logits, grid, volume.geometry)
    cleaned = not spec.clean_up.is_off
    if cleaned:
        from fastmed.tasks.clean_up import clean

        labels = clean(labels, spec, volume.geometry.voxel_volume_mm3 / 1000)
    slice_labels = {}
    if volume.is_resliced:
        for source in volume.slices:
            slice_labels[source.name] = (
                labels[int(np.rint(source.z_index))]
                if cleaned
                else _labels(logits, grid, volume.geometry.slab(source.z_index))[0]
            )
    return Findings(
        series=volume.name,
        source=volume.source,
        model=spec.name,
        geometry=volume.geometry,
        labels=labels,
        classes=spec.labels,
        masks=measure_masks(volume, labels, spec.labels, spec.modality),
        slice_labels=slice_labels,
        warnings=volume.warnings,
        modality=spec.modality,
    )


def _labels(logits: Tensor, grid: Geometry, target: Geometry) -> np.ndarray:
    matrix = torch.from_numpy(grid.matrix_from(target)).to(logits.device)
    return resample_argmax(logits, matrix, target.shape_zyx).cpu().numpy()
