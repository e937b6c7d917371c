"""A torch network as a CUDA graph: one launch for one shape of tiles, in place of hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UPS = 3  # cuDNN and the allocator settle before anything is recorded


class CudaGraph:
    """`run`, recorded at its first call with tiles of one shape and replayed from then on.

    run: from tiles to logits, on the device, without reading either on the host; whatever it uses
        besides must stay where it is. say: receives a sentence where it cannot be recorded, and
        runs as it is.

    Logits are valid until the next call.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], device: str, say: Callable[[str], None]):
        self._run, self._device, self._say = run, device, say
        self._graph: torch.cuda.CUDAGraph | None = None
        self._fails = False

    def __call__(self, tiles: Tensor) -> Tensor:
        if self._fails:
            return self._run(tiles)
        if self._graph is None:
            try:
                self._record(tiles)
            except RuntimeError as error:  # also where memory is short
                self._fails, self._graph = True, None
                first = (str(error).splitlines() or [type(error).__name__])[0]
                self._say(f"torch runs without a CUDA graph: {first}")
                return self._run(tiles)
        with torch.inference_mode(False), torch.no_grad():  # whichever of them the caller is in
            self._tiles.copy_(tiles, non_blocking=True)
        self._graph.replay()
        return self._logits

    def _record(self, tiles: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._tiles = tiles.clone()
        current, aside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._run(self._tiles)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads read the next scans meanwhile: their calls are none of the graph's.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"),
        ):
            self._logits = self._run(self._tiles)
        self._graph = graph
