"""Overlap and suppression of boxes in plain torch, and the calls they are held against."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastmed.testing.case import OpCase


def box_iou_reference(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """box_iou by broadcasting, with torch's own gradient."""
    shared, joined, _ = _volumes(boxes1, boxes2)
    return _ratio_or_zero(shared, joined)


def box_giou_reference(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """box_giou by broadcasting, with torch's own gradient."""
    shared, joined, hull = _volumes(boxes1, boxes2)
    return _ratio_or_zero(shared, joined) - _ratio_or_zero(hull - joined, hull)


def nms_reference(boxes, scores, iou_threshold, *, max_output=None) -> Tensor:
    """nms, one kept box at a time."""
    groups = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    return batched_nms_reference(boxes, scores, groups, iou_threshold, max_output=max_output)


def batched_nms_reference(boxes, scores, groups, iou_threshold, *, max_output=None) -> Tensor:
    """batched_nms, one kept box at a time."""
    open_boxes = boxes.isfinite().all(-1) & ~scores.isnan()
    kept = []
    for index in scores.sort(dim=0, descending=True, stable=True)[1].tolist():
        if not open_boxes[index]:
            continue
        kept.append(index)
        iou = box_iou_reference(boxes[index : index + 1], boxes)[0]
        open_boxes &= ~((iou > iou_threshold) & (groups == groups[index]))
    return torch.tensor(kept[:max_output], dtype=torch.int64, device=boxes.device)


def nms_mask_reference(boxes, scores, groups, iou_threshold) -> Tensor:
    """nms_mask, item by item."""
    if groups is None:
        groups = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    if boxes.dim() > 2:
        items = [
            nms_mask_reference(*each, iou_threshold)
            for each in zip(boxes, scores, groups, strict=True)
        ]
        return torch.stack(items) if items else torch.zeros_like(scores, dtype=torch.bool)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[batched_nms_reference(boxes, scores, groups, iou_threshold)] = True
    return mask


def random_boxes(
    shape, axes, dtype=torch.float32, *, extent=100.0, sides=(4.0, 40.0), device="cpu", seed=0
) -> Tensor:
    """Boxes [*shape, 2 * axes] with centres in a cube, sides between two lengths."""
    generator = torch.Generator().manual_seed(seed)
    centre = extent * torch.rand([*shape, axes], generator=generator)
    half = sides[0] / 2 + (sides[1] - sides[0]) / 2 * torch.rand(centre.shape, generator=generator)
    return torch.cat([centre - half, centre + half], -1).to(dtype).to(device)


def random_scores(shape, dtype=torch.float32, *, levels=None, device="cpu", seed=0) -> Tensor:
    """Scores from 0 to 1; with levels so few that many are equal."""
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    scores = scores if levels is None else (scores * levels).floor() / levels
    return scores.to(dtype).to(device)


def with_degenerate(boxes: Tensor) -> Tensor:
    """The boxes, every fourth of them inverted, empty, a point or a copy of its neighbour."""
    boxes, axes = boxes.clone(), boxes.shape[-1] // 2
    low, high = boxes[..., :axes], boxes[..., axes:]
    low[..., ::16, 0], high[..., ::16, 0] = high[..., ::16, 0].clone(), low[..., ::16, 0].clone()
    high[..., 4::16, -1] = low[..., 4::16, -1]
    high[..., 8::16, :] = low[..., 8::16, :]
    boxes[..., 12::16, :] = boxes[..., 11:-1:16, :]
    return boxes


def _volumes(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union and hull of all pairs."""
    double = torch.float64 in (boxes1.dtype, boxes2.dtype)
    dtype, axes = torch.float64 if double else torch.float32, boxes1.shape[-1] // 2
    own, other = boxes1.to(dtype).unsqueeze(-2), boxes2.to(dtype).unsqueeze(-3)
    own_low, own_high = own[..., :axes], own[..., axes:]
    other_low, other_high = other[..., :axes], other[..., axes:]
    shared = _product(torch.minimum(own_high, other_high) - torch.maximum(own_low, other_low))
    hull = _product(torch.maximum(own_high, other_high) - torch.minimum(own_low, other_low))
    joined = _product(own_high - own_low) + _product(other_high - other_low) - shared
    return shared, joined, hull


def _product(sides: Tensor) -> Tensor:
    """Volume of sides, none below 0; relu has no gradient at 0."""
    first, *others = sides.relu().unbind(-1)
    for side in others:
        first = first * side
    return first


def _ratio_or_zero(part: Tensor, whole: Tensor) -> Tensor:
    empty = whole == 0
    return torch.where(empty, 0, part / torch.where(empty, 1, whole))


_DTYPES = (torch.float16, torch.float32, torch.float64)


def _overlap_cases() -> Iterator[OpCase]:
    for op, reference in (("box_iou", box_iou_reference), ("box_giou", box_giou_reference)):
        for axes in (2, 3):
            for dtype in _DTYPES:
                yield OpCase(
                    op,
                    f"{axes}d-{dtype}".replace("torch.", ""),
                    lambda device, axes=axes, dtype=dtype: (
                        with_degenerate(random_boxes([53], axes, dtype, device=device)),
                        with_degenerate(random_boxes([37], axes, dtype, device=device, seed=1)),
                    ),
                    reference,
                )
            yield OpCase(
                op,
                f"{axes}d-batch",
                lambda device, axes=axes: (
                    random_boxes([2, 3, 5], axes, device=device),
                    random_boxes([2, 3, 70], axes, torch.float64, device=device, seed=1),
                ),
                reference,
            )


def _nms_inputs(shape, axes, dtype, device, groups=None):
    boxes = with_degenerate(random_boxes(shape, axes, dtype, device=device))
    scores = random_scores(shape, dtype, levels=50, device=device)
    if groups is None:
        return boxes, scores
    generator = torch.Generator().manual_seed(2)
    return boxes, scores, torch.randint(-groups, groups, shape, generator=generator).to(device)


def _nms_cases() -> Iterator[OpCase]:
    for axes in (2, 3):
        for dtype in _DTYPES:
            yield OpCase(
                "nms",
                f"{axes}d-{dtype}".replace("torch.", ""),
                lambda device, axes=axes, dtype=dtype: (
                    *_nms_inputs([300], axes, dtype, device),
                    0.3,
                ),
                nms_reference,
            )
        for threshold in (-0.5, 0.0, 0.1, 0.9):
            yield OpCase(
                "nms",
                f"{axes}d-{threshold}",
                lambda device, axes=axes, threshold=threshold: (
                    *_nms_inputs([1200], axes, torch.float32, device),
                    threshold,
                ),
                nms_reference,
                {"max_output": 600},
            )
        yield OpCase(
            "batched_nms",
            f"{axes}d",
            lambda device, axes=axes: (*_nms_inputs([900], axes, torch.float32, device, 3), 0.1),
            batched_nms_reference,
        )
        yield OpCase(
            "nms_mask",
            f"{axes}d-batch",
            lambda device, axes=axes: (
                *_nms_inputs([2, 2, 600], axes, torch.float32, device),
                None,
                0.2,
            ),
            nms_mask_reference,
        )
        yield OpCase(
            "nms_mask",
            f"{axes}d-groups",
            lambda device, axes=axes: (*_nms_inputs([3, 500], axes, torch.float64, device, 2), 0.2),
            nms_mask_reference,
        )


BOX_CASES = (*_overlap_cases(), *_nms_cases())
