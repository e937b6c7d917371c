"""One case: a Volume goes in, Findings come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastmed import bundle as bundles
from fastmed.bundle import Bundle
from fastmed.errors import SeriesError
from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.inference.engines import Engine, open_engine
from fastmed.inference.sliding_window import sliding_window
from fastmed.preprocessing import to_grid
from fastmed.spec import Spec
from fastmed.tasks import classification, segmentation
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
    """A network with the spec that gives it meaning. `model(volume)` returns Findings.

    engine: what runs the network; around one in training, an `engines.NetworkEngine`.
    engine_choice: one sentence that says which engine runs and why.
    batch: tiles that the engine is given at once; None takes what suits its device.
    bundle: the folder that it was loaded from, if it was.
    """

    spec: Spec
    engine: Engine
    engine_choice: str = ""
    batch: int | None = None
    bundle: Bundle | None = None

    def __call__(
        self,
        volume: Volume,
        *,
        clock: StageClock | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Findings:
        """Finds what the model knows in one scan: a label map with figures, or scores.

        clock: receives the seconds of the stages resample, network, stitch and decode.
        progress: called with the tiles done and their total.

        Raises SeriesError where the scan lacks what the spec asks for (lungs, a spacing), and
        where the network returns logits that are not finite: they never become an answer.
        """
        clock = clock or StageClock()
        logits, grid = self.see(volume, clock=clock, progress=progress)
        return self.decode(logits, grid, volume, clock=clock)

    def see(
        self,
        volume: Volume,
        *,
        clock: StageClock | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Tensor, Geometry]:
        """The first half of a call: the network's logits of a scan, checked, and their grid.

        Logits are [classes, D, H, W] of a segmentation and [classes] of a classification. Raises
        SeriesError as a call does.
        """
        clock = clock or StageClock()
        task = _TASKS[self.spec.task]
        with clock("resample"):
            image, grid = to_grid(volume, self.spec, self.engine.device)
        started = time.perf_counter()
        network_seconds = 0.0

        def network(tiles: Tensor) -> Tensor:
            nonlocal network_seconds
            before = time.perf_counter()
            logits = self.engine(tiles)
            network_seconds += time.perf_counter() - before
            if logits.dim() != task.logits_axes:
                raise SeriesError(
                    f"the network returned logits of {logits.dim()} axes; those of a "
                    f"{self.spec.task} have {task.logits_axes}: check task in bundle.toml"
                )
            return logits

        on_cuda = self.engine.device.startswith("cuda")
        batch = self.batch or (_CUDA_BATCHES[self.spec.dimensions] if on_cuda else 1)
        logits = task.look(image, network, self.spec, batch, progress)
        clock.seconds["network"] = clock.seconds.get("network", 0.0) + network_seconds
        stitch = time.perf_counter() - started - network_seconds
        clock.seconds["stitch"] = clock.seconds.get("stitch", 0.0) + stitch
        with clock("decode"):
            self._check(logits)
        return logits, grid

    def decode(
        self, logits: Tensor, grid: Geometry, volume: Volume, *, clock: StageClock | None = None
    ) -> Findings:
        """The second half: Findings on the scan's own grid."""
        with (clock or StageClock())("decode"):
            return _TASKS[self.spec.task].decode(logits, grid, volume, self.spec)

    def _check(self, logits: Tensor) -> None:
        expected = self.spec.num_classes
        binary = expected == 2 and _TASKS[self.spec.task].one_logit_is_a_sigmoid
        if logits.shape[0] not in ({1, 2} if binary else {expected}):
            first = self.spec.negative if self.spec.task == "classification" else "the background"
            raise SeriesError(
                f"the network returned {logits.shape[0]} classes; bundle.toml names "
                f"{expected - 1} labels and {first}"
            )
        # One pass that allocates nothing; NaN shows in the extremes as infinity does.
        if not torch.isfinite(torch.stack(logits.aminmax())).all():
            stored = "in HU" if self.spec.modality == "ct" else "sound"
            raise SeriesError(
                f"the network returned logits that are not finite (engine {self.engine.name}); "
                f"try --engine torch, and check that the scan is {stored}"
            )


# Tiles at once by dimensions, on CUDA. One tile fills a CPU, also one slice of 256 x 256: of eight
# at once, OpenVINO takes as long for each.
_CUDA_BATCHES = {3: 4, 2: 8}


@dataclass(frozen=True)
class _Task:
    """One line of the table of tasks.

    look: from the grid [D, H, W], the network, the spec, the batch and progress to the logits of
        the scan. logits_axes: how many those of a batch have.
    decode: from logits, grid, Volume and spec to Findings.
    one_logit_is_a_sigmoid: whether a network of one label may have one class in place of two.
    """

    look: Callable[..., Tensor]
    logits_axes: int
    decode: Callable[[Tensor, Geometry, Volume, Spec], Findings]
    one_logit_is_a_sigmoid: bool


def _over_tiles(image: Tensor, network, spec: Spec, batch: int, progress) -> Tensor:
    return sliding_window(
        image,
        network,
        num_classes=spec.num_classes,
        tile_zyx=spec.tile_zyx,
        overlap=spec.overlap,
        size_multiple=spec.size_multiple,
        batch=batch,
        progress=progress,
    )


def _at_once(image: Tensor, network, spec: Spec, batch: int, progress) -> Tensor:
    if spec.dimensions == 2 and image.shape[0] != 1:
        raise SeriesError(
            f"the grid has {image.shape[0]} slices and the network sees one; "
            "a classification of 2 dimensions takes a single image"
        )
    logits = network(image[None, None])[0]
    progress(1, 1)
    return logits


_TASKS = {
    "segmentation": _Task(_over_tiles, 5, segmentation.decode, True),
    "classification": _Task(_at_once, 2, classification.decode, False),
}


def load(bundle: str | Path | None = None, *, engine: str = "auto", device: str = "auto") -> Model:
    """Loads a bundle for inference: of any task, of CT or grey images.

    bundle: its folder; None takes the demo bundle (liver) of the package.
    engine: "auto", "torch", "ort" or "ov"; device: "auto", "cpu", "cuda" or "cuda:1".

    Raises BundleError for a damaged bundle, UsageError for an absent engine or device.

        model = fastmed.load("my-bundle")
        findings = model(fastmed.read("scan/")[0])  # .labels and .masks, or .scores

        model = fastmed.load("lung-masks")
        findings = model(fastmed.read("image.png", modality="grey")[0])
    """
    read = bundles.read(bundle if bundle is not None else bundles.demo_path())
    opened, choice = open_engine(read, engine, device)
    return Model(read.spec, opened, choice, bundle=read)
