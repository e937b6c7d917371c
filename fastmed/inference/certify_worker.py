"""One engine in one precision over some scans, in a process of its own: `certify` starts it."""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmed.errors import FastmedError
from fastmed.inference.agreement import Answer, answer_of
from fastmed.inference.case import Model, StageClock, load
from fastmed.inference.engines import Engine
from fastmed.inference.looks import said_by_the_network
from fastmed.readers.index import index, read_series
from fastmed.volume import Volume

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FACTS = "facts.json"


@dataclass(frozen=True)
class Order:
    """What to run; paths: where the scans lie, names: which of the index's entries."""

    bundle: str
    engine: str
    precision: str
    device: str
    paths: list[str]
    names: list[str]
    output: str


def read_answers(order: Order) -> list[Answer]:
    """What a finished order found, scan by scan; large arrays are read page by page as needed."""
    answers = []
    for number in range(len(order.names)):
        folder = Path(order.output) / str(number)
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        plain = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        answers.append(
            Answer(
                said=arrays["said"],
                seen=arrays.get("seen"),
                labels=arrays.get("labels"),
                boxes=np.array(arrays["boxes"]),
                scores=np.array(arrays["scores"]),
                names=tuple(plain["names"]),
                probabilities=tuple(plain["probabilities"]),
            )
        )
    return answers


def read_facts(order: Order) -> dict[str, float | None]:
    """load_seconds, network_seconds and memory_mb of a finished order."""
    return json.loads((Path(order.output) / _FACTS).read_text(encoding="utf-8"))


class _Timed:
    """An engine whose first call is made twice: what it compiles belongs to the loading."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.first_seconds: float | None = None
        self.seconds = 0.0

    def __call__(self, tiles: Tensor) -> Tensor:
        if self.first_seconds is None:
            self.first_seconds = self._timed(tiles)[0]
        spent, logits = self._timed(tiles)
        self.seconds += spent
        return logits

    def _timed(self, tiles: Tensor) -> tuple[float, Tensor]:
        started = time.perf_counter()
        logits = self._engine(tiles)
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started, logits


class _Memory:
    """Peak memory of this process, or of a CUDA device, above what it is when this is made."""

    def __init__(self, device: str):
        self._device = device
        self._before = 0.0
        if device.startswith("cuda"):
            torch.cuda.init()
            self._before = self._used()
        elif _CLEAR.exists():
            gc.collect()
            _CLEAR.write_text("5")  # the peak starts again from what is resident now
            self._before = _resident_mb("VmRSS")

    def _used(self) -> float:
        free, total = torch.cuda.mem_get_info(self._device)
        return (total - free) / 2**20

    def peak_mb(self) -> float | None:
        if self._device.startswith("cuda"):
            return self._used() - self._before
        return _resident_mb("VmHWM") - self._before if _CLEAR.exists() else None


def _resident_mb(name: str) -> float:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main(path: str) -> int:
    """Runs the order at `path`; returns 1, with a line on stderr, where it cannot."""
    order = Order(**json.loads(Path(path).read_text(encoding="utf-8")))
    try:
        _run(order)
    except FastmedError as error:
        print(" ".join(str(error).splitlines()), file=sys.stderr)
        return 1
    return 0


def _run(order: Order) -> None:
    from fastmed import bundle as bundles

    spec = bundles.read(order.bundle).spec
    entries = {entry.name: entry for entry in index(order.paths, modality=spec.modality)}
    volumes = [read_series(entries[name]) for name in order.names]
    memory = _Memory(order.device)
    started = time.perf_counter()
    model = load(order.bundle, engine=order.engine, device=order.device, precision=order.precision)
    load_seconds = time.perf_counter() - started
    engine = _Timed(model.engine)
    model = replace(model, engine=engine)
    for number, volume in enumerate(volumes):
        folder = Path(order.output) / str(number)
        folder.mkdir()
        _write(folder, _answer(model, volume))
    facts = {
        "load_seconds": load_seconds + (engine.first_seconds or 0.0),
        "network_seconds": engine.seconds,
        "memory_mb": memory.peak_mb(),
    }
    (Path(order.output) / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _answer(model: Model, volume: Volume) -> Answer:
    said, grid = model.see(volume, clock=StageClock())
    findings = model.decode(said, grid, volume)
    seen = said_by_the_network(said, model.spec)
    return answer_of(said.cpu().numpy(), findings, model.spec, seen)


def _write(folder: Path, answer: Answer) -> None:
    arrays = {"said": answer.said, "boxes": answer.boxes, "scores": answer.scores}
    optional = {"seen": answer.seen, "labels": answer.labels}
    for name, array in (arrays | optional).items():
        if array is not None:
            np.save(folder / f"{name}.npy", array)
    plain = {"names": answer.names, "probabilities": answer.probabilities}
    (folder / "answer.json").write_text(json.dumps(plain), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
