"""Loads the native library, so that torch.ops.fastmed exists."""

import importlib.util
import os

import torch

_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


def _load(name: str, *, required: bool) -> None:
    # The import system knows where a wheel, an editable install or a source tree keeps the file.
    spec = importlib.util.find_spec(f"fastmed.{name}")
    if spec is not None and spec.origin is not None:
        torch.ops.load_library(spec.origin)
    elif required:
        raise ImportError(
            f"fastmed/{name}.so is missing: build it with `pip install --no-build-isolation -e .`"
        )


def instruction_set() -> str:
    """The version of the CPU kernels that this process runs: baseline, avx2 or avx512."""
    return _INSTRUCTION_SETS[torch.ops.fastmed.instruction_set()]


def _check_choice() -> None:
    wanted = os.environ.get("FASTMED_CPU")
    if wanted is not None and wanted != instruction_set():
        known = ", ".join(_INSTRUCTION_SETS)
        raise ImportError(
            f"FASTMED_CPU: {wanted!r} is none of {known}, or more than this CPU has; "
            f"unset it for its best, {instruction_set()}"
        )


_load("_C", required=True)
_check_choice()
if torch.version.cuda is not None:
    # Without it the ops still run on CPU tensors; `fastmed doctor` reports its absence.
    _load("_C_cuda", required=False)
