"""The scans in folders and files that a model is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastmed.errors import UsageError
from fastmed.readers.index import Series, index
from fastmed.spec import Spec


def paths_of(scans: str | Path | Sequence[str | Path]) -> list[Path]:
    """One folder or file, or several, as paths."""
    return [Path(p) for p in ([scans] if isinstance(scans, str | Path) else scans)]


def readable(scans: str | Path | Sequence[str | Path], spec: Spec) -> list[Series]:
    """The entries of an index that can be read. Raises UsageError where there is none."""
    paths = paths_of(scans)
    found = index(paths, modality=spec.modality)
    entries = [entry for entry in found if entry.verdict == "ok"]
    if not entries:
        why = "; ".join(f"{entry.name}: {entry.reason}" for entry in found[:3]) or "no files"
        where = ", ".join(map(str, paths))
        raise UsageError(f"--scans {where}: no scan here that {spec.name} reads ({why})")
    return entries
