"""Overlap of softmax with a label map: the sums of a soft Dice loss, differentiable."""

import torch
from torch import Tensor

from fastmed.ops import _load  # noqa: F401
from fastmed.ops._arguments import check_tensors
from fastmed.ops.overlap import LABEL_DTYPES

_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def softmax_overlap(
    logits: Tensor, target: Tensor, *, ignore_index: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the intersection, the prediction and the target, per item and class.

    With p the softmax of the logits over C (at C == 1 the sigmoid, whose label is 1), and all sums
    over the voxels whose target is not ignore_index: the intersection is the sum of p where the
    target is the class, the prediction the sum of p (not squared), the target the count of its
    voxels. Neither p nor a one-hot target is ever stored: the backward pass computes p anew.

    Args:
        logits: [B, C, *spatial]; float16, bfloat16, float32 or float64. As with torch.softmax, a
            voxel with a NaN or +inf logit gives NaN.
        target: label map [B, *spatial]; bool, uint8, int8, int16, uint16, int32 or int64. Labels
            outside 0..C-1 (at C == 1 other than 1) count for no class.
        ignore_index: target label whose voxels count nowhere and get no gradient.

    Returns:
        intersection, prediction, target: [B, C] each, float32 (float64 for float64 logits), the
        same in every run. The first two have a gradient to the logits, in the logits' dtype.

    Raises:
        ValueError: the argument named has a wrong shape or value.
        TypeError: the argument named has a wrong dtype.

    Source: F. Milletari, N. Navab, S.-A. Ahmadi, V-Net: fully convolutional neural networks for
    volumetric medical image segmentation, 3DV (2016), whose loss is made of such sums.
    """
    check_tensors(logits=logits, target=target)
    if logits.dtype not in _FLOAT_DTYPES:
        raise TypeError(f"logits: expected a floating dtype, got {logits.dtype}")
    if target.dtype not in LABEL_DTYPES:
        raise TypeError(f"target: {target.dtype} is none of {', '.join(map(str, LABEL_DTYPES))}")
    if logits.dim() < 3:
        raise ValueError(f"logits: expected [B, C, *spatial], got {list(logits.shape)}")
    if logits.shape[1] < 1:
        raise ValueError(f"logits: expected at least 1 class, got {list(logits.shape)}")
    expected = [logits.shape[0], *logits.shape[2:]]
    if list(target.shape) != expected:
        raise ValueError(f"target: expected the logits' {expected}, got {list(target.shape)}")
    if target.device != logits.device:
        raise ValueError(f"target: on {target.device}, the logits are on {logits.device}")
    return torch.ops.fastmed.softmax_overlap(
        logits.flatten(2).contiguous(), target.flatten(1).contiguous(), ignore_index
    )


@torch.library.register_fake("fastmed::softmax_overlap")
def _(logits, target, ignore_index):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return tuple(logits.new_empty(logits.shape[:2], dtype=dtype) for _ in range(3))


@torch.library.register_fake("fastmed::softmax_overlap_backward")
def _(grad_intersection, grad_prediction, logits, target, ignore_index):
    return torch.empty_like(logits)


def _keep_inputs(ctx, inputs, output):
    logits, target, ctx.ignore_index = inputs
    ctx.save_for_backward(logits, target)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_intersection, grad_prediction, _):
    logits, target = ctx.saved_tensors
    gradient = torch.ops.fastmed.softmax_overlap_backward(
        grad_intersection.contiguous(),
        grad_prediction.contiguous(),
        logits,
        target,
        ctx.ignore_index,
    )
    return gradient, None, None


def _no_second_derivative(ctx, grad):
    raise NotImplementedError("softmax_overlap: has no second derivative")


torch.library.register_autograd("fastmed::softmax_overlap", _backward, setup_context=_keep_inputs)
torch.library.register_autograd("fastmed::softmax_overlap_backward", _no_second_derivative)
