"""What a run was asked for, in a form that goes to another process and into a key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastmed
from fastmed.inference.series_folder import FORMATS_OF_A_SERIES


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run; all are plain values.

    bundle, output: folders, absolute. engine, device, precision, strict: as `infer` takes them.
    formats: what to write, sorted. attempts: how often a series is tried before it is set aside.
    memory_bytes: what the scans that are in hand may take together.
    tune_malloc: as `infer` takes it. asked_for: inputs, names of series and share of them.
    """

    bundle: str
    output: str
    engine: str
    device: str
    precision: str
    strict: bool
    formats: tuple[str, ...]
    attempts: int
    memory_bytes: int
    tune_malloc: bool
    asked_for: tuple[tuple[str, ...], ...]

    @property
    def output_path(self) -> Path:
        return Path(self.output)

    def results_key(self, model_facts: dict[str, Any]) -> str:
        """Names what decides the bytes of a series' results, but for the series itself.

        model_facts: what `manifest.model_facts` says of the loaded model.
        """
        decisive = ("model", "engine", "device", "precision", "seen_by")
        files = [name for name in FORMATS_OF_A_SERIES if name in self.formats]
        if "report" in self.formats:
            files.append("preview and thumbnail")
        return digest(
            {
                "fastmed": fastmed.__version__,
                "files": files,
                **{name: model_facts[name] for name in decisive},
            }
        )


def digest(content: Any) -> str:
    """SHA-256 of plain values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
