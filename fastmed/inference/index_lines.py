"""Index lines: an index as JSON Lines, one object for each entry, for other programs to read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from fastmed.readers.series import Series
from fastmed.writers.atomic import write_atomically


def index_line(entry: Series) -> dict:
    """What a line says of one entry."""
    spacing = entry.spacing_mm_zyx
    return {
        "name": entry.name,
        "source": entry.source,
        "kind": entry.kind,
        "conditions": list(entry.conditions),
        "verdict": entry.verdict,
        "reason": entry.reason,
        "warnings": list(entry.warnings),
        "files": entry.files,
        "shape_zyx": entry.shape_zyx and list(entry.shape_zyx),
        "spacing_mm_zyx": spacing and list(spacing),
    }


def write_index_lines(path: str | os.PathLike, entries: Iterable[Series]) -> None:
    """Writes a file of lines, complete or not at all, one entry in memory at a time.

    Raises FastmedError where the disk refuses.
    """
    write_atomically(path, map(_encoded, entries))


def _encoded(entry: Series) -> bytes:
    return json.dumps(index_line(entry)).encode() + b"\n"
