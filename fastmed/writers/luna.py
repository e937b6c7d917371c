"""marks.csv: the findings of a run as LUNA16 wants them submitted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fastmed.findings import Findings
from fastmed.writers.tables import write_table

LUNA_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability")
_FILE = re.compile(r"([^/\\]+?)\.(nii\.gz|nii|mha|mhd|nrrd|nhdr|npy)")


def luna_rows(findings: Findings) -> list[dict[str, Any]]:
    """Returns the rows of marks.csv for one scan, one per box: its centre in LPS mm, its score."""
    series = series_uid(findings)
    rows = []
    for box in findings.boxes:
        x1, y1, z1, x2, y2, z2 = box.box_lps_mm
        mark = (series, (x1 + x2) / 2, (y1 + y2) / 2, (z1 + z2) / 2, box.score)
        rows.append(dict(zip(LUNA_COLUMNS, mark, strict=True)))
    return rows


def series_uid(findings: Findings) -> str:
    """What LUNA16 calls a scan: its SeriesInstanceUID, after which it also names the file."""
    file = _FILE.fullmatch(os.path.basename(findings.source))
    return file[1] if file else findings.series


def write_luna_marks(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes marks.csv from rows of `luna_rows`: LUNA16's five columns, with their header.

    Raises FastmedError where the disk refuses.
    """
    write_table(LUNA_COLUMNS, rows, path)
