"""What a GPU fails with: out of memory, fewer tiles at once or the CPU help; lost, nothing does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fastmed.errors import SeriesError
from fastmed.inference.case import Model
from fastmed.inference.engines.protocol import usual_batch
from fastmed.inference.shared_batches import SharedBatches

_NO_ROOM = (
    "out of memory",
    "failed to allocate",
    "cudaerrormemoryallocation",
    "status_alloc_failed",
    "device_allocation_failed",
)
_OF_CUDA = ("cuda error", "cuda failure", "cudnn error", "cuda runtime (", "cuda driver (")
# What CUDA refuses to begin with; the next call is none the worse for it.
_REFUSED = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "invalid device ordinal",
    "no kernel image is available",
    "too many resources requested",
    "status_invalid_value",
    "status_not_supported",
    "status_bad_param",
    "status_arch_mismatch",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of torch or of another engine's library, says that a GPU has no room."""
    return isinstance(error, torch.OutOfMemoryError) or (
        _is_of_an_engine(error) and _says(error, _NO_ROOM)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether after this error every further call to the GPU fails in this process.

    So it is after an illegal memory access or a failed assertion on the GPU, and after whatever
    CUDA says that is neither out of memory nor a refusal to begin. Only a new process helps.
    """
    if not _is_of_an_engine(error) or is_out_of_memory(error) or _says(error, _REFUSED):
        return False
    return isinstance(error, torch.AcceleratorError) or _says(error, _OF_CUDA)


def _is_of_an_engine(error: BaseException) -> bool:
    """Of torch, of ONNX Runtime (its errors have no common type), or what TensorRT's become."""
    of_onnx_runtime = type(error).__module__.startswith("onnxruntime")
    return isinstance(error, RuntimeError | SeriesError) or of_onnx_runtime


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(phrase in text for phrase in words)


def with_less(model: Model, on_cpu: Callable[[], Model]) -> tuple[Model, str]:
    """The same model as it takes less of the GPU's memory, and a sentence that says so.

    model: as the scan that failed had it, on a GPU; its `batch` says what that scan began with.
    Where scans share batches and another has had them halved since, that is what is tried next.
    on_cpu: gives the model on the CPU.
    """
    device = model.engine.device
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    batch = model.batch or usual_batch(model.spec, device)
    if batch == 1:
        return on_cpu(), f"{device} ran out of memory with one tile: this scan ran on the CPU"
    shares = isinstance(model.engine, SharedBatches)
    fewer = model.engine.halve(batch) if shares else batch // 2
    words = f"{device} ran out of memory: {fewer} of {batch} tiles at once from here on"
    return replace(model, batch=fewer), words
