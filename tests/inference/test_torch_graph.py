"""torch on CUDA: full batches of the tile are a CUDA graph, of the same logits; others are not."""

import pytest
import torch
from network_bundles import SPECS

from fastmed.inference.engines.protocol import usual_batch
from fastmed.inference.engines.pytorch import NetworkEngine, TorchEngine
from fastmed.inference.engines.torch_graph import CudaGraph

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


def tiles_of(spec, batch, seed=0):
    size = spec.tile_zyx or spec.size_zyx
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, *size, generator=generator).cuda()


@on_gpu
@pytest.mark.parametrize("name", SPECS)
def test_the_graph_gives_the_logits_of_eager(made, name):
    spec, read = SPECS[name], made(name)
    engine = TorchEngine(read, "cuda:0")
    layout = next(iter(read.network().parameters())).dim()
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    network = read.network().to("cuda:0", memory_format=formats[layout])
    eager = NetworkEngine(network, spec, "cuda:0")
    full = usual_batch(spec, "cuda:0")
    for seed in range(3):
        tiles = tiles_of(spec, full, seed)
        expected = eager(tiles)
        scale = float(expected.abs().max())
        torch.testing.assert_close(engine(tiles), expected, rtol=0, atol=1e-3 * scale)
    assert engine._graph is not None
    assert engine._graph._graph is not None, "the network could not be recorded"
    if full > 1:
        part = tiles_of(spec, 1)
        torch.testing.assert_close(engine(part), eager(part))


@on_gpu
def test_each_call_sees_its_own_tiles(made):
    engine = TorchEngine(made("unet3d"), "cuda:0")
    tiles = tiles_of(SPECS["unet3d"], 4)
    first = engine(tiles).clone()
    other = engine(tiles + 1).clone()
    assert not torch.equal(first, other)
    assert torch.equal(engine(tiles), first)


def test_a_network_that_cannot_be_recorded_runs_as_it_is_and_says_so_once(monkeypatch):
    def fail(graph, tiles):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(CudaGraph, "_record", fail)
    said = []
    run = CudaGraph(lambda tiles: tiles + 1, "cuda:0", said.append)
    for _ in range(2):
        assert torch.equal(run(torch.zeros(2)), torch.ones(2))
    assert said == [
        "torch runs without a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_on_the_cpu_nothing_is_recorded(made):
    engine = TorchEngine(made("unet3d"), "cpu")
    engine(torch.rand(1, 1, 32, 32, 32))
    assert engine._graph is None


def test_a_classification_sees_one_scan_at_a_time():
    assert usual_batch(SPECS["resnet3d_18"], "cuda:0") == 1
    assert usual_batch(SPECS["unet3d"], "cuda:0") == 4
    assert usual_batch(SPECS["unet2d"], "cuda:0") == 8
    assert usual_batch(SPECS["unet2d"], "cpu") == 1
