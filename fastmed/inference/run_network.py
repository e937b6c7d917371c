"""The network of a run: scans share its batches, and get less of a GPU that is out of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor

from fastmed.geometry import Geometry
from fastmed.inference.case import Model, StageClock, load
from fastmed.inference.engines.protocol import usual_batch
from fastmed.inference.out_of_memory import is_out_of_memory, with_less
from fastmed.inference.shared_batches import SharedBatches
from fastmed.volume import Volume

_SHARING = 2  # scans whose tiles share batches, where a batch is more than one tile


class RunNetwork:
    """A model's network for the scans of a run; use it as a context manager.

    at_once: how many scans it looks at together, each in a thread of its caller's.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._batch = model.batch or usual_batch(model.spec, model.engine.device)
        self.at_once = 1 if self._batch == 1 else _SHARING
        self._shared: SharedBatches | None = None
        self._lessening = threading.RLock()  # scans that run out of memory together do so in turn
        self._cpu_model: Model | None = None
        self._reduced: tuple[str, ...] = ()  # what all scans say from then on

    def __enter__(self) -> RunNetwork:
        if self.at_once > 1:
            self._shared = SharedBatches(self._model.engine, self._batch).__enter__()
            self._model = replace(self._model, engine=self._shared, batch=self._batch)
        return self

    def __exit__(self, *_) -> None:
        if self._shared is not None:
            self._shared.__exit__()

    def look(
        self,
        volume: Volume,
        image: Tensor,
        grid: Geometry,
        clock: StageClock,
        progress: Callable[[int, int], None],
        fallback: Callable[[str], None],
    ) -> tuple[Any, Geometry, Model, tuple[str, ...]]:
        """What the network says; out of memory, it is asked in smaller batches, then on the CPU.

        image, grid: what `Model.prepare` made of the volume. fallback: receives a sentence where
        there was no room.

        Returns what was said, the grid that it is of, the model that can decode it, and warnings.
        """
        model, warnings = self._model, self._reduced
        while True:
            try:
                with model.engine.scan() if model.engine is self._shared else nullcontext():
                    said = model.look(image, grid, clock=clock, progress=progress, brief=True)
                if isinstance(said, Tensor) and said.dim() == 1:
                    said = said.clone()  # scores may lie in the engine's own memory
                return said, grid, model, warnings
            except Exception as error:
                if model.engine.device == "cpu" or not is_out_of_memory(error):
                    raise
            # Behind the except: the error's frames hold what the scan took of the GPU's memory.
            with self._lessening:
                model, words = with_less(model, self._on_cpu)
                is_on_cpu = model.engine.device == "cpu"
                if not is_on_cpu and model.batch != self._model.batch:
                    self._model, self._reduced = model, (words,)
            if is_on_cpu:
                image, grid = model.prepare(volume, clock=clock)
            warnings += (words,)
            fallback(words)

    def _on_cpu(self) -> Model:
        with self._lessening:
            if self._cpu_model is None:
                path = self._model.bundle.path
                self._cpu_model = load(path, device="cpu", say=lambda _: None)
            return self._cpu_model
