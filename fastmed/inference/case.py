"""One case: a Volume goes in, Findings come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastmed import bundle as bundles
from fastmed.bundle import Bundle
from fastmed.errors import SeriesError
from fastmed.findings import Findings
from fastmed.inference.engines import Engine, open_engine
from fastmed.inference.sliding_window import sliding_window
from fastmed.preprocessing import to_grid
from fastmed.tasks import segmentation
from fastmed.volume import Volume


class StageClock:
    """Adds up the seconds that each stage of a run takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str):
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


@dataclass(frozen=True)
class Model:
    """A bundle that is loaded into an engine. `model(volume)` returns Findings.

    engine_choice: one sentence that says which engine runs and why.
    """

    bundle: Bundle
    engine: Engine
    engine_choice: str
    batch: int = field(default=1)

    def __call__(
        self,
        volume: Volume,
        *,
        clock: StageClock | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Findings:
        """Finds what the model knows in one scan.

        clock: receives the seconds of the stages resample, network, stitch and decode.
        progress: called with the tiles done and their total.

        Raises SeriesError where the network returns logits that are not finite: they never
        become background.
        """
        clock = clock or StageClock()
        spec = self.bundle.spec
        with clock("resample"):
            image, grid = to_grid(volume, spec, self.engine.device)
        started = time.perf_counter()
        network_seconds = 0.0

        def network(tiles: torch.Tensor) -> torch.Tensor:
            nonlocal network_seconds
            before = time.perf_counter()
            logits = self.engine(tiles)
            network_seconds += time.perf_counter() - before
            return logits

        logits = sliding_window(
            image,
            network,
            num_classes=spec.num_classes,
            tile_zyx=spec.tile_zyx,
            overlap=spec.overlap,
            size_multiple=spec.size_multiple,
            batch=self.batch,
            progress=progress,
        )
        clock.seconds["network"] = clock.seconds.get("network", 0.0) + network_seconds
        stitch = time.perf_counter() - started - network_seconds
        clock.seconds["stitch"] = clock.seconds.get("stitch", 0.0) + stitch
        del image
        with clock("decode"):
            self._check(logits)
            return segmentation.decode(logits, grid, volume, spec)

    def _check(self, logits: torch.Tensor) -> None:
        expected = self.bundle.spec.num_classes
        if logits.shape[0] not in ({1, 2} if expected == 2 else {expected}):
            raise SeriesError(
                f"the network returned {logits.shape[0]} classes; bundle.toml names "
                f"{expected - 1} labels and the background"
            )
        # One pass that allocates nothing; NaN shows in the extremes as infinity does.
        if not torch.isfinite(torch.stack(logits.aminmax())).all():
            raise SeriesError(
                f"the network returned logits that are not finite (engine {self.engine.name}); "
                "try --engine torch, and check that the scan is in HU"
            )


def load(bundle: str | Path | None = None, *, engine: str = "auto", device: str = "auto") -> Model:
    """Loads a bundle for inference.

    bundle: its folder; None takes the demo bundle (liver) of the package.
    engine: "auto", "torch", "ort" or "ov"; device: "auto", "cpu", "cuda" or "cuda:1".

    Raises BundleError for a damaged bundle, UsageError for an absent engine or device.

        model = fastmed.load("my-bundle")
        findings = model(fastmed.read("scan/")[0])
    """
    read = bundles.read(bundle if bundle is not None else bundles.demo_path())
    opened, choice = open_engine(read, engine, device)
    return Model(read, opened, choice, batch=4 if opened.device.startswith("cuda") else 1)
