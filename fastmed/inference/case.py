"""One case: a Volume goes in, Findings come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmed import bundle as bundles
from fastmed.bundle import Bundle
from fastmed.errors import SeriesError
from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.inference.engines import Engine, open_engine
from fastmed.inference.engines.protocol import say_on_stderr, usual_batch
from fastmed.inference.looks import TASKS
from fastmed.inference.mirror import mirrored
from fastmed.preprocessing import to_grid
from fastmed.spec import Spec
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
        """Finds what the model knows in one scan: a label map with figures, boxes, or scores.

        clock: receives the seconds of the stages resample, network, stitch and decode.
        progress: called with the tiles done and their total.

        Raises SeriesError where the scan lacks what the spec asks for (lungs, a spacing), and
        where the network returns what is not finite: it never becomes an answer.
        """
        clock = clock or StageClock()
        said, grid = self.see(volume, clock=clock, progress=progress, brief=True)
        return self.decode(said, grid, volume, clock=clock)

    def see(
        self,
        volume: Volume,
        *,
        clock: StageClock | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        brief: bool = False,
    ) -> tuple[Any, Geometry]:
        """The first half of a call: what the network said of a scan, and the grid that it saw.

        Logits are [classes, D, H, W] of a segmentation and [classes] of a classification, checked
        to be finite. Of a detection they are raw outputs [T, N, 2K + classes] of T tiles, or of D
        slices (`fastmed.tasks.candidates`): `decode` checks those, so that on CUDA the host need
        not wait here; with `brief` they are only what `decode` needs, `Picked` tile by tile. Raises
        SeriesError as a call does.
        """
        image, grid = self.prepare(volume, clock=clock)
        return self.look(image, grid, clock=clock, progress=progress, brief=brief), grid

    def prepare(
        self, volume: Volume, *, clock: StageClock | None = None
    ) -> tuple[Tensor, Geometry]:
        """What comes before the network: the scan on its grid, on the engine's device.

        Raises SeriesError as a call does.
        """
        with (clock or StageClock())("resample"):
            return to_grid(volume, self.spec, self.engine.device)

    def look(
        self,
        image: Tensor,
        grid: Geometry,
        *,
        clock: StageClock | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        brief: bool = False,
    ) -> Any:
        """What the network said of what `prepare` returned; the rest is as `see` has it."""
        clock = clock or StageClock()
        task = TASKS[self.spec.task]
        started = time.perf_counter()
        network_seconds = 0.0

        def network(tiles: Tensor) -> Tensor:
            nonlocal network_seconds
            before = time.perf_counter()
            logits = self.engine(tiles)
            network_seconds += time.perf_counter() - before
            if logits.dim() != task.output_axes:
                raise SeriesError(
                    f"the network returned {task.output} of {logits.dim()} axes; those of a "
                    f"{self.spec.task} have {task.output_axes}: check task in bundle.toml"
                )
            return logits

        batch = self.batch or usual_batch(self.spec, self.engine.device)
        is_brief = brief and task.brief is not None
        look = task.brief if is_brief else task.look
        said = look(image, mirrored(network, self.spec), self.spec, batch, progress)
        clock.seconds["network"] = clock.seconds.get("network", 0.0) + network_seconds
        stitch = time.perf_counter() - started - network_seconds
        clock.seconds["stitch"] = clock.seconds.get("stitch", 0.0) + stitch
        if not is_brief:
            with clock("decode"):
                task.check(said, self.spec, grid.shape_zyx, self.engine.name)
        return said

    def decode(
        self, logits: Tensor, grid: Geometry, volume: Volume, *, clock: StageClock | None = None
    ) -> Findings:
        """The second half: Findings on the scan's own grid."""
        with (clock or StageClock())("decode"):
            return TASKS[self.spec.task].decode(logits, grid, volume, self.spec)


def load(
    bundle: str | Path | None = None,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    say: Callable[[str], None] = say_on_stderr,
) -> Model:
    """Loads a bundle for inference: of any task, of CT or grey images.

    bundle: its folder; None takes the demo bundle (liver) of the package.
    engine: "auto", "torch", "ort", "ov" or "trt"; device: "auto", "cpu", "cuda" or "cuda:1".
    precision: "fp32", "fp16", "bf16" or "int8": what the network computes in; or "auto"
        (`engines.open_engine`).
    say: receives a sentence where the engines are timed, which is done once on a machine.

    Raises BundleError for a damaged bundle, UsageError for an absent engine, device or precision.

        model = fastmed.load("my-bundle")
        findings = model(fastmed.read("scan/")[0])  # .labels and .masks, or .scores

        model = fastmed.load("lung-masks")
        findings = model(fastmed.read("image.png", modality="grey")[0])
    """
    read = bundles.read(bundle if bundle is not None else bundles.demo_path())
    opened, choice = open_engine(read, engine, device, precision, say)
    return Model(read.spec, opened, choice, bundle=read)
