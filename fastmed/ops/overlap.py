"""Overlap of label maps: exact voxel counts per class, and the scores made of them."""

import torch
from torch import Tensor

from fastmed.ops import _load  # noqa: F401
from fastmed.ops._arguments import check_tensors

LABEL_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.int64,
)


def overlap_counts(
    prediction: Tensor, target: Tensor, num_classes: int, *, ignore_index: int | None = None
) -> Tensor:
    """Counts the voxels of the intersection, the prediction and the target, per item and class.

    Args:
        prediction: label map [B, ...]; bool, uint8, int8, int16, uint16, int32 or int64.
        target: label map of the same shape; its dtype may differ.
        num_classes: C; labels outside 0..C-1 count for no class.
        ignore_index: target label whose voxels count nowhere.

    Returns:
        int64 [B, C, 3]: intersection, prediction, target. Exact, hence deterministic.

    Raises:
        ValueError: the argument named has a wrong shape or value.
        TypeError: the argument named has a wrong dtype.
    """
    check_tensors(prediction=prediction, target=target)
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.dtype not in LABEL_DTYPES:
            raise TypeError(
                f"{name}: {labels.dtype} is none of {', '.join(map(str, LABEL_DTYPES))}"
            )
    if prediction.dim() < 1:
        raise ValueError("prediction: expected [B, ...], got a scalar")
    if target.shape != prediction.shape:
        raise ValueError(
            f"target: expected the prediction's {list(prediction.shape)}, got {list(target.shape)}"
        )
    if target.device != prediction.device:
        raise ValueError(f"target: on {target.device}, the prediction is on {prediction.device}")
    if not isinstance(num_classes, (int, torch.SymInt)):
        raise TypeError(f"num_classes: expected an integer, got {num_classes!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    return torch.ops.fastmed.overlap_counts(
        prediction.contiguous(), target.contiguous(), num_classes, ignore_index
    )


def dice_score(counts: Tensor) -> Tensor:
    """Dice coefficient 2 |P and T| / (|P| + |T|) of overlap_counts.

    float64 [B, C]; NaN where a class is absent from both.

    Source: L. R. Dice, Measures of the amount of ecologic association between species,
    Ecology 26 (1945).
    """
    intersection, prediction, target = counts.double().unbind(-1)
    return 2 * intersection / (prediction + target)


def iou_score(counts: Tensor) -> Tensor:
    """Jaccard index |P and T| / |P or T| of overlap_counts.

    float64 [B, C]; NaN where a class is absent from both.

    Source: P. Jaccard, The distribution of the flora in the alpine zone, New Phytologist 11 (1912).
    """
    intersection, prediction, target = counts.double().unbind(-1)
    return intersection / (prediction + target - intersection)


@torch.library.register_fake("fastmed::overlap_counts")
def _(prediction, target, num_classes, ignore_index):
    return prediction.new_empty([prediction.shape[0], num_classes, 3], dtype=torch.int64)
