"""Sliding window: a network of one tile size sees a grid of any size."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

_SURE = 10.0  # the logit by which background leads where there is nothing to see


def sliding_window(
    grid: Tensor,
    network: Callable[[Tensor], Tensor],
    *,
    num_classes: int,
    tile_zyx: tuple[int, int, int],
    overlap: float,
    size_multiple: int = 1,
    batch: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Runs a network over overlapping tiles and blends its logits with Gaussian weights.

    grid: [D, H, W] float32 in 0..1. network: [B, 1, d, h, w] -> [B, K, d, h, w], on the grid's
        device; it is always called with B = batch, or with all tiles where they are fewer, the
        last time with earlier tiles filled up.
    num_classes: of the result where every tile is void; else the network's K decides.
    overlap: share of a tile, 0 <= overlap < 1, in common with its neighbour.
    size_multiple: an axis shorter than its tile is extended by its last plane to this multiple.
    progress: called with the tiles done and their total.

    A tile without a voxel above 0, where nothing reaches the window (of a grey image: where all is
    black), is void: it counts as background and never meets the network. Networks that normalise
    by their own statistics are ill-conditioned there: rounding decides, engines differ by half, and
    some return NaN.

    Returns logits [K, D, H, W] float32. The weights are those of nnU-Net and MONAI (standard
    deviation of an eighth of the tile), without MONAI's floor of 1e-3; they and their sum over all
    tiles are products of one factor per axis, so that each tile is normalised as it is added and
    no weight map is kept.
    """
    tile = [
        full if n >= full else -(-n // size_multiple) * size_multiple
        for n, full in zip(grid.shape, tile_zyx, strict=True)
    ]
    short = [max(t - n, 0) for t, n in zip(tile, grid.shape, strict=True)]
    padded = grid
    if any(short):
        z, y, x = short
        padded = F.pad(grid[None, None], (0, x, 0, y, 0, z), mode="replicate")[0, 0]
    axes = [
        _axis_weights(n, t, overlap, grid.device) for n, t in zip(padded.shape, tile, strict=True)
    ]
    places = list(product(*axes))
    void, seen = [], []
    for corner in places:
        # Asked this way round, a tile with NaN is not void: what is not finite must show.
        (void if (padded[_window(corner, tile)] <= 0).all() else seen).append(corner)
    logits: Tensor | None = None
    batch = min(batch, max(len(seen), 1))
    tiles = torch.zeros(batch, 1, *tile, device=grid.device)
    for first in range(0, len(seen), batch):
        group = seen[first : first + batch]
        for slot, corner in enumerate(group):
            tiles[slot, 0] = padded[_window(corner, tile)]
        output = network(tiles)
        if logits is None:
            logits = torch.zeros(output.shape[1], *padded.shape, device=grid.device)
        for slot, corner in enumerate(group):
            logits[:, *_window(corner, tile)].addcmul_(output[slot], _weight(corner))
        progress(first + len(group), len(places))
    if logits is None:
        logits = torch.zeros(num_classes, *padded.shape, device=grid.device)
    sure = -_SURE if logits.shape[0] == 1 else _SURE
    for corner in void:
        logits[0, *_window(corner, tile)].add_(_weight(corner), alpha=sure)
    if void:
        progress(len(places), len(places))
    depth, height, width = grid.shape
    return logits[:, :depth, :height, :width].contiguous() if any(short) else logits


def _weight(corner) -> Tensor:
    """Weight of each voxel of a tile, [d, h, w]."""
    (_, wz), (_, wy), (_, wx) = corner
    return wz[:, None, None] * (wy[:, None] * wx)


def _window(corner, tile) -> tuple[slice, ...]:
    return tuple(slice(first, first + n) for (first, _), n in zip(corner, tile, strict=True))


def _axis_weights(size: int, tile: int, overlap: float, device) -> list[tuple[int, Tensor]]:
    """First index and weights [tile] of each tile along one axis; at each voxel they sum to 1."""
    step = max(1, int(tile * (1 - overlap)))
    firsts = [min(first, size - tile) for first in range(0, size - tile + step, step)]
    position = torch.arange(tile, dtype=torch.float64) - (tile - 1) / 2
    gaussian = torch.exp(-0.5 * (position / (tile / 8)) ** 2)
    total = torch.zeros(size, dtype=torch.float64)
    for first in firsts:
        total[first : first + tile] += gaussian
    return [
        (first, (gaussian / total[first : first + tile]).float().to(device)) for first in firsts
    ]
