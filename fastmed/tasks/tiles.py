"""Tiles: the pieces of a grid that a network sees one after the other, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Tiles:
    """Pieces of one size that cover a grid, every first index along z with every one along y and x.

    shape_zyx: of the grid. size_zyx: of a tile; larger than the grid where an axis is extended.
    starts_zyx: first indices along each axis, rising.
    """

    shape_zyx: tuple[int, int, int]
    size_zyx: tuple[int, int, int]
    starts_zyx: tuple[tuple[int, ...], ...]

    @property
    def corners(self) -> list[tuple[int, int, int]]:
        """First index (z, y, x) of each tile; z changes last."""
        return list(product(*self.starts_zyx))

    def window(self, corner: tuple[int, int, int]) -> tuple[slice, ...]:
        """The voxels of the extended grid in the tile that begins at `corner`."""
        return tuple(
            slice(first, first + n) for first, n in zip(corner, self.size_zyx, strict=True)
        )

    def extended(self, grid: Tensor) -> Tensor:
        """The grid [D, H, W], an axis shorter than the tile extended to it by its last plane."""
        z, y, x = (max(t - n, 0) for t, n in zip(self.size_zyx, self.shape_zyx, strict=True))
        if not z + y + x:
            return grid
        return F.pad(grid[None, None], (0, x, 0, y, 0, z), mode="replicate")[0, 0]

    def owned(self) -> list[list[tuple[float, float]]]:
        """For each axis and each first index along it, the interval that such tiles own.

        A place belongs to the tile whose centre is nearest: intervals meet halfway between two
        centres, and the outermost end with the grid, half a voxel beyond its outer voxel centres.
        """
        axes = []
        for starts, size, n in zip(self.starts_zyx, self.size_zyx, self.shape_zyx, strict=True):
            centres = [first + (size - 1) / 2 for first in starts]
            halfway = [(one + following) / 2 for one, following in pairwise(centres)]
            axes.append(list(zip([-0.5, *halfway], [*halfway, n - 0.5], strict=True)))
        return axes


def lay_tiles(
    shape_zyx: tuple[int, int, int],
    tile_zyx: tuple[int, int, int],
    overlap: float,
    size_multiple: int = 1,
) -> Tiles:
    """Covers a grid with tiles.

    overlap: share of a tile, 0 <= overlap < 1, in common with its neighbour; the last tile of an
        axis ends with it, so that it may have more.
    size_multiple: on an axis shorter than its tile there is one, of the axis's size rounded up to
        this multiple.
    """
    size = tuple(
        full if n >= full else -(-n // size_multiple) * size_multiple
        for n, full in zip(shape_zyx, tile_zyx, strict=True)
    )
    starts = []
    for n, tile in zip(shape_zyx, size, strict=True):
        step = max(1, int(tile * (1 - overlap)))
        last = max(n, tile) - tile
        starts.append(tuple(min(first, last) for first in range(0, last + step, step)))
    return Tiles(tuple(shape_zyx), size, tuple(starts))
