"""Checks and times the engines on a GPU: torch, ONNX Runtime and TensorRT, network by network."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from gpu_report import Result
from gpu_timings import seconds
from torch import Tensor

import fastmed
from fastmed import bundle, exporter, models
from fastmed.errors import FastmedError
from fastmed.inference.engines import NetworkEngine, open_engine, present
from fastmed.phantom_scans import write_phantoms
from fastmed.spec import Detection, Label, Network, Spec

PROJECT = Path(__file__).parent.parent
TESTS = ("test_torch_graph", "test_onnx_runtime_on_gpu", "test_tensor_rt_on_gpu")
DEVICE = "cuda:0"
SSD3D = Spec(
    name="ssd3d",
    task="detection",
    labels=(Label(1, "nodule"),),
    spacing_mm_zyx=(1.5, 1.5, 1.5),
    window_hu=(-1000.0, 400.0),
    tile_zyx=(48, 80, 80),
    detection=Detection(strides=(4, 8), diameters_mm=((5.5, 9.0), (13.0, 18.0))),
    network=Network(
        "ssd3d", {"num_classes": 2, "base_channels": 16, "pyramid_channels": 48, "strides": [4, 8]}
    ),
)


def engine_tests() -> Iterator[Result]:
    for name in TESTS:
        path = f"tests/inference/{name}.py"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", path], cwd=PROJECT, capture_output=True, text=True
        )
        print(done.stdout[-3000:])
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        # Skipped tests alone prove nothing, and say that the engine is absent.
        verdict = None if done.returncode == 0 and " passed" not in last else done.returncode == 0
        yield Result(f"pytest {path}", last, "all pass", verdict)


def engine_times() -> Iterator[Result]:
    """Each engine over full batches of tiles, as an archive run gives them."""
    demo = bundle.read(bundle.demo_path()).spec
    for spec in (replace(demo, name="unet3d", tile_zyx=(128, 128, 128)), SSD3D):
        with own_cache() as folder:
            made = written(spec, folder / spec.name)
            tiles = torch.rand(4, 1, *spec.tile_zyx, device=DEVICE)
            yield from torch_times(made, tiles)
            for precision in ("fp32", "fp16"):
                for engine in ("torch", "ort", "trt"):
                    yield from times_of(engine, precision, made, tiles)


def torch_times(made: bundle.Bundle, tiles: Tensor) -> Iterator[Result]:
    eager = eager_of(made)
    with in_float32():
        exact = seconds(lambda: eager(tiles))
    with torch.autocast("cuda", torch.float16):
        mixed = seconds(lambda: eager(tiles))
    found = f"{exact * 1e3:.1f} ms, TF32 {seconds(lambda: eager(tiles)) * 1e3:.1f} ms"
    yield Result(f"{made.spec.name}, torch eager", f"{found}, autocast {mixed * 1e3:.1f} ms")


def times_of(engine: str, precision: str, made: bundle.Bundle, tiles: Tensor) -> Iterator[Result]:
    what = f"{made.spec.name}, {engine} in {precision}"
    if lacking := present(made, DEVICE, precision)[engine]:
        yield Result(what, lacking)
        return
    with in_float32():
        expected = eager_of(made)(tiles).clone()
        for start in ("first start", "second start"):
            began = time.perf_counter()
            try:
                opened = open_engine(made, engine, DEVICE, precision)[0]
                found = opened(tiles).clone()
            except FastmedError as error:
                yield Result(what, f"refused: {error}")
                return
            torch.cuda.synchronize()
            yield Result(f"{what}, {start}", f"first answer in {time.perf_counter() - began:.1f} s")
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        wanted, limit = ("2e-3", 2e-3) if precision == "fp32" else ("", float("inf"))
        passed = error <= limit if wanted else None
        yield Result(f"{what}, largest difference from torch", f"{error:.1e}", wanted, passed)
        yield Result(what, f"{seconds(lambda: opened(tiles)) * 1e3:.1f} ms")


def archive_through_tensor_rt() -> Iterator[Result]:
    """The demo model over the phantom archive, twice: the second run finds its engine kept."""
    if lacking := present(bundle.read(bundle.demo_path()), DEVICE, "fp32")["trt"]:
        yield Result("fastmed infer --engine trt", lacking)
        return
    with own_cache() as folder:
        write_phantoms("archive", folder / "scans", count=6, seed=0)
        tables = []
        for run in ("first", "second"):
            began = time.perf_counter()
            try:
                done = fastmed.infer(
                    folder / "scans", folder / run, engine="trt", device=DEVICE, quiet=True
                )
            except FastmedError as error:
                yield Result("fastmed infer --engine trt", f"refused: {error}")
                return
            took = time.perf_counter() - began
            verdicts = [row.verdict for row in done.rows]
            counts = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted({*verdicts}))
            yield Result(f"fastmed infer --engine trt, {run} run", f"{took:.1f} s: {counts}")
            tables.append((folder / run / "findings.csv").read_bytes())
        same = tables[0] == tables[1]
        yield Result("both runs' findings.csv", "same" if same else "DIFFERENT", "same", same)


def certificate() -> Iterator[Result]:
    """The demo model's certificate on phantoms, of all engines that this GPU has."""
    with own_cache() as folder:
        copy = shutil.copytree(bundle.demo_path(), folder / "demo-liver")
        exporter.export(copy, precision="fp16")
        write_phantoms("abdomen", folder / "scans", count=2, seed=0)
        found = fastmed.certify(copy, folder / "scans", device=DEVICE, quiet=True)
    for row in found.rows:
        why = "; ".join(row.misses) or row.absent or f"{row.network_seconds:.2f} s in the network"
        passed = None if row.absent or row.precision != "fp32" else not row.misses
        what = f"certificate, {row.engine} in {row.precision}"
        yield Result(what, f"{row.verdict}: {why}", "" if passed is None else "passed", passed)


def eager_of(made: bundle.Bundle) -> NetworkEngine:
    network = made.network().to(DEVICE, memory_format=torch.channels_last_3d)
    return NetworkEngine(network, made.spec, DEVICE)


def written(spec: Spec, folder: Path) -> bundle.Bundle:
    """A bundle of fresh weights, exported in float32 and float16."""
    made = bundle.write(folder, spec, models.build(spec.network.name, **spec.network.arguments))
    for precision in ("fp32", "fp16"):
        exporter.export(folder, precision=precision)
    return made


@contextmanager
def own_cache() -> Iterator[Path]:
    """A folder that goes again, with the caches in it."""
    with (
        tempfile.TemporaryDirectory() as name,
        patch.dict(os.environ, {"FASTMED_CACHE": str(Path(name) / "cache")}),
    ):
        yield Path(name)


def in_float32():
    """Convolutions of torch in float32, which it would round to TF32's 10 bits on a GPU."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


ALL = (engine_tests, engine_times, archive_through_tensor_rt, certificate)
