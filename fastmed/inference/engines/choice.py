"""Choice: which of the engines that are present is the fastest for a bundle on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmed.bundle import Bundle
from fastmed.cache_folder import cache_folder
from fastmed.errors import BundleError
from fastmed.inference.engines.engine_cache import EngineCache, Entry
from fastmed.inference.engines.protocol import Engine, EngineFailed, EngineRefused, usual_batch
from fastmed.inference.machine import machine
from fastmed.spec import Spec

_RUNS = 3  # after the first, which compiles
_CLEARLY = 0.9  # of the time of one that the table prefers: less is no matter of chance


@dataclass(frozen=True)
class Measured:
    """What engines took for a bundle's own tile.

    seconds: by engine, the best of three. refused: by engine, why it is none: it does not take the
    device, or its logits are not torch's.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def order(self, names: Sequence[str]) -> list[str]:
        """The engines of `names` from the best: each before those that are not clearly faster."""
        ranked: list[str] = []
        for name in (n for n in names if n in self.seconds):
            place = 0
            while (
                place < len(ranked) and self.seconds[name] >= _CLEARLY * self.seconds[ranked[place]]
            ):
                place += 1
            ranked.insert(place, name)
        return ranked

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.3g} s" for name, seconds in self.seconds.items())


def measured(
    bundle: Bundle,
    device: str,
    precision: str,
    versions: dict[str, str],
    build: Callable[[str], Engine],
    say: Callable[[str], None],
) -> Measured:
    """Times engines on the bundle's own tile; what was measured on this machine is remembered,
    unless an engine failed of what may pass, such as memory that was short.

    versions: the engines to time, each with its library's version. build: opens one by its name.
    say: receives a sentence before the first measuring.

    In float32 the logits must be torch's, as near as the spec's limits ask, where torch is among
    them. The tile is smooth noise in 0..1: no answer depends on what is measured here, but which
    engine gives it.
    """
    facts = {
        "bundle": bundle.sha256(),
        "machine": machine(device),
        "device": device,
        "precision": precision,
        "versions": versions,
    }
    cache, entry = EngineCache(cache_folder("engines")), Entry("choice", facts)
    if kept := cache.read(entry):
        return Measured(**json.loads(kept))
    say(f"Timing {', '.join(versions)} on this machine, once for this model ...")
    found, is_lasting = _measure(bundle.spec, device, precision, versions, build)
    if not is_lasting:
        return found
    if problem := cache.write(entry, json.dumps(asdict(found)).encode()):
        say(problem)
    return found


def _measure(
    spec: Spec, device: str, precision: str, names: Iterable[str], build: Callable[[str], Engine]
) -> tuple[Measured, bool]:
    """What was measured, and whether it would be the same tomorrow: memory may have been short."""
    tile = example_tiles(spec, device)
    found, logits, is_lasting = Measured(), {}, True
    for name in names:
        try:
            engine = build(name)
            said = engine(tile).clone()
            found.seconds[name] = min(_seconds(engine, tile) for _ in range(_RUNS))
            logits[name] = said
        except Exception as error:  # the other engines may know the network
            if isinstance(error, BundleError) and not isinstance(error, EngineFailed):
                raise
            found.refused[name] = " ".join(str(error).split())[:300] or type(error).__name__
            is_lasting &= isinstance(error, EngineRefused)
    reference = logits.pop("torch", None)
    if precision == "fp32" and reference is not None:
        largest = float(reference.abs().max())
        for name, said in logits.items():
            apart = float((said - reference).abs().max()) / (largest or 1.0)
            if not apart <= spec.limits.logits:  # nor where it is no number
                found.refused[name] = f"its logits differ from torch's by {apart:.2g}"
                del found.seconds[name]
    return found, is_lasting


def _seconds(engine: Engine, tile: Tensor) -> float:
    _wait(tile)
    started = time.perf_counter()
    engine(tile)
    _wait(tile)
    return time.perf_counter() - started


def _wait(tile: Tensor) -> None:
    if tile.is_cuda:
        torch.cuda.synchronize(tile.device)


def example_tiles(spec: Spec, device: str) -> Tensor:
    """As many tiles as a run gives an engine at once, [B, C, D, H, W] float32."""
    deep = 128 if spec.dimensions == 3 else 1
    size = spec.tile_zyx or spec.size_zyx or (deep, 128, 128)
    batch = usual_batch(spec, device)
    coarse = [max(n // 8, 1) for n in size]
    noise = torch.rand(batch, spec.slices, *coarse, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size, mode="trilinear").contiguous().to(device)
