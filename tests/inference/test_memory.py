"""A process that keeps its memory takes no new pages for what it has had before."""

import platform
import resource
import subprocess
import sys

import numpy as np
import pytest

from fastmed.inference.memory import pinned

FAULTS = """
import resource, sys, torch
from fastmed.inference.memory import keep_freed_memory

if sys.argv[1] == "keeps":
    assert keep_freed_memory()
for _ in range(20):  # the heap settles
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_used_again():
    faults = {}
    for how in ("keeps", "returns"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        faults[how] = int(done.stdout)
    pages = 10 * 2**26 // resource.getpagesize()
    assert faults["keeps"] < 0.1 * pages
    if faults["returns"] < 0.9 * pages:  # so that nothing would be shown
        pytest.skip("this system maps large pages by itself")


def test_only_torch_on_the_cpu_keeps_it(tiny_bundle, tmp_path, monkeypatch):
    import scans as make

    import fastmed
    from fastmed.cli import main
    from fastmed.inference import run_model

    kept = []
    monkeypatch.setattr(run_model, "keep_freed_memory", lambda: kept.append(True))
    make.series(tmp_path / "in")
    options = {"model": tiny_bundle, "device": "cpu", "quiet": True}
    fastmed.infer(tmp_path / "in", tmp_path / "a", engine="torch", **options)
    assert kept == []
    fastmed.infer(tmp_path / "in", tmp_path / "b", engine="torch", keep_memory=True, **options)
    assert kept == [True]
    command = ["infer", "--input", tmp_path / "in", "--output", tmp_path / "d", "--quiet"]
    command += ["--model", tiny_bundle, "--engine", "torch", "--device", "cpu", "--workers", "0"]
    assert main([*map(str, command)]) == 0
    assert kept == [True, True]
    kept.clear()
    pytest.importorskip("onnxruntime")
    fastmed.infer(tmp_path / "in", tmp_path / "c", engine="ort", keep_memory=True, **options)
    assert kept == []


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32], ids=lambda d: d.__name__)
def test_pinned_memory_is_an_array_also_where_there_is_no_gpu(dtype):
    array = pinned((2, 3, 4), np.dtype(dtype))
    assert (array.shape, array.dtype) == ((2, 3, 4), dtype)
    array[...] = 7
    assert array.sum() == 7 * 24
