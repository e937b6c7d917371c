"""manifest.json: what makes the results of a run, written when it starts and when it ends."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import fastmed
from fastmed.bundle import Bundle
from fastmed.inference.case import Model
from fastmed.spec import Spec
from fastmed.writers.report import ReportRow

_LIBRARIES = ("torch", "numpy", "pydicom", "nibabel", "SimpleITK", "onnxruntime", "openvino")


def manifest(
    model: Model,
    *,
    strict: bool,
    formats: Sequence[str],
    rows: Sequence[ReportRow],
    seconds: dict[str, dict[str, float]],
    is_finished: bool = True,
) -> dict[str, Any]:
    """Returns the content of manifest.json: versions, model with hashes, settings, outcomes."""
    spec = model.spec
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "program": "fastmed",
        "version": fastmed.__version__,
        "finished": now if is_finished else None,
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
        "settings": {
            "strict": strict,
            "write": list(formats),
            **_seen_by(spec),
        },
        "versions": {"python": platform.python_version()} | library_versions(_LIBRARIES),
        "series": [
            {
                "name": row.name,
                "source": row.source,
                "verdict": row.verdict,
                "reason": row.reason,
                "seconds": seconds.get(row.name, {}),
            }
            for row in rows
        ],
        "notice": "For research use; not a medical device.",
    }


def engine_of_the_run_in(
    output: Path, bundle: Bundle, device: str, precision: str
) -> tuple[str, str] | None:
    """Engine and precision of the run of this model whose results lie in a folder, if there is one.

    device, precision: as they are asked for now; a run on another device, or in another precision
    than one that is named, says nothing.
    """
    try:
        facts = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        is_same = facts["model"]["sha256"] == bundle.sha256() and facts["device"] == device
        if not is_same or precision not in ("auto", facts["precision"]):
            return None
        return str(facts["engine"]), str(facts["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
