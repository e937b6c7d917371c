"""Overlap of label maps with their truth: Dice, IoU and voxel accuracy, from exact counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmed.ops import dice_score, iou_score, overlap_counts


def segmentation_scores(
    prediction: Tensor | np.ndarray, target: Tensor | np.ndarray, num_classes: int
) -> dict[str, Any]:
    """Scores one label map, or several taken as one, against the truth.

    prediction, target: integer label maps of one shape, 0 is background; labels outside
        0..num_classes - 1 count for no class, and as wrong.

    Returns what `scores_of_counts` returns. Raises as `fastmed.ops.overlap_counts` does.
    """
    prediction, target = torch.as_tensor(prediction), torch.as_tensor(target)
    counts = overlap_counts(prediction[None], target[None], num_classes)[0]
    return scores_of_counts(counts, target.numel())


def scores_of_counts(counts: Tensor, voxels: int) -> dict[str, Any]:
    """Makes scores of overlap counts; those of several pieces may be added before.

    counts: int64 [C, 3] as of `fastmed.ops.overlap_counts`. voxels: how many were compared.

    Returns floats and lists of floats, entry k of a list for label k + 1:
        dice, iou: [C - 1]; NaN where a label is in neither.
        label_accuracy: [C - 1], share of the voxels on which both agree whether they have it.
        mean_dice, mean_iou: over the labels that are in either; NaN where none is.
        accuracy: share of the voxels that have the label of the truth, background included.
    """
    intersection, prediction, target = counts.double().cpu().unbind(-1)
    dice, iou = dice_score(counts)[1:], iou_score(counts)[1:]
    differing = (prediction + target - 2 * intersection)[1:]
    return {
        "dice": dice.tolist(),
        "iou": iou.tolist(),
        "label_accuracy": (1 - differing / voxels).tolist(),
        "mean_dice": float(dice.nanmean()),
        "mean_iou": float(iou.nanmean()),
        "accuracy": float(intersection.sum()) / voxels,
    }
