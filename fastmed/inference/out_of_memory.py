"""Out of memory on a GPU: fewer tiles at once, then the CPU, and each scan says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fastmed.inference.case import Model
from fastmed.inference.engines.protocol import usual_batch
from fastmed.inference.shared_batches import SharedBatches

_WORDS = ("out of memory", "failed to allocate", "cudaerrormemoryallocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of torch or of another engine's library, says that a GPU has no room."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def with_less(model: Model, on_cpu: Callable[[], Model]) -> tuple[Model, str] | None:
    """The same model as it takes less of the GPU's memory, and a sentence that says so.

    on_cpu: gives the model on the CPU. None where there is nothing left to try.
    """
    device = model.engine.device
    if device == "cpu":
        return None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    shared = model.engine if isinstance(model.engine, SharedBatches) else None
    batch = shared.batch if shared else model.batch or usual_batch(model.spec, device)
    if batch > 1:
        if shared:
            shared.batch = batch // 2
        words = f"{device} ran out of memory: {batch // 2} of {batch} tiles at once from here on"
        return replace(model, batch=batch // 2), words
    return on_cpu(), f"{device} ran out of memory with one tile: this scan ran on the CPU"
