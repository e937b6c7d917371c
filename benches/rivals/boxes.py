"""Boxes by MONAI, by torchvision on CUDA, and groups by plain torch."""

from __future__ import annotations

from importlib import util

import torch
from torch import Tensor

from rivals.rival import Rival

_MOST_GROUPS = 50  # a Python loop over more of them is no rival
_PAIRS_AT_ONCE = 2_000_000


def iou_rivals(boxes1, boxes2, *, large) -> dict[str, Rival]:
    from monai.data.box_utils import box_iou

    return _pairs(box_iou, boxes1, boxes2)


def giou_rivals(boxes1, boxes2, *, large) -> dict[str, Rival]:
    from monai.data.box_utils import box_giou

    return _pairs(box_giou, boxes1, boxes2)


def nms_rivals(boxes, scores, iou_threshold, *, large, max_output=None) -> dict[str, Rival]:
    if not _is_plain(boxes, scores):
        return {}
    rivals = {}
    if max_output != 0:
        from monai.data.box_utils import non_max_suppression

        limit = -1 if max_output is None else max_output
        rivals["MONAI"] = Rival(
            lambda: non_max_suppression(boxes, scores, iou_threshold, limit),
            **_same_choice(len(boxes)),
        )
    if boxes.is_cuda and boxes.shape[1] == 4 and util.find_spec("torchvision"):
        from torchvision.ops import nms

        rivals["torchvision"] = Rival(
            lambda: nms(boxes, scores, iou_threshold)[:max_output], **_same_choice(len(boxes))
        )
    return rivals


def batched_nms_rivals(
    boxes, scores, groups, iou_threshold, *, large, max_output=None
) -> dict[str, Rival]:
    if not _is_plain(boxes, scores) or len(boxes) == 0:
        return {}
    choice = _same_choice(len(boxes))
    rivals = {
        "torch, groups padded": Rival(
            lambda: padded_groups(boxes, scores, groups, iou_threshold)[:max_output], **choice
        )
    }
    if len(groups.unique()) <= _MOST_GROUPS:
        rivals["MONAI, group by group"] = Rival(
            lambda: _group_by_group(boxes, scores, groups, iou_threshold)[:max_output], **choice
        )
    return rivals


def nms_mask_rivals(boxes, scores, groups, iou_threshold, *, large) -> dict[str, Rival]:
    if not _is_plain(boxes, scores) or boxes.numel() == 0:
        return {}
    rows, values = boxes.flatten(0, -2), scores.flatten()
    groups = torch.zeros_like(scores, dtype=torch.int64) if groups is None else groups
    numbers = groups.reshape(-1, groups.shape[-1])
    step = int(numbers.max()) - int(numbers.min()) + 1
    offsets = step * torch.arange(len(numbers), device=boxes.device)[:, None]
    apart = (numbers.long() + offsets).flatten()

    def marked(keep):
        def call():
            mask = torch.zeros(values.shape, dtype=torch.bool, device=boxes.device)
            mask[keep(rows, values, apart, iou_threshold)] = True
            return mask.view(scores.shape)

        return call

    share = max(1e-3, 2 / scores.numel())
    rivals = {"torch, groups padded": Rival(marked(padded_groups), share=share)}
    if len(apart.unique()) <= _MOST_GROUPS:
        rivals["MONAI, group by group"] = Rival(marked(_group_by_group), share=share)
    return rivals


def padded_groups(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS of all groups at once: groups of like size share a padded [G, L] block."""
    falling = scores.argsort(descending=True, stable=True)
    order = falling[groups[falling].argsort(stable=True)]
    counts = groups[order].unique_consecutive(return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    by_count = counts.argsort(stable=True)
    kept = []
    lengths = counts[by_count].tolist()
    first = 0
    while first < len(lengths):
        last = first
        while last < len(lengths) and (last + 1 - first) * lengths[last] ** 2 <= _PAIRS_AT_ONCE:
            last += 1
        last = max(last, first + 1)
        block, length = by_count[first:last], lengths[last - 1]
        rank = torch.arange(length, device=boxes.device)
        alive = rank < counts[block][:, None]
        index = order[torch.where(alive, starts[block][:, None] + rank, 0)]
        chosen = boxes[index]
        above = _pairwise_iou(chosen, chosen) > iou_threshold
        for row in range(length - 1):
            alive[:, row + 1 :] &= ~(above[:, row, row + 1 :] & alive[:, row : row + 1])
        kept.append(index[alive])
        first = last
    found = torch.cat(kept).sort().values
    return found[scores[found].argsort(descending=True, stable=True)]


def _pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """[G, N, M] of [G, N, 2K] and [G, M, 2K]."""
    spatial = first.shape[-1] // 2
    sizes = [(each[..., spatial:] - each[..., :spatial]).prod(-1) for each in (first, second)]
    low = torch.maximum(first[..., :, None, :spatial], second[..., None, :, :spatial])
    high = torch.minimum(first[..., :, None, spatial:], second[..., None, :, spatial:])
    both = (high - low).clamp_(min=0).prod(-1)
    return both / (sizes[0][..., :, None] + sizes[1][..., None, :] - both)


def _group_by_group(boxes, scores, groups, iou_threshold) -> Tensor:
    from monai.data.box_utils import non_max_suppression

    kept = []
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        kept.append(members[non_max_suppression(boxes[members], scores[members], iou_threshold)])
    found = torch.cat(kept).sort().values
    return found[scores[found].argsort(descending=True, stable=True)]


def _pairs(function, boxes1: Tensor, boxes2: Tensor) -> dict[str, Rival]:
    if not (_is_plain(boxes1) and _is_plain(boxes2)) or 0 in (*boxes1.shape, *boxes2.shape):
        return {}
    if boxes1.dim() == 2:
        return {"MONAI": Rival(lambda: function(boxes1, boxes2), atol=1e-5)}
    spatial = boxes1.shape[-1]
    items = list(
        zip(
            boxes1.reshape(-1, *boxes1.shape[-2:]),
            boxes2.reshape(-1, *boxes2.shape[-2:]),
            strict=True,
        )
    )
    assert spatial in (4, 6)
    shape = [*boxes1.shape[:-1], boxes2.shape[-2]]
    return {
        "MONAI": Rival(
            lambda: torch.stack([function(*item) for item in items]).view(shape), atol=1e-5
        )
    }


def _is_plain(boxes: Tensor, scores: Tensor | None = None) -> bool:
    """MONAI takes finite boxes that are not inverted, and numbers for scores."""
    values = boxes.detach()
    half = values.shape[-1] // 2
    upright = bool((values[..., :half] <= values[..., half:]).all())
    finite = bool(torch.isfinite(values).all())
    return upright and finite and (scores is None or bool(torch.isfinite(scores).all()))


def _same_choice(count: int) -> dict:
    """Kept indices as marks: an IoU within one rounding of the threshold may go either way."""

    def marks(kept):
        found = torch.zeros(count, dtype=torch.bool, device=kept.device)
        found[kept] = True
        return found

    return {"view": marks, "ours": marks, "share": max(1e-3, 2 / max(count, 1))}
