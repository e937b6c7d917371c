"""The OpenVINO engine: what it keeps on disk, and what it leaves behind."""

import subprocess
import sys

import pytest
import torch

from fastmed import bundle
from fastmed.inference.engines import open_engine


@pytest.fixture
def read(tiny_bundle):
    return bundle.read(tiny_bundle)


@pytest.fixture
def kept(read, tmp_path, monkeypatch):
    """Returns a function that runs a fresh OpenVINO engine on the spec's tile; files lie in k/."""
    openvino = pytest.importorskip("openvino")
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "k"))
    compiled = []
    compile_model = openvino.Core.compile_model

    def counted(core, *arguments):
        compiled.append(arguments)
        return compile_model(core, *arguments)

    monkeypatch.setattr(openvino.Core, "compile_model", counted)

    def run(size=(32, 32, 32)):
        tiles = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
        return open_engine(read, "ov", "cpu")[0](tiles).clone(), len(compiled)

    run.files = lambda: sorted((tmp_path / "k").glob("openvino-*"))
    return run


def test_openvino_keeps_what_it_compiled_for_the_tile(kept):
    first, _ = kept()
    again, compiled = kept()
    assert torch.equal(first, again)
    assert compiled == 1
    assert [path.suffix for path in kept.files()] == [".bin", ".json"]
    assert kept((16, 32, 48))[1] == 2  # another shape is compiled and not kept
    assert len(kept.files()) == 2


DAMAGED_KEPT = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "a bit turned": lambda path: path.write_bytes(path.read_bytes()[:-999] + b"\x00" * 999),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGED_KEPT.values(), ids=DAMAGED_KEPT.keys())
def test_a_damaged_kept_network_is_compiled_again(kept, damage):
    first, _ = kept()
    damage(kept.files()[0])
    again, compiled = kept()
    assert torch.equal(first, again)
    assert compiled == 2


def test_a_kept_network_that_openvino_refuses_is_compiled_again(kept, monkeypatch):
    import openvino

    first, _ = kept()

    def refuse(*arguments):
        raise RuntimeError("built by another version")

    monkeypatch.setattr(openvino.Core, "import_model", refuse)
    again, compiled = kept()
    assert torch.equal(first, again)
    assert compiled == 2


def test_a_cache_that_cannot_be_written_costs_openvino_a_compilation_only(
    kept, tmp_path, monkeypatch
):
    (tmp_path / "k").write_text("no folder")
    first, _ = kept()
    again, compiled = kept()
    assert torch.equal(first, again)
    assert compiled == 2


COME_AND_GO = """
import ctypes, gc, sys, torch
from fastmed import bundle
from fastmed.inference.engines import open_engine

class Stack(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def stack_of_signals():
    found = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.place

def opened():
    engine = open_engine(bundle.read(sys.argv[1]), "ov", "cpu")[0]
    engine(torch.zeros(1, 1, 16, 16, 16))
    return engine

engines = [opened()]
in_use = stack_of_signals()
engines += [opened(), opened()]
while engines:
    engines.pop(0)
    gc.collect()
print(stack_of_signals() == in_use)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO gives signals a stack on Linux")
def test_openvinos_engines_leave_signals_a_stack_when_they_go(read):
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", COME_AND_GO, str(read.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
