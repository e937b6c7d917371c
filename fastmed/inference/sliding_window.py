"""Sliding window: a network of one tile size sees a grid of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from fastmed.tasks.tiles import Tiles, lay_tiles

Piece = TypeVar("Piece")

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

    A void tile (`seen_and_void`) counts as background and never meets the network.

    Returns logits [K, D, H, W] float32. The weights are those of nnU-Net and MONAI (standard
    deviation of an eighth of the tile), without MONAI's floor of 1e-3; they and their sum over all
    tiles are products of one factor per axis, so that each tile is normalised as it is added and
    no weight map is kept.
    """
    tiles = lay_tiles(tuple(grid.shape), tile_zyx, overlap, size_multiple)
    padded = tiles.extended(grid)
    weights = dict(zip(tiles.corners, product(*_axis_weights(tiles, grid.device)), strict=True))
    seen, void = seen_and_void(padded, tiles)

    def cut(corner) -> Tensor:
        return padded[tiles.window(corner)][None]

    logits: Tensor | None = None
    total = len(seen) + len(void)
    for corner, output in answers(network, seen, cut, batch, progress, total):
        if logits is None:
            logits = torch.zeros(output.shape[0], *padded.shape, device=grid.device)
        logits[:, *tiles.window(corner)].addcmul_(output, _weight(weights[corner]))
    if logits is None:
        logits = torch.zeros(num_classes, *padded.shape, device=grid.device)
    sure = -_SURE if logits.shape[0] == 1 else _SURE
    for corner in void:
        logits[0, *tiles.window(corner)].add_(_weight(weights[corner]), alpha=sure)
    if void:
        progress(total, total)
    depth, height, width = grid.shape
    if padded.shape == grid.shape:
        return logits
    return logits[:, :depth, :height, :width].contiguous()


def seen_and_void(padded: Tensor, tiles: Tiles) -> tuple[list, list]:
    """The corners of tiles that a network is to see, and of those that are void.

    A tile without a voxel above 0, where nothing reaches the window (of a grey image: where all is
    black), is void: there is nothing in it. Networks that normalise by their own statistics are
    ill-conditioned there: rounding decides, engines differ by half, and some return NaN.
    """
    seen, void = [], []
    for corner in tiles.corners:
        # Asked this way round, a tile with NaN is not void: what is not finite must show.
        (void if (padded[tiles.window(corner)] <= 0).all() else seen).append(corner)
    return seen, void


def answers(
    network: Callable[[Tensor], Tensor],
    pieces: Sequence[Piece],
    cut: Callable[[Piece], Tensor],
    batch: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    total: int | None = None,
) -> Iterator[tuple[Piece, Tensor]]:
    """Shows pieces to a network, batch by batch, and yields each with what the network returned.

    cut: from a piece to its image [C, d, h, w]. network: as in `sliding_window`; what is yielded
    is valid until the next piece is asked for. progress: called after each batch with the pieces
    done and `total` (all of them, where it is not given).
    """
    batch = min(batch, len(pieces))
    total = len(pieces) if total is None else total
    images: Tensor | None = None
    for first in range(0, len(pieces), max(batch, 1)):
        group = pieces[first : first + batch]
        for slot, piece in enumerate(group):
            image = cut(piece)
            if images is None:
                images = torch.zeros(batch, *image.shape, device=image.device)
            images[slot] = image
        yield from zip(group, network(images), strict=False)
        progress(first + len(group), total)


def _weight(factors) -> Tensor:
    """Weight of each voxel of a tile, [d, h, w]."""
    wz, wy, wx = factors
    return wz[:, None, None] * (wy[:, None] * wx)


def _axis_weights(tiles: Tiles, device) -> list[list[Tensor]]:
    """For each axis the weights [tile] of each tile along it; at each voxel they sum to 1."""
    axes = []
    for starts, tile in zip(tiles.starts_zyx, tiles.size_zyx, strict=True):
        position = torch.arange(tile, dtype=torch.float64) - (tile - 1) / 2
        gaussian = torch.exp(-0.5 * (position / (tile / 8)) ** 2)
        total = torch.zeros(starts[-1] + tile, dtype=torch.float64)
        for first in starts:
            total[first : first + tile] += gaussian
        axes.append(
            [(gaussian / total[first : first + tile]).float().to(device) for first in starts]
        )
    return axes
