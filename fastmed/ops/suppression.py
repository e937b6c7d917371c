"""Greedy non-maximum suppression of boxes, in 2D and 3D."""

import math
from numbers import Real

import torch
from torch import Tensor

from fastmed.ops import _load  # noqa: F401
from fastmed.ops._arguments import check_tensors
from fastmed.ops.boxes import check_boxes, computing_dtype

_INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_output: int | None = None
) -> Tensor:
    """Keeps boxes by falling score, each unless its IoU with one kept before exceeds a threshold.

    Equals the greedy rule over box_iou of the same boxes, compared in its dtype. Of equal scores
    the lower index comes first; +inf ranks first and -inf last. A box with a NaN score or
    coordinate is never kept and suppresses nothing.

    Args:
        boxes: [N, 4] as (x1, y1, x2, y2) or [N, 6] as (x1, y1, z1, x2, y2, z2); float16, bfloat16,
            float32 or float64, in any unit.
        scores: [N], floating; the dtype may differ from that of the boxes.
        iou_threshold: any finite number; below 0 boxes suppress that do not meet.
        max_output: how many indices to return at most; None for all.

    Returns:
        int64 [n]: the indices of kept boxes, by falling score.

    Raises:
        ValueError: the argument named has a wrong shape, device or value; boxes with infinite
            coordinates too, except in a traced graph, where they count as NaN.
        TypeError: the argument named has a wrong dtype.

    Source: R. Girshick et al., Rich feature hierarchies for accurate object detection, CVPR (2014).
    """
    _check(boxes, scores, None, iou_threshold, batched=False)
    return _kept(boxes, scores, None, iou_threshold, max_output)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
) -> Tensor:
    """nms in which boxes suppress each other only within a group, for example a class or an image.

    Coordinates are compared as they are, without an offset for each group.

    Args:
        boxes: [N, 4] or [N, 6], as in nms.
        scores: [N], as in nms.
        groups: [N], int64, or int32, int16, int8 or uint8; any values, also negative ones.
        iou_threshold: as in nms.
        max_output: how many indices to return at most, counted over all groups; None for all.

    Returns:
        int64 [n]: the indices of kept boxes, by falling score over all groups.

    Raises:
        ValueError: the argument named has a wrong shape, device or value, as in nms.
        TypeError: the argument named has a wrong dtype.
    """
    _check(boxes, scores, groups, iou_threshold, batched=False)
    return _kept(boxes, scores, groups, iou_threshold, max_output)


def nms_mask(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    """Which boxes nms, or with groups batched_nms, would keep: a result of fixed shape.

    The host never waits for the device, so it may be captured in a CUDA graph. Boxes with infinite
    coordinates count as boxes with NaN: they are never kept and suppress nothing.

    Args:
        boxes: [..., N, 4] or [..., N, 6]; each item of the leading dimensions on its own.
        scores: [..., N], as in nms.
        groups: [..., N] as in batched_nms, or None.
        iou_threshold: as in nms.

    Returns:
        bool [..., N], in the order of the boxes.

    Raises:
        ValueError: the argument named has a wrong shape, device or value.
        TypeError: the argument named has a wrong dtype.
    """
    _check(boxes, scores, groups, iou_threshold, batched=True)
    return torch.ops.fastmed.nms_mask(*_native(boxes, scores, groups), iou_threshold)


def _check(boxes, scores, groups, iou_threshold, *, batched: bool) -> None:
    check_tensors(boxes=boxes, scores=scores)
    check_boxes(boxes, "boxes", "[..., N, 4] or [..., N, 6]" if batched else "[N, 4] or [N, 6]")
    if not batched and boxes.dim() != 2:
        raise ValueError(f"boxes: expected [N, 4] or [N, 6], got {list(boxes.shape)}")
    if not scores.dtype.is_floating_point:
        raise TypeError(f"scores: expected a floating dtype, got {scores.dtype}")
    if groups is not None and groups.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"groups: {groups.dtype} is none of {', '.join(map(str, _INTEGER_DTYPES))}")
    for name, values in (("scores", scores), ("groups", groups)):
        if values is None:
            continue
        if values.shape != boxes.shape[:-1]:
            expected, got = list(boxes.shape[:-1]), list(values.shape)
            raise ValueError(f"{name}: expected {expected}, one for every box, got {got}")
        if values.device != boxes.device:
            raise ValueError(f"{name}: on {values.device}, the boxes are on {boxes.device}")
    if not isinstance(iou_threshold, Real):
        raise TypeError(f"iou_threshold: expected a number, got {iou_threshold!r}")
    if not math.isfinite(iou_threshold):
        raise ValueError(f"iou_threshold: expected a finite number, got {iou_threshold}")


def _native(boxes, scores, groups) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments as the native ops take them."""
    return (
        boxes.detach().to(computing_dtype(boxes)).contiguous(),
        scores.detach().to(computing_dtype(scores)).contiguous(),
        None if groups is None else groups.long().contiguous(),
    )


def _kept(boxes, scores, groups, iou_threshold, max_output) -> Tensor:
    if max_output is not None and not isinstance(max_output, (int, torch.SymInt)):
        raise TypeError(f"max_output: expected an integer, got {max_output!r}")
    if max_output is not None and max_output < 0:
        raise ValueError(f"max_output: expected at least 0, got {max_output}")
    kept, infinite = torch.ops.fastmed.nms(*_native(boxes, scores, groups), iou_threshold)
    if not torch.compiler.is_compiling() and infinite:
        raise ValueError("boxes: expected finite or NaN coordinates, got infinite ones")
    return kept if max_output is None else kept[:max_output]


# On the CPU both ops sort by themselves; on CUDA torch does, and nms_sorted suppresses.


def _falling(scores: Tensor) -> Tensor:
    """Indices by falling score, equal scores in place; NaN stands anywhere."""
    return scores.sort(dim=-1, descending=True, stable=True)[1]


def _suppressed(boxes, scores, groups, by_score, iou_threshold) -> tuple[Tensor, Tensor]:
    """Marks in the order of the boxes, and counts: boxes kept, infinite ones or not."""
    order = by_score
    if groups is not None:
        groups, places = groups.gather(-1, by_score).sort(dim=-1, stable=True)
        order = by_score.gather(-1, places)
    scores = scores.to(boxes.dtype)
    return torch.ops.fastmed.nms_sorted(boxes, scores, order, groups, iou_threshold)


@torch.library.impl("fastmed::nms_mask", "cuda")
def _(boxes, scores, groups, iou_threshold):
    return _suppressed(boxes, scores, groups, _falling(scores), iou_threshold)[0]


@torch.library.impl("fastmed::nms", "cuda")
def _(boxes, scores, groups, iou_threshold):
    by_score = _falling(scores)
    keep, counts = _suppressed(boxes, scores, groups, by_score, iou_threshold)
    kept, infinite = counts.tolist()
    # With its length known, the selection need not wait for the device once more.
    places = keep.index_select(0, by_score).nonzero_static(size=kept)[:, 0]
    return by_score[places], torch.tensor(bool(infinite))


@torch.library.register_fake("fastmed::nms")
def _(boxes, scores, groups, iou_threshold):
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty([kept], dtype=torch.int64), torch.empty([], dtype=torch.bool)


@torch.library.register_fake("fastmed::nms_mask")
def _(boxes, scores, groups, iou_threshold):
    return boxes.new_empty(scores.shape, dtype=torch.bool)


@torch.library.register_fake("fastmed::nms_sorted")
def _(boxes, scores, order, groups, iou_threshold):
    return boxes.new_empty(scores.shape, dtype=torch.bool), boxes.new_empty([2], dtype=torch.int64)
