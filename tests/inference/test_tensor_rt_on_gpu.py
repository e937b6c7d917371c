"""On a GPU, TensorRT gives torch's logits, from what it built and from what it kept."""

from importlib.util import find_spec

import pytest
import torch
from network_bundles import SHAPES, SPECS

from fastmed.inference.engines import open_engine
from fastmed.inference.engines.protocol import EngineRefused
from fastmed.inference.engines.tensor_rt import TensorRtEngine
from fastmed.inference.engines.tensor_rt_flavour import MODULES

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"),
    pytest.mark.skipif(not any(map(find_spec, MODULES)), reason="no TensorRT"),
]


@pytest.fixture
def opened(made, monkeypatch, tmp_path):
    """Returns a function that opens a network's engine, with a cache of this test alone."""
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "cache"))

    def open_it(name):
        try:
            return TensorRtEngine(made(name), "cuda:0")
        except EngineRefused as error:
            pytest.skip(str(error))

    return open_it


def tiles_of(shape, seed=0):
    """Tiles as engines get them: slices are one voxel deep, and of one channel."""
    depth = (1,) if len(shape) == 4 else ()
    channels = 1 if len(shape) == 4 else shape[1]
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape[0], channels, *depth, *shape[2:], generator=generator).cuda()


def agrees(engine, made, tiles) -> None:
    """Both compute in float32: torch too, which would else round to 10 bits on a GPU."""
    reference = open_engine(made, "torch", "cuda:0")[0]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = reference(tiles).clone()
    found = engine(tiles)
    assert found.dtype == torch.float32
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * max(scale, 1.0))


@pytest.mark.parametrize("name", SPECS)
def test_it_gives_torchs_logits(opened, made, name):
    engine, shapes = opened(name), SHAPES[name]
    for seed in range(3):  # the second and third come from the captured graph
        agrees(engine, made(name), tiles_of(shapes.fixed.usual, seed))
    agrees(engine, made(name), tiles_of(shapes.ranged.smallest))
    agrees(engine, made(name), tiles_of(shapes.fixed.usual, seed=3))


def test_what_was_kept_gives_the_same_bytes_and_is_not_built_again(opened, monkeypatch):
    tiles = tiles_of(SHAPES["unet3d"].fixed.usual)
    first = opened("unet3d")(tiles).clone()
    monkeypatch.setattr("fastmed.inference.engines.tensor_rt.build", None)
    assert torch.equal(opened("unet3d")(tiles), first)


def test_another_gpus_engine_is_built_again(opened, made, monkeypatch, tmp_path):
    """A file of another GPU under this one's name, with a JSON that is right."""
    engine = opened("unet3d")
    tiles = tiles_of(SHAPES["unet3d"].fixed.usual)
    engine(tiles)
    entry = engine._target.entry(engine._chooser.choose(SHAPES["unet3d"].fixed.usual))
    engine._cache.write(entry, b"ftrt" + bytes(100_000))
    agrees(opened("unet3d"), made("unet3d"), tiles)
    assert not engine._cache.read(entry).startswith(b"ftrt" + bytes(8))


def test_later_kernels_wait_for_the_logits_and_the_host_does_not(opened):
    engine = opened("unet3d")
    tiles = [tiles_of(SHAPES["unet3d"].fixed.usual, seed) for seed in range(8)]
    expected = [engine(each).sum().item() for each in tiles]
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = [engine(each).sum() for each in tiles]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [each.item() for each in sums] == expected


def test_tiles_may_be_freed_at_once(opened):
    engine = opened("unet3d")
    shape = SHAPES["unet3d"].fixed.usual
    expected = engine(tiles_of(shape)).clone()
    for _ in range(20):
        found = engine(tiles_of(shape))
        torch.rand(shape, device="cuda").mul_(1e6)  # takes the memory of the tiles
        assert torch.equal(found, expected)


def test_a_tile_is_captured_in_a_graph(opened):
    engine = opened("unet3d")
    shape = SHAPES["unet3d"].fixed.usual
    engine(tiles_of(shape))
    ((_, program),) = engine._programs.values()
    if not engine._target.flavour.is_rtx:
        assert program._graph is not None
