"""Candidates: what a detection network said of each tile or slice becomes the best boxes of a scan.

Every tensor here has a shape that follows from the spec and the grid alone, so that on CUDA the
host never waits between the network and the last box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from fastmed import boxes as box_space
from fastmed.ops import nms_mask
from fastmed.spec import Spec
from fastmed.tasks.tiles import Tiles, lay_tiles

_OF_A_TILE = 400  # boxes of one label that a tile or slice brings; torchvision's SSD has as many
_OF_A_SCAN = 4_000  # boxes that all tiles bring in 3 dimensions, each from as many as see it
# Two tiles that see a finding's centre a hair apart on both sides of the border would both disown
# it; by this much each looks beyond its own, and the double goes as any lesser of two that overlap.
_BEYOND_VOXELS = 1.0
_NONE = -1.0
_ROUNDING = 1e-3  # by which the odds of a score may be off


class Picked(NamedTuple):
    """The boxes that a network is most sure of in each of T tiles or slices, its codes not decoded.

    codes: [T, n, 2K] float32. odds: [T, n], the logarithm of the odds of the label. place: [T, n]
        int64, which default box of the tile. labels: [T, n] int64, the spec's values. image: [T]
        int64, which tile or slice of the scan.
    finite: bool [T], whether all scores were finite, of the tile and of those picked with it.
    """

    codes: Tensor
    odds: Tensor
    place: Tensor
    labels: Tensor
    image: Tensor
    finite: Tensor


class Candidates(NamedTuple):
    """The best boxes of I images: one scan, or each slice of a scan in 2 dimensions.

    boxes: [I, n, 2K] float32 in voxels of the grid (of the slice), within it.
    scores: [I, n] float32, falling; -1 where there is no box.
    labels: [I, n] int64, the spec's values.
    finite: bool [], whether the network's scores were finite, and the codes of what it is most sure
        of; else the rest means nothing.
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


def pick(raw: Tensor, spec: Spec, numbers: Sequence[int] | None = None) -> Picked:
    """Keeps of each tile or slice, for each label, what the network is most sure of.

    raw: [T, N, 2K + classes], tiles (`tiles_of` the grid's shape) or slices: for each default box
        its code, then one logit per class, whose softmax is the score. numbers: which tiles or
        slices of the scan they are; None takes them for all.
    """
    code = 2 * spec.dimensions
    odds = _log_odds(raw[..., code:])  # [T, labels, N]
    # NaN shows in the extremes as infinity does.
    finite = torch.stack(odds.aminmax()).isfinite().all().expand(len(raw))
    odds, place = _most_likely(odds, spec.detection.score_threshold)
    labels = torch.arange(1, spec.num_classes, device=raw.device)[:, None].expand_as(place)
    odds, place, labels = (each.flatten(1) for each in (odds, place, labels))
    codes = raw[..., :code].gather(1, place[..., None].expand(-1, -1, code))
    image = torch.tensor(range(len(raw)) if numbers is None else numbers)
    image = image.to(raw.device, non_blocking=True)
    return Picked(codes, odds, place, labels, image, finite)


def candidates(said: Tensor | Picked, spec: Spec, shape_zyx: tuple[int, int, int]) -> Candidates:
    """Decodes what a network said and keeps the best boxes.

    said: the network's raw answers as `pick` takes them, of all tiles or slices; or what it picked
        from them, without the tiles in which there is nothing.

    Of each tile and label the best by score, decoded; cut to the grid; those below the score
    threshold go; of those that overlap by more than the IoU threshold, per label (and slice), the
    lesser goes; of the rest the best `max_boxes` stay.

    Borders: tiles overlap, and a finding cut by the border of one is whole in another as long as it
    is not larger than the overlap. A box counts only in the tile whose centre is nearest to its own
    (and one voxel beyond what that tile owns). The box around a cut finding has its centre nearer
    to the border than half of the overlap: where another tile is nearest, which saw it whole.
    """
    picked = said if isinstance(said, Picked) else pick(said, spec)
    axes, finite, device = spec.dimensions, picked.finite.all(), picked.codes.device
    codes, scores, place, labels = (
        picked.codes,
        torch.sigmoid(picked.odds),
        picked.place,
        picked.labels,
    )
    image = picked.image[:, None].expand_as(place)
    if axes == 3:
        most = math.ceil(_OF_A_SCAN * _redundancy(tiles_of(shape_zyx, spec)))
        scores, best = scores.reshape(1, -1).topk(min(most, scores.numel()), dim=1)
        place, labels, image = (each.reshape(-1)[best] for each in (place, labels, image))
        codes = codes.reshape(-1, 2 * axes)[best]
    finite = finite & codes.isfinite().all()
    if axes == 2:
        defaults = default_boxes_of(spec).to(device, non_blocking=True)
        found = box_space.decode(codes, defaults[place], box_space.WEIGHTS_2D)
        found = _within(found, shape_zyx)
        counts = torch.ones_like(scores, dtype=torch.bool)
    else:
        tiles = tiles_of(shape_zyx, spec)
        defaults = default_boxes_of(spec, tiles.size_zyx).to(device, non_blocking=True)
        found = box_space.decode(codes, defaults[place], box_space.WEIGHTS_3D)
        found = _within(_placed(found, image, tiles), shape_zyx)
        counts = _owned(found, image, tiles)
    low, high = found.chunk(2, dim=-1)
    counts &= (low < high).all(-1) & (scores > 0) & (scores >= spec.detection.score_threshold)
    scores = scores.where(counts, _NONE)
    ranked = scores.where(counts, torch.nan)  # neither kept nor suppressing
    kept = nms_mask(found, ranked, labels, spec.detection.iou_threshold)
    scores = scores.where(kept, _NONE)
    scores, place = scores.topk(min(spec.detection.max_boxes, scores.shape[1]), dim=1)
    found = found.gather(1, place[..., None].expand(-1, -1, 2 * axes))
    return Candidates(found, scores, labels.gather(1, place), finite)


def _most_likely(odds: Tensor, score_threshold: float) -> tuple[Tensor, Tensor]:
    """The best of odds [T, labels, N] along N and their places, rows of at most _OF_A_TILE.

    The host may wait for the CPU: it ranks those alone that can be above the threshold, mostly few;
    the rest of a row is then -inf.
    """
    count = min(_OF_A_TILE, odds.shape[-1])
    if odds.device.type != "cpu" or not 0 < score_threshold < 1:
        return odds.topk(count, dim=-1)
    least = math.log(score_threshold) - math.log1p(-score_threshold) - _ROUNDING
    rows = odds.flatten(0, 1)
    row, place = (rows > least).nonzero(as_tuple=True)
    filled = row.bincount(minlength=len(rows))
    if filled.max() > count:
        return odds.topk(count, dim=-1)
    column = torch.arange(len(row)) - (filled.cumsum(0) - filled)[row]
    best = rows.new_full((len(rows), count), -torch.inf)
    places = torch.zeros(best.shape, dtype=torch.int64)
    best[row, column], places[row, column] = rows[row, place], place
    return best.view(*odds.shape[:-1], count), places.view(*odds.shape[:-1], count)


def _log_odds(logits: Tensor) -> Tensor:
    """What the sigmoid makes the softmax of logits [T, N, classes]: [T, labels, N], no class 0."""
    if logits.shape[-1] == 2:
        other, label = logits.unbind(-1)
        return (label - other)[:, None]
    labels = range(1, logits.shape[-1])
    others = [logits[..., [c for c in range(logits.shape[-1]) if c != k]] for k in labels]
    return torch.stack(
        [logits[..., k] - each.logsumexp(-1) for k, each in zip(labels, others, strict=True)], dim=1
    )


def _redundancy(tiles: Tiles) -> float:
    """How many tiles see a voxel of the grid, on average."""
    return len(tiles.corners) * math.prod(tiles.size_zyx) / math.prod(tiles.shape_zyx)


def _placed(boxes: Tensor, image: Tensor, tiles: Tiles) -> Tensor:
    """Boxes [I, n, 6] in voxels of the tiles that `image` [I, n] names, in voxels of the grid."""
    first = torch.tensor(tiles.corners, dtype=torch.float32).flip(-1).repeat(1, 2)
    return boxes + first.to(boxes.device, non_blocking=True)[image]


def _owned(boxes: Tensor, image: Tensor, tiles: Tiles) -> Tensor:
    """Whether the tile that `image` [I, n] names owns each of the boxes [I, n, 6] of the grid."""
    intervals = torch.tensor([[*zip(*axes, strict=True)] for axes in product(*tiles.owned())])
    low, high = intervals.flip(-1).to(boxes.device, non_blocking=True)[image].unbind(-2)
    middle = (boxes[..., :3] + boxes[..., 3:]) / 2
    return ((middle >= low - _BEYOND_VOXELS) & (middle < high + _BEYOND_VOXELS)).all(-1)


def _within(boxes: Tensor, shape_zyx: tuple[int, int, int]) -> Tensor:
    """Boxes cut where the grid ends, half a voxel beyond its outermost voxel centres."""
    sides = list(shape_zyx[::-1])[: boxes.shape[-1] // 2] * 2
    columns = zip(boxes.unbind(-1), sides, strict=True)
    return torch.stack([column.clamp(-0.5, n - 0.5) for column, n in columns], dim=-1)
