"""A GPU without room: smaller batches, then the CPU, and each scan says so."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
import scans as make
import torch

import fastmed
from fastmed.errors import SeriesError
from fastmed.inference import run_model, run_network
from fastmed.inference.case import Model
from fastmed.inference.out_of_memory import is_device_lost, is_out_of_memory, with_less
from fastmed.inference.shared_batches import SharedBatches


class OfOnnxRuntime(Exception):
    """As that library's errors are: of no type that others have."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("Failed to allocate memory for requested buffer of size 1048576"),
        RuntimeError("CUDA error: out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        SeriesError("TensorRT failed on tiles [4, 1, 64, 64, 64]: Cuda Runtime (out of memory)"),
        OfOnnxRuntime("Failed to allocate memory for requested buffer of size 1048576"),
    ],
    ids=str,
)
def test_libraries_say_it_in_several_ways(error):
    assert is_out_of_memory(error)
    assert not is_device_lost(error)
    assert not is_out_of_memory(RuntimeError("a bug"))
    assert not is_out_of_memory(ValueError("out of memory"))


_LOST = "an illegal memory access was encountered"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(f"CUDA error: {_LOST}"),
        torch.AcceleratorError("an error that has no name yet"),
        RuntimeError(f"CUDA error: {_LOST}"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        SeriesError(f"TensorRT failed on tiles [4, 1, 64, 64, 64]: Cuda Runtime ({_LOST})"),
        OfOnnxRuntime(f"CUDA failure 700: {_LOST} ; GPU=0"),
    ],
    ids=str,
)
def test_a_gpu_that_is_lost_is_told_from_one_without_room(error):
    assert is_device_lost(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: invalid configuration argument"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
        RuntimeError("a bug"),
        ValueError(f"CUDA error: {_LOST}"),
        SeriesError("the network returned logits that are not finite (engine torch)"),
    ],
    ids=str,
)
def test_an_error_that_leaves_the_gpu_as_it_was_is_no_loss(error):
    assert not is_device_lost(error)


class Small:
    """An engine that says it is a GPU, and has room for so many tiles at once."""

    def __init__(self, engine, room):
        self._engine, self._room = engine, room
        self.name, self.precision, self.say = "torch", "fp32", print
        self.device = "cuda:7"
        self.sizes = []

    def __call__(self, tiles):
        self.sizes.append(len(tiles))
        if len(tiles) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._engine(tiles)


@pytest.fixture
def run(tiny_bundle, tmp_path, monkeypatch):
    real = run_model.load

    def run(room, scans=1):
        for seed in range(scans):
            make.series(tmp_path / "in" / f"s{seed}", make.volume((30, 60, 70), seed=seed))

        def load(path, **options):
            from dataclasses import replace

            model = real(path, **options | {"device": "cpu"})
            run.engine = Small(model.engine, room)
            return replace(model, engine=run.engine)

        monkeypatch.setattr(run_model, "load", load)
        monkeypatch.setattr("fastmed.inference.case.to_grid", _on_cpu)
        options = {"model": tiny_bundle, "engine": "torch", "quiet": True}
        log = tmp_path / f"log{room}"
        done = fastmed.infer(tmp_path / "in", tmp_path / f"{room}", log=log, **options)
        assert [row.verdict for row in done.rows] == ["done"] * scans
        row = done.rows[0]
        events = [json.loads(line) for line in log.read_text().splitlines()]
        said = [event["reason"] for event in events if event["event"] == "fallback"]
        image = nibabel.load(done.output / "series" / row.name / "labels.nii.gz")
        return row.findings["warnings"], said, np.asarray(image.dataobj)

    return run


def _on_cpu(volume, spec, device):
    from fastmed.preprocessing import to_grid

    return to_grid(volume, spec, "cpu")


def test_it_asks_for_less_and_says_so(run):
    warnings, said, labels = run(4)
    assert (warnings, said) == ([], [])
    fewer, said, same = run(1)
    assert said == fewer
    assert fewer == [
        "cuda:7 ran out of memory: 2 of 4 tiles at once from here on",
        "cuda:7 ran out of memory: 1 of 2 tiles at once from here on",
    ]
    on_cpu, said, also_same = run(0)
    assert on_cpu[-1] == "cuda:7 ran out of memory with one tile: this scan ran on the CPU"
    assert len(said) == 3
    assert (labels == same).mean() > 0.9999
    assert (labels == also_same).mean() > 0.9999


def test_two_scans_of_one_batch_that_was_too_large_both_go_on_with_half_of_it():
    engine = Small(lambda tiles: tiles, 1)
    both = threading.Barrier(2)
    with SharedBatches(engine, 2) as shared, ThreadPoolExecutor(2) as pool:
        model = Model(spec=None, engine=shared, batch=2)

        def scan(_):
            with shared.scan():
                both.wait(10)
                with pytest.raises(torch.OutOfMemoryError):
                    shared(torch.zeros(1, 1, 1, 1, 1))
            less, words = with_less(model, on_cpu=lambda: pytest.fail("1 was not tried"))
            assert less.batch == shared.batch == 1
            return words

        said = set(pool.map(scan, range(2), timeout=60))
    assert engine.sizes == [2]
    assert said == {"cuda:7 ran out of memory: 1 of 2 tiles at once from here on"}


def test_two_scans_that_go_to_the_cpu_together_load_the_model_once(run, monkeypatch):
    real, loads = run_network.load, []

    def slow(path, **options):
        loads.append(path)
        threading.Event().wait(0.5)
        return real(path, **options)

    monkeypatch.setattr(run_network, "load", slow)
    run(0, scans=4)
    assert len(loads) == 1
