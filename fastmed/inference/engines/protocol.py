"""What an engine is, and what all engines do alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from fastmed.errors import BundleError, SeriesError, UsageError
from fastmed.spec import Spec

# Tiles at once by dimensions, on CUDA. One tile fills a CPU, also one slice of 256 x 256: of eight
# at once, OpenVINO takes as long for each.
CUDA_BATCHES = {3: 4, 2: 8}


def usual_batch(spec: Spec, device: str) -> int:
    """How many tiles a run gives an engine at once, of a full batch."""
    if device == "cpu" or spec.task == "classification":
        return 1
    return CUDA_BATCHES[spec.dimensions]


def say_on_stderr(sentence: str) -> None:
    """Where engines say what takes long, unless told otherwise."""
    print(sentence, file=sys.stderr)


class EngineRefused(UsageError):
    """An engine's library is present, but does not take this device or this network."""


class EngineFailed(BundleError):
    """An engine's library gave up on a network whose file is whole; others may know it."""


class Engine(Protocol):
    """A network that is loaded and ready.

    name: as --engine names it. device: "cpu" or "cuda:0". precision: what it computes in, "fp32",
    "fp16", "bf16" or "int8". say: receives a sentence where something takes long, such as a build.
    Called with tiles [B, C, D, H, W] float32 on `device`, it returns logits [B, K, D, H, W]
    float32 there, [B, K] from a classification or [B, N, 2K + classes] from a detection; they stay
    valid until the next call.
    """

    name: str
    device: str
    precision: str
    say: Callable[[str], None]

    def __call__(self, tiles: Tensor) -> Tensor: ...

    def network_input(self, tiles: Tensor) -> Tensor: ...


class TileEngine:
    """What all engines do alike: a network of slices sees tiles [B, C, 1, H, W] as [B, C, H, W].

    One of a detection that takes more channels than there are slices to see sees one slice in each.
    """

    def __init__(self, spec: Spec, device: str, precision: str = "fp32"):
        self.say: Callable[[str], None] = say_on_stderr
        self.device, self.precision = device, precision
        self._flat = spec.dimensions == 2
        self._repeats = self._flat and spec.task == "detection"
        self._channels: int | None = None  # of the network's input, where it says so

    def __call__(self, tiles: Tensor) -> Tensor:
        logits = self._run(self.network_input(tiles))
        return logits.unsqueeze(2) if self._flat and logits.dim() == 4 else logits

    def network_input(self, tiles: Tensor) -> Tensor:
        """Tiles as the network itself takes them."""
        tiles = self._repeated(tiles) if self._repeats else tiles
        return tiles.squeeze(2) if self._flat else tiles

    def _repeated(self, tiles: Tensor) -> Tensor:
        given, wanted = tiles.shape[1], self._channels
        if wanted is None or given == wanted:
            return tiles
        if given > 1:
            raise SeriesError(
                f"the network takes images of {wanted} channels; bundle.toml's [grid] slices gives "
                f"{given}"
            )
        return tiles.expand(-1, wanted, -1, -1, -1).contiguous()

    def _run(self, tiles: Tensor) -> Tensor:
        raise NotImplementedError
