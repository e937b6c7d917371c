"""Candidates: what a detection network said of each tile or slice becomes the best boxes of a scan.

Every tensor here has a shape that follows from the spec and the grid alone, so that on CUDA the
host never waits between the network and the last box.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastmed import boxes as box_space
from fastmed.ops import nms_mask
from fastmed.spec import Spec
from fastmed.tasks.tiles import Tiles, lay_tiles

# Boxes of one label that a tile or a slice may bring: torchvision's SSD takes as many of an image.
_OF_A_TILE = {2: 400, 3: 1000}
_OF_A_SCAN = 10_000  # of 3 dimensions, that are held against each other
# Two tiles that see a finding's centre a hair apart on both sides of the border would both disown
# it; by this much each looks beyond its own, and the double goes as any lesser of two that overlap.
_BEYOND_VOXELS = 1.0
_NONE = -1.0


class Candidates(NamedTuple):
    """The best boxes of I images: one scan, or each slice of a scan in 2 dimensions.

    boxes: [I, n, 2K] float32 in voxels of the grid (of the slice), within it.
    scores: [I, n] float32, falling; -1 where there is no box.
    labels: [I, n] int64, the spec's values.
    finite: bool [], whether all that the network said was finite; else the rest means nothing.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    finite: Tensor


def tiles_of(shape_zyx: tuple[int, int, int], spec: Spec) -> Tiles:
    """The tiles in which a detection of 3 dimensions sees a grid, in the order of its outputs."""
    return lay_tiles(shape_zyx, spec.tile_zyx, spec.overlap, spec.size_multiple)


def default_boxes_of(spec: Spec, size_zyx: tuple[int, int, int] | None = None) -> Tensor:
    """Default boxes [N, 2K] float32 of the spec's network, in voxels of what it sees; on the CPU.

    size_zyx: of a tile or patch, where the network has 3 dimensions; None takes the spec's tile.
    """
    if spec.dimensions == 2:
        return box_space.default_boxes_ssd300()
    return box_space.default_boxes(
        spec.tile_zyx if size_zyx is None else size_zyx,
        spec.detection.strides,
        box_space.diameters_in_voxels(spec.detection.diameters_mm, spec.spacing_mm_zyx),
    )


def candidates(raw: Tensor, spec: Spec, shape_zyx: tuple[int, int, int]) -> Candidates:
    """Decodes what a network said and keeps the best boxes.

    raw: [T, N, 2K + classes], T tiles (`tiles_of` the grid's shape) or slices: for each default
        box its code, then one logit per class, whose softmax is the score.

    Of each tile and label the best by score, decoded; cut to the grid; those below the score
    threshold go; of those that overlap by more than the IoU threshold, per label (and slice), the
    lesser goes; of the rest the best `max_boxes` stay.

    Borders: tiles overlap, and a finding cut by the border of one is whole in another as long as it
    is not larger than the overlap. A box counts only in the tile whose centre is nearest to its own
    (and one voxel beyond what that tile owns). The box around a cut finding has its centre nearer
    to the border than half of the overlap: where another tile is nearest, which saw it whole.
    """
    k = spec.dimensions
    codes, logits = raw.split([2 * k, spec.num_classes], dim=-1)
    finite = torch.stack(raw.aminmax()).isfinite().all()
    probabilities = torch.softmax(logits, dim=-1)[..., 1:].transpose(1, 2)  # [T, labels, N]
    scores, place = probabilities.topk(min(_OF_A_TILE[k], raw.shape[1]), dim=-1)
    labels = torch.arange(1, spec.num_classes, device=raw.device)[:, None].expand_as(scores)
    scores, place, labels = (each.flatten(1) for each in (scores, place, labels))
    codes = codes.gather(1, place[..., None].expand(-1, -1, 2 * k))
    if k == 2:
        defaults = default_boxes_of(spec).to(raw.device, non_blocking=True)
        found = box_space.decode(codes, defaults[place], box_space.WEIGHTS_2D)
        found = _within(found, shape_zyx)
        counts = torch.ones_like(scores, dtype=torch.bool)
    else:
        tiles = tiles_of(shape_zyx, spec)
        defaults = default_boxes_of(spec, tiles.size_zyx).to(raw.device, non_blocking=True)
        found = box_space.decode(codes, defaults[place], box_space.WEIGHTS_3D)
        found = _within(_placed(found, tiles), shape_zyx)
        counts = _owned(found, tiles)
    low, high = found.chunk(2, dim=-1)
    counts &= (low < high).all(-1) & (scores > 0) & (scores >= spec.detection.score_threshold)
    scores = scores.where(counts, _NONE)
    if k == 3:
        of_scan = (each.flatten(0, 1)[None] for each in (found, scores, labels))
        found, scores, labels = _best(*of_scan, _OF_A_SCAN)
    ranked = scores.where(scores >= 0, torch.nan)  # neither kept nor suppressing
    kept = nms_mask(found, ranked, labels, spec.detection.iou_threshold)
    scores = scores.where(kept, _NONE)
    return Candidates(*_best(found, scores, labels, spec.detection.max_boxes), finite)


def _placed(boxes: Tensor, tiles: Tiles) -> Tensor:
    """Boxes [T, n, 6] in voxels of their tiles, in voxels of the grid."""
    first = torch.tensor(tiles.corners, dtype=torch.float32).flip(-1).repeat(1, 2)
    return boxes + first[:, None].to(boxes.device, non_blocking=True)


def _owned(boxes: Tensor, tiles: Tiles) -> Tensor:
    """Whether its tile owns each of the boxes [T, n, 6] in voxels of the grid: bool [T, n]."""
    intervals = [torch.tensor(axis) for axis in tiles.owned()]
    low, high = (
        torch.stack(torch.meshgrid(*(axis[:, end] for axis in intervals[::-1]), indexing="ij"), -1)
        .permute(2, 1, 0, 3)
        .reshape(-1, 1, 3)
        .to(boxes.device, non_blocking=True)
        for end in (0, 1)
    )
    middle = (boxes[..., :3] + boxes[..., 3:]) / 2
    return ((middle >= low - _BEYOND_VOXELS) & (middle < high + _BEYOND_VOXELS)).all(-1)


def _within(boxes: Tensor, shape_zyx: tuple[int, int, int]) -> Tensor:
    """Boxes cut where the grid ends, half a voxel beyond its outermost voxel centres."""
    sides = list(shape_zyx[::-1])[: boxes.shape[-1] // 2] * 2
    columns = zip(boxes.unbind(-1), sides, strict=True)
    return torch.stack([column.clamp(-0.5, n - 0.5) for column, n in columns], dim=-1)


def _best(boxes: Tensor, scores: Tensor, labels: Tensor, most: int) -> tuple[Tensor, ...]:
    """The `most` best of each image by falling score, or all where they are fewer."""
    scores, place = scores.topk(min(most, scores.shape[1]), dim=1)
    boxes = boxes.gather(1, place[..., None].expand(-1, -1, boxes.shape[-1]))
    return boxes, scores, labels.gather(1, place)
