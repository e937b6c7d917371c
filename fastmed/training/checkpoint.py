"""State of a run: what a resumed run needs, in one file that is replaced by one rename an epoch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmed.errors import FastmedError
from fastmed.writers.atomic import write_atomically

STATE_FILE = "state.safetensors"
_FACTS = "fastmed"  # the key of the JSON in the file's header


@dataclass
class Progress:
    """How far a run has come: plain numbers and texts.

    epoch, steps: done. score: of the last epoch that was judged, the higher the better (a loss
        counts with its sign turned). best_epoch, best_score: of the best one so far.
    stale_epochs: judged epochs since then. stopped: why the run ended early, if it did.
    history: a row of metrics.csv per epoch.
    """

    epoch: int = 0
    steps: int = 0
    score: float | None = None
    best_epoch: int = 0
    best_score: float | None = None
    stale_epochs: int = 0
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)


def save_state(path: Path, progress: Progress, parts: dict[str, Any]) -> None:
    """Writes a run's state.

    parts: by name, what has a state_dict (network, optimiser, schedule, ...). Tensors go into the
    safetensors file, everything else as JSON into its header. Raises FastmedError where the disk
    refuses; the former state stays then.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, part in parts.items():
        plain[name] = _without_tensors(part.state_dict(), name, tensors)
    facts = json.dumps({"progress": asdict(progress), "parts": plain})
    write_atomically(path, [save(tensors, {_FACTS: facts})])


def load_state(path: Path, parts: dict[str, Any]) -> Progress:
    """Gives `parts` the state that `save_state` wrote, and returns the progress.

    Nothing in the file is executed. Raises FastmedError where it is damaged or of another run.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, part in parts.items():
            part.load_state_dict(_with_tensors(facts["parts"][name], tensors))
        return Progress(**facts["progress"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FastmedError(
            f"{path}: this run's state cannot be read ({first}); train anew into another --output"
        ) from error


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A copy of nested dicts and lists in which every tensor is a reference into `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        # Keys of an optimiser's state are numbers, which JSON would turn into texts.
        pairs = [[k, _without_tensors(v, f"{name}.{k}", tensors)] for k, v in value.items()]
        return {"pairs": pairs}
    if isinstance(value, list | tuple):
        listed = [_without_tensors(v, f"{name}.{k}", tensors) for k, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": listed}
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "pairs":
        return {key: _with_tensors(v, tensors) for key, v in content}
    listed = [_with_tensors(v, tensors) for v in content]
    return tuple(listed) if kind == "tuple" else listed


class RandomState:
    """torch's global generator as a part of the state, for networks that draw (dropout)."""

    def state_dict(self) -> dict[str, Tensor]:
        return {"cpu": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
