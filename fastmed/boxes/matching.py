"""Who matches whom: which default boxes are to answer for which true box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmed.ops import box_iou

BACKGROUND = -1
IGNORED = -2


def match_iou(defaults: Tensor, truth: Tensor, high: float = 0.5, low: float = 0.5) -> Tensor:
    """Matches each default box with the true box that it overlaps most, if by enough.

    The default box with the largest IoU of a true box always matches it (where two true boxes
    have the same one, the later); as torchvision's SSD.

    Args:
        defaults: [N, 2K] corners.
        truth: [n, 2K] corners; n may be 0.
        high: from this IoU on a default box matches.
        low: below this IoU it is background; between low and high it is ignored.

    Returns:
        int64 [N]: the index of a true box, -1 (background) or -2 (ignored).

    Raises:
        ValueError: low is above high, or shapes that do not fit.

    Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016.
    """
    if low > high:
        raise ValueError(f"low {low}: expected at most high, {high}")
    if not len(truth):
        return torch.full((len(defaults),), BACKGROUND, device=defaults.device)
    iou = box_iou(truth, defaults)
    best, match = iou.max(0)
    match = match.masked_fill(best < high, IGNORED).masked_fill(best < low, BACKGROUND)
    for index, chosen in enumerate(iou.argmax(1).unbind()):
        match.index_fill_(0, chosen, index)
    return match


def match_atss(
    defaults: Tensor, per_level: Sequence[int], truth: Tensor, nearest: int = 16
) -> Tensor:
    """Matches each true box with default boxes near it, by a threshold of its own.

    The candidates of a true box are, on each level, the `nearest` default boxes by the distance of
    centres. Those whose IoU is at least the mean plus the standard deviation of the candidates'
    match; a default box that two true boxes claim goes to the one it overlaps more. A default
    box's centre may lie outside the true box, and the best default box of a true box always
    matches (by IoU, where none overlaps by distance; no two true boxes have the same one): true
    boxes may be smaller than the distance between default boxes.

    Args:
        defaults: [N, 2K] corners, level after level.
        per_level: how many of them each level has; they sum to N.
        truth: [n, 2K] corners; n may be 0.
        nearest: candidates per level.

    Returns:
        int64 [N]: the index of a true box or -1 (background).

    Raises:
        ValueError: per_level does not sum to N, or shapes that do not fit.

    Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via
    Adaptive Training Sample Selection", CVPR 2020; small boxes as here described.
    """
    if sum(per_level) != len(defaults):
        raise ValueError(
            f"per_level {tuple(per_level)}: expected a sum of {len(defaults)}, the default boxes"
        )
    match = torch.full((len(defaults),), BACKGROUND, device=defaults.device)
    if not len(truth):
        return match
    iou = box_iou(truth, defaults)
    distance = torch.cdist(_middle(truth).to(iou.dtype), _middle(defaults).to(iou.dtype))
    claimed = _claims(iou, distance, per_level, nearest)
    best, owner = torch.where(claimed, iou, -1).max(0)
    match = torch.where(best >= 0, owner, match)
    # A box with no overlap yet ranks below every overlap, by distance.
    rank = torch.where(iou > 0, iou, -distance)
    for index in range(len(truth)):
        chosen = rank[index].argmax()[None]
        match.index_fill_(0, chosen, index)
        rank.index_fill_(1, chosen, -torch.inf)
    return match


def _claims(iou: Tensor, distance: Tensor, per_level: Sequence[int], nearest: int) -> Tensor:
    """Which of the default boxes each true box asks for, bool [n, N]."""
    candidates, first = [], 0
    for count in per_level:
        level = distance[:, first : first + count]
        candidates.append(first + level.topk(min(nearest, count), largest=False).indices)
        first += count
    candidates = torch.cat(candidates, 1)
    overlap = iou.gather(1, candidates)
    spread = overlap.std(1, correction=min(1, overlap.shape[1] - 1), keepdim=True)
    enough = (overlap >= overlap.mean(1, keepdim=True) + spread) & (overlap > 0)
    return torch.zeros_like(iou, dtype=torch.bool).scatter_(1, candidates, enough)


def _middle(boxes: Tensor) -> Tensor:
    low, high = boxes.chunk(2, -1)
    return (low + high) / 2
