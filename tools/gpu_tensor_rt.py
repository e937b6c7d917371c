"""Checks and times the TensorRT engine against torch on a GPU, network by network."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from gpu_report import Result
from gpu_timings import seconds
from torch import Tensor

from fastmed import bundle, exporter, models
from fastmed.inference.engines import open_engine
from fastmed.inference.engines.protocol import EngineRefused
from fastmed.inference.engines.tensor_rt import TensorRtEngine
from fastmed.inference.engines.tensor_rt_flavour import install_command, present_flavours

PROJECT = Path(__file__).parent.parent
TESTS = "tests/inference/test_tensor_rt_on_gpu.py"
TILES = (4, 1, 96, 96, 96)


def tensor_rt_tests() -> Iterator[Result]:
    command = [sys.executable, "-m", "pytest", TESTS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    print(done.stdout[-3000:])
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    passed = done.returncode == 0 and " passed" in last  # skipped tests alone prove nothing
    wanted = "all pass" if present_flavours() else ""
    yield Result(f"pytest {TESTS}", last, wanted, passed if wanted else None)


def tensor_rt_times() -> Iterator[Result]:
    """UNet3d over tiles as an archive run gives them: torch, then TensorRT built and reloaded."""
    if not present_flavours():
        yield Result("TensorRT", f"absent; {install_command()}")
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"FASTMED_CACHE": folder}),
    ):
        made = unet3d(Path(folder) / "unet3d")
        tiles = torch.rand(TILES, device="cuda")
        reference = open_engine(made, "torch", "cuda:0")[0]
        tf32 = seconds(lambda: reference(tiles))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected = reference(tiles).clone()
            exact = seconds(lambda: reference(tiles))
        yield Result("unet3d, torch", f"{exact * 1e3:.1f} ms in float32, {tf32 * 1e3:.1f} in TF32")
        try:
            yield from tensor_rt_on(made, tiles, expected)
        except EngineRefused as error:
            yield Result("unet3d, TensorRT", f"refused: {error}")


def tensor_rt_on(made, tiles: Tensor, expected: Tensor) -> Iterator[Result]:
    for what in ("built", "from the cache"):
        started = time.perf_counter()
        engine = TensorRtEngine(made, "cuda:0")
        found = engine(tiles)
        torch.cuda.synchronize()
        took = time.perf_counter() - started
        library = engine._target.flavour
        yield Result(f"unet3d, {library}, {what}", f"first answer after {took:.1f} s")
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    yield Result("unet3d, largest difference from torch", f"{error:.1e}", "2e-3", error <= 2e-3)
    yield Result(f"unet3d, {library}", f"{seconds(lambda: engine(tiles)) * 1e3:.1f} ms in float32")
    fewer = tiles[:1, :, :64].contiguous()
    engine(fewer)
    took = seconds(lambda: engine(fewer))
    yield Result(f"unet3d, {library}, one smaller tile", f"{took * 1e3:.1f} ms, no graph")


def unet3d(folder: Path) -> bundle.Bundle:
    """The demo model's network with fresh weights, at its own width."""
    demo = bundle.read(bundle.demo_path())
    network = models.build(demo.spec.network.name, **demo.spec.network.arguments)
    spec = replace(demo.spec, tile_zyx=TILES[2:])
    made = bundle.write(folder, spec, network)
    exporter.export(folder)
    return made


ALL = (tensor_rt_tests, tensor_rt_times)
