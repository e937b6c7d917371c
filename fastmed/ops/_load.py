"""Loads the native library, so that torch.ops.fastmed exists."""

import importlib.util

import torch


def _load(name: str, *, required: bool) -> None:
    # The import system knows where a wheel, an editable install or a source tree keeps the file.
    spec = importlib.util.find_spec(f"fastmed.{name}")
    if spec is not None and spec.origin is not None:
        torch.ops.load_library(spec.origin)
    elif required:
        raise ImportError(
            f"fastmed/{name}.so is missing: build it with `pip install --no-build-isolation -e .`"
        )


_load("_C", required=True)
if torch.version.cuda is not None:
    # Without it the ops still run on CPU tensors; `fastmed doctor` reports its absence.
    _load("_C_cuda", required=False)
