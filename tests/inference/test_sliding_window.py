"""Sliding window: tiles leave no trace in the logits."""

import pytest
import torch

from fastmed.inference.sliding_window import sliding_window


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def blur(tiles):
    """A network with a small field of view, so that tiles differ only near their edges."""
    return torch.nn.functional.avg_pool3d(tiles, 3, 1, 1, count_include_pad=False)


GRIDS = {
    "one tile": ((16, 24, 32), (16, 24, 32), 0.25),
    "many tiles": ((40, 50, 70), (16, 24, 32), 0.25),
    "half overlap": ((40, 50, 70), (16, 24, 32), 0.5),
    "no overlap": ((40, 50, 70), (16, 24, 32), 0.0),
    "much overlap": ((18, 20, 19), (16, 16, 16), 0.95),
    "short axis": ((5, 50, 70), (16, 24, 32), 0.25),
    "shorter than the tile": ((5, 7, 3), (32, 32, 32), 0.25),
    "one voxel": ((1, 1, 1), (16, 16, 16), 0.5),
    "one more than a tile": ((17, 25, 33), (16, 24, 32), 0.25),
}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("shape", "tile", "overlap"), GRIDS.values(), ids=GRIDS.keys())
def test_a_network_that_changes_nothing_returns_the_grid(shape, tile, overlap, batch):
    grid = noise(*shape)
    logits = sliding_window(
        grid,
        lambda tiles: torch.cat([tiles, -2 * tiles], dim=1),
        num_classes=2,
        tile_zyx=tile,
        overlap=overlap,
        batch=batch,
    )
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.stack([grid, -2 * grid]), rtol=1e-5, atol=1e-5)


def test_the_result_depends_on_no_position_of_a_tile():
    grid = noise(60, 64, 68)
    logits = sliding_window(grid, blur, num_classes=1, tile_zyx=(24, 24, 24), overlap=0.5)
    torch.testing.assert_close(logits[0], blur(grid[None, None])[0, 0], rtol=0, atol=5e-3)


def test_batches_change_nothing_and_have_one_size():
    grid, sizes = noise(40, 50, 70), []

    def network(tiles):
        sizes.append(len(tiles))
        return blur(tiles)

    one = sliding_window(grid, blur, num_classes=1, tile_zyx=(16, 24, 32), overlap=0.25)
    many = sliding_window(
        grid, network, num_classes=1, tile_zyx=(16, 24, 32), overlap=0.25, batch=7
    )
    torch.testing.assert_close(one, many, rtol=0, atol=0)
    assert set(sizes) == {7}
    assert len(sizes) == -(-(3 * 3 * 3) // 7)


@pytest.mark.parametrize(
    ("shape", "multiple", "seen"),
    [
        ((5, 50, 70), 16, (16, 24, 32)),
        ((5, 50, 70), 2, (6, 24, 32)),
        ((5, 7, 3), 16, (16, 16, 16)),
        ((17, 7, 3), 8, (24, 8, 8)),
        ((5, 7, 3), 1, (5, 7, 3)),
    ],
    ids=str,
)
def test_a_short_axis_is_extended_by_its_last_plane_to_the_multiple(shape, multiple, seen):
    grid, shapes = noise(*shape), set()
    tile = (24, 24, 32) if shape[0] == 17 else (16, 24, 32)

    def network(tiles):
        shapes.add(tuple(tiles.shape[2:]))
        for axis, n in enumerate(shape):
            beyond = tiles.shape[axis + 2] - n
            if beyond > 0:
                last = tiles.select(axis + 2, n - 1).unsqueeze(axis + 2)
                assert torch.equal(
                    tiles.narrow(axis + 2, n, beyond),
                    last.expand_as(tiles.narrow(axis + 2, n, beyond)),
                )
        return tiles

    logits = sliding_window(
        grid, network, num_classes=1, tile_zyx=tile, overlap=0.25, size_multiple=multiple
    )
    assert shapes == {seen}
    assert logits.shape == (1, *shape)
    assert logits.is_contiguous()
    torch.testing.assert_close(logits[0], grid)


def test_progress_counts_the_tiles_up_to_their_total():
    calls = []
    sliding_window(
        noise(40, 24, 32),
        blur,
        num_classes=1,
        tile_zyx=(16, 24, 32),
        overlap=0.5,
        batch=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(2, 4), (4, 4)]


def test_blending_is_that_of_monai_but_for_its_floor():
    inferers = pytest.importorskip("monai.inferers", reason="MONAI is not installed")
    tile, grid = (12, 16, 20), noise(26, 32, 33)
    kernel = noise(2, 1, 3, 3, 3, seed=1) - 0.5
    axes = []
    for n in tile:
        position = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        axes.append(torch.exp(-0.5 * (position / (n / 8)) ** 2))
    gaussian = torch.einsum("z,y,x->zyx", *axes).float()

    def network(tiles):
        return torch.nn.functional.conv3d(tiles, kernel, padding=1)

    for overlap in (0.25, 0.6):
        logits = sliding_window(grid, network, num_classes=1, tile_zyx=tile, overlap=overlap)
        # The map that MONAI makes itself is the same but never below 1e-3.
        expected = inferers.sliding_window_inference(
            grid[None, None], tile, 4, network, overlap=overlap, roi_weight_map=gaussian
        )
        torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_tiles_that_nothing_reaches_are_background_and_never_meet_the_network(classes):
    grid = torch.zeros(16, 16, 64)
    grid[:, :, :8] = noise(16, 16, 8).abs() + 0.1
    seen = []

    def wild_in_the_void(tiles):
        seen.append(tiles.clone())
        return torch.full((1, classes, *tiles.shape[2:]), 5.0 if tiles.any() else torch.nan)

    logits = sliding_window(
        grid, wild_in_the_void, num_classes=classes, tile_zyx=(16, 16, 16), overlap=0.0
    )
    assert len(seen) == 1
    assert (logits[:, :, :, :16] == 5).all()
    beyond = logits[:, :, :, 16:]
    assert (beyond.argmax(0) == 0).all() if classes > 1 else (beyond < 0).all()


def test_a_grid_of_nothing_is_background_in_every_class_count():
    logits = sliding_window(
        torch.zeros(20, 20, 20), blur, num_classes=4, tile_zyx=(16, 16, 16), overlap=0.5
    )
    assert logits.shape == (4, 20, 20, 20)
    assert (logits.argmax(0) == 0).all()


def test_a_tile_of_nan_is_shown_to_the_network():
    grid = torch.full((16, 16, 16), torch.nan)
    logits = sliding_window(grid, blur, num_classes=1, tile_zyx=(16, 16, 16), overlap=0.0)
    assert logits.isnan().all()
