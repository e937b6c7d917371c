"""manifest.json: what makes the results of a run, written when it starts and when it ends."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import fastmed
from fastmed.inference.journal_units import Unit
from fastmed.inference.outcome import outcome
from fastmed.inference.run_settings import RunSettings
from fastmed.spec import Spec
from fastmed.writers.atomic import write_atomically

if TYPE_CHECKING:  # the process that only looks after others has no torch
    from fastmed.inference.case import Model

_LIBRARIES = ("torch", "numpy", "pydicom", "nibabel", "SimpleITK", "onnxruntime", "openvino")


def model_facts(model: Model) -> dict[str, Any]:
    """What is to be known of a loaded model: plain values, also for another process."""
    spec = model.spec
    return {
        "model": {
            "name": spec.name,
            "trained_on": spec.trained_on,
            "notice": spec.notice,
            "sha256": model.bundle.sha256(),
        },
        "engine": model.engine.name,
        "engine_choice": model.engine_choice,
        "device": model.engine.device,
        "precision": model.engine.precision,
        "seen_by": _seen_by(spec),
        "versions": {"python": platform.python_version()} | library_versions(_LIBRARIES),
    }


def run_facts(facts: Mapping[str, Any], settings: RunSettings, *, is_finished: bool) -> dict:
    """Returns what manifest.json says of the run itself: versions, model with hashes, settings.

    facts: as `model_facts` returns them.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    of_model = {name: fact for name, fact in facts.items() if name not in ("seen_by", "versions")}
    return {
        "program": "fastmed",
        "version": fastmed.__version__,
        "finished": now if is_finished else None,
        "bundle": settings.bundle,
        **of_model,
        "settings": {
            "strict": settings.strict,
            "write": list(settings.formats),
            "attempts": settings.attempts,
            "memory_bytes": settings.memory_bytes,
            **facts["seen_by"],
        },
        "versions": facts["versions"],
        "notice": "For research use; not a medical device.",
    }


def series_facts(unit: Unit) -> dict[str, Any]:
    """The entry of one series in manifest.json: what became of it, and the hashes."""
    verdict, reason = outcome(unit)
    return {
        "name": unit.name,
        "source": unit.source,
        "verdict": verdict,
        "reason": reason,
        "attempts": unit.attempts + (verdict == "done"),
        "seconds": unit.seconds if verdict == "done" else {},
        "input_sha256": unit.content if verdict == "done" else "",
        "files": {name: sha256 for name, (sha256, _) in unit.files.items()}
        if verdict == "done"
        else {},
    }


def write_manifest(facts: Mapping[str, Any], units: Iterable[Unit], path: Path) -> None:
    """Writes manifest.json: the run's facts, and every series, one by one.

    Raises FastmedError where the disk refuses.
    """

    def pieces() -> Iterator[bytes]:
        yield json.dumps(facts, indent=2, ensure_ascii=False)[:-2].encode(errors="backslashreplace")
        separator = ',\n  "series": ['
        for unit in units:
            text = json.dumps(series_facts(unit), indent=2, ensure_ascii=False)
            yield (separator + "\n" + indent(text, "    ")).encode(errors="backslashreplace")
            separator = ","
        yield (separator + "]" if separator[-1] == "[" else "\n  ]").encode() + b"\n}\n"

    write_atomically(path, pieces(), durable=True)


def _seen_by(spec: Spec) -> dict[str, Any]:
    """What decides how the model sees a scan; without what its task or grid does not have."""
    tiled = spec.tile_zyx is not None
    settings = {
        "region": spec.region if spec.region != "scan" else None,
        "axes": spec.axes if spec.axes != "SPL" else None,
        "spacing_mm_zyx": spec.spacing_mm_zyx,
        "size_zyx": spec.size_zyx,
        "window_hu": spec.window_hu,
        "tile_zyx": spec.tile_zyx,
        "overlap": spec.overlap if tiled else None,
        "mirror_zyx": spec.mirror_zyx if any(spec.mirror_zyx) else None,
        "clean_up": None if spec.clean_up.is_off else asdict(spec.clean_up),
    }
    return {name: value for name, value in settings.items() if value is not None}


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Version of each installed distribution, "absent" for the others."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
