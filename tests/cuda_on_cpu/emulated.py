"""The CUDA kernels built for the host: how they are built, loaded and called.

As a pytest plugin (`-p emulated`, with this folder on PYTHONPATH) every test calls them.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

PROJECT = Path(__file__).parent.parent.parent
BUILD = PROJECT / "build" / "cuda_on_cpu"
ON_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@cache
def library() -> ctypes.CDLL:
    """Builds what has changed and loads it, so that torch.ops.fastmed_emulated exists.

    make sanitize has built it already, and says where: FASTMED_EMULATED.
    """
    ready = os.environ.get("FASTMED_EMULATED")
    path = Path(ready) if ready else _built()
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


def _built() -> Path:
    if os.uname().machine != "x86_64" or not shutil.which("cmake", path=TOOLS):
        pytest.skip("building the CUDA kernels for the host needs cmake and an x86-64 processor")
    configure = ["cmake", "-S", PROJECT, "-B", BUILD, "-G", "Ninja", "-DFASTMED_CUDA_ON_CPU=ON"]
    for command in (
        [*configure, f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", BUILD, "--target", "cuda_on_cpu"],
    ):
        done = subprocess.run(
            command, env={**os.environ, "PATH": TOOLS}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "cuda_on_cpu.so"


def set_order(seed: int) -> None:
    """Order in which blocks and threads take turns: 0 as numbered, 1 reversed, others shuffled."""
    library().cuda_on_cpu_set_order(ctypes.c_ulong(seed))


class Emulated(TorchDispatchMode):
    """Native ops go to the CUDA kernels on the host, in two orders that must agree.

    calls holds (name, arguments, result) of each.
    """

    def __init__(self):
        super().__init__()
        library()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "fastmed":
            return func(*args, **(kwargs or {}))
        name = func.name().removeprefix("fastmed::")
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmed_emulated::{name}", "CPU"):
            with self:  # on CUDA this op is Python over others
                return func.redispatch(ON_CUDA, *args, **(kwargs or {}))
        emulated = getattr(torch.ops.fastmed_emulated, name)
        results = []
        for seed in (0, 7):
            set_order(seed)
            results.append(emulated(*args, **(kwargs or {})))
        torch.testing.assert_close(
            *results, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{name}: by order: {text}"
        )
        self.calls.append((func, args, kwargs or {}, results[0]))
        return results[0]


@pytest.fixture(autouse=True)
def every_op_is_emulated():
    with Emulated():
        yield
