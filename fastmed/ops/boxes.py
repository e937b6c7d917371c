"""Overlap of boxes given by their corners, in 2D and 3D."""

import math

import torch
from torch import Tensor

from fastmed.ops import _load  # noqa: F401
from fastmed.ops._arguments import check_tensors


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every box of one set with every box of another.

    An inverted or empty box has volume 0, and an IoU of 0 with any other. Differentiable once;
    where two corners coincide each has half the gradient, and where a side, an overlap or a union
    has no extent the gradient is 0.

    Args:
        boxes1: [..., N, 4] as (x1, y1, x2, y2) or [..., N, 6] as (x1, y1, z1, x2, y2, z2);
            float16, bfloat16, float32 or float64, in any unit.
        boxes2: [..., M, 4] or [..., M, 6]; leading dimensions as in boxes1, the dtype may differ.

    Returns:
        [..., N, M], from 0 to 1; float64 where either set is float64, else float32. A NaN
        coordinate makes NaN.

    Raises:
        ValueError: the argument named has a wrong shape or device.
        TypeError: the argument named has a wrong dtype.

    Source: P. Jaccard, The distribution of the flora in the alpine zone, New Phytologist 11 (1912).
    """
    return torch.ops.fastmed.box_iou(*_checked_sets(boxes1, boxes2), False)


def box_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalized IoU of every box of one set with every box of another.

    IoU - (hull - union) / hull, where the hull is the smallest box around both; the second term is
    0 where the hull is. It has a gradient also where boxes do not meet. Differentiable once, as
    box_iou is.

    Args:
        boxes1: [..., N, 4] or [..., N, 6], as in box_iou.
        boxes2: [..., M, 4] or [..., M, 6], as in box_iou.

    Returns:
        [..., N, M], from -1 to 1; float64 where either set is float64, else float32.

    Raises:
        ValueError: the argument named has a wrong shape or device.
        TypeError: the argument named has a wrong dtype.

    Source: H. Rezatofighi et al., Generalized Intersection over Union, CVPR (2019).
    """
    return torch.ops.fastmed.box_iou(*_checked_sets(boxes1, boxes2), True)


def check_boxes(boxes: Tensor, name: str, shape: str = "[..., N, 4] or [..., N, 6]") -> None:
    """Floating boxes of four or six corners."""
    check_tensors(**{name: boxes})
    if not boxes.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating dtype, got {boxes.dtype}")
    if boxes.dim() < 2 or boxes.shape[-1] not in (4, 6):
        raise ValueError(f"{name}: expected {shape}, got {list(boxes.shape)}")


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _checked_sets(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    check_boxes(boxes1, "boxes1")
    check_boxes(boxes2, "boxes2", "[..., M, 4] or [..., M, 6]")
    if boxes2.shape[:-2] != boxes1.shape[:-2] or boxes2.shape[-1] != boxes1.shape[-1]:
        expected = [*boxes1.shape[:-2], "M", boxes1.shape[-1]]
        raise ValueError(f"boxes2: expected {expected}, got {list(boxes2.shape)}")
    if boxes2.device != boxes1.device:
        raise ValueError(f"boxes2: on {boxes2.device}, boxes1 is on {boxes1.device}")
    dtype = computing_dtype(boxes1, boxes2)
    return boxes1.to(dtype).contiguous(), boxes2.to(dtype).contiguous()


@torch.library.register_fake("fastmed::box_iou")
def _(boxes1, boxes2, generalized):
    return boxes1.new_empty([*boxes1.shape[:-1], boxes2.shape[-2]])


@torch.library.register_fake("fastmed::box_iou_backward")
def _(grad, boxes1, boxes2, generalized):
    return torch.empty_like(boxes1, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    boxes1, boxes2, ctx.generalized = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx, grad):
    # IoU and GIoU are symmetric: one op gives the gradient of the first set, and of the second.
    items = math.prod(grad.shape[:-2])
    boxes1, boxes2 = (boxes.reshape(items, *boxes.shape[-2:]) for boxes in ctx.saved_tensors)
    pairs = grad.reshape(items, *grad.shape[-2:])
    gradient = torch.ops.fastmed.box_iou_backward
    grads = [None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = gradient(pairs, boxes1, boxes2, ctx.generalized)
    if ctx.needs_input_grad[1]:
        grads[1] = gradient(pairs.mT, boxes2, boxes1, ctx.generalized)
    of_shape = [
        None if grad is None else grad.reshape(boxes.shape)
        for grad, boxes in zip(grads, ctx.saved_tensors, strict=True)
    ]
    return *of_shape, None


def _refuse_second_derivative(ctx, *grads):
    raise NotImplementedError("boxes: the overlap of boxes has no second derivative here")


torch.library.register_autograd("fastmed::box_iou", _backward, setup_context=_save)
torch.library.register_autograd("fastmed::box_iou_backward", _refuse_second_derivative)
