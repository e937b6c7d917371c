"""What malloc does with freed memory: kept, or returned in large blocks."""

import platform
import resource
import subprocess
import sys
from functools import partial

import pytest

from fastmed import malloc

FAULTS = """
import resource, sys, torch
from fastmed.malloc import keep_freed_memory

if sys.argv[1] == "keeps":
    assert keep_freed_memory()
for _ in range(20):  # the heap settles
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed(script: str, how: str) -> float:
    """The number that a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, how], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_used_again():
    faults = {how: printed(FAULTS, how) for how in ("keeps", "returns")}
    pages = 10 * 2**26 // resource.getpagesize()
    assert faults["keeps"] < 0.1 * pages
    if faults["returns"] < 0.9 * pages:  # so that nothing would be shown
        pytest.skip("this system maps large pages by itself")


def test_with_torch_on_the_cpu_a_run_keeps_it_else_returns_it(tiny_bundle, tmp_path, monkeypatch):
    import scans as make

    import fastmed
    from fastmed.cli import main
    from fastmed.inference import run_model

    said = []
    for name in ("keep_freed_memory", "return_large_blocks"):
        monkeypatch.setattr(run_model, name, partial(said.append, name))
    monkeypatch.setattr(run_model, "keep_result_memory", said.append)
    make.series(tmp_path / "in")
    options = {"model": tiny_bundle, "device": "cpu", "quiet": True}
    fastmed.infer(tmp_path / "in", tmp_path / "a", engine="torch", **options)
    assert said == []
    fastmed.infer(tmp_path / "in", tmp_path / "b", engine="torch", tune_malloc=True, **options)
    assert said == ["keep_freed_memory", 0]
    command = ["infer", "--input", tmp_path / "in", "--output", tmp_path / "d", "--quiet"]
    command += ["--model", tiny_bundle, "--engine", "torch", "--device", "cpu", "--workers", "0"]
    assert main([*map(str, command)]) == 0
    assert said == ["keep_freed_memory", 0] * 2
    pytest.importorskip("onnxruntime")
    fastmed.infer(tmp_path / "in", tmp_path / "c", engine="ort", tune_malloc=True, **options)
    assert said[4:] == ["return_large_blocks", 0]


RETURNED = """
import resource, sys, torch
from pathlib import Path
from fastmed.malloc import return_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

if sys.argv[1] == "returns":
    assert return_large_blocks()
torch.ones(2**23 - 2**16)  # 32 MB, nearly: glibc learns to keep such blocks
before = resident()
blocks = [(torch.ones(5 * 2**20), torch.ones(2**10)) for _ in range(10)]
small = [small for _, small in blocks]
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_large_blocks_leave_no_holes_between_small_ones():
    held = {how: printed(RETURNED, how) for how in ("returns", "keeps")}
    assert held["returns"] < 20
    assert held["keeps"] > 100  # or nothing would be shown


def test_a_machine_without_glibc_goes_on_as_it_is(monkeypatch):
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: object())
    assert not malloc.keep_freed_memory()
    assert not malloc.return_large_blocks()
