"""The figures of findings as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastmed.findings import Box, Findings, Mask, Score
from fastmed.geometry import Geometry
from fastmed.writers.atomic import write_atomically
from fastmed.writers.dicom_uid import sane_uid

CSV_COLUMNS = (
    "series", "source", "model", "kind", "label", "volume_ml", "mean_hu", "voxels", "probability",
    "score", "diameter_mm",
    "x1_lps_mm", "y1_lps_mm", "z1_lps_mm", "x2_lps_mm", "y2_lps_mm", "z2_lps_mm",
    "first_slice", "last_slice",
    "key_sop_instance_uid", "key_x1_px", "key_y1_px", "key_x2_px", "key_y2_px",
)  # fmt: skip


def findings_dict(findings: Findings) -> dict[str, Any]:
    """Returns the content of findings.json: plain values, None for what is not a finite number."""
    return plain(
        {
            "series": findings.series,
            "source": findings.source,
            "model": findings.model,
            "modality": findings.modality,
            "geometry": _geometry_dict(findings.geometry),
            "masks": [_mask_dict(mask) for mask in findings.masks],
            "boxes": [_box_dict(box) for box in findings.boxes],
            "scores": [_score_dict(score) for score in findings.scores],
            "warnings": findings.warnings,
        }
    )


def findings_rows(findings: Findings) -> list[dict[str, Any]]:
    """Returns the rows of findings.csv for one scan, one per mask, box or score, by
    CSV_COLUMNS.

    They hold no label map, so a run over an archive can collect them.
    """
    scan = {"series": findings.series, "source": findings.source, "model": findings.model}
    masks = [scan | {"kind": "mask"} | _mask_dict(mask) for mask in findings.masks]
    boxes = [scan | {"kind": "box"} | _box_cells(box) for box in findings.boxes]
    scores = [scan | {"kind": "score"} | _score_dict(score) for score in findings.scores]
    return plain(masks + boxes + scores)


def write_findings_json(findings: Findings, path: str | os.PathLike) -> None:
    """Writes findings.json. Raises FastmedError where the disk refuses."""
    write_json(findings_dict(findings), path)


def write_json(content: Any, path: str | os.PathLike, *, durable: bool = False) -> None:
    """Writes plain values as indented UTF-8 JSON; NaN and infinities become null.

    durable: as `write_atomically` takes it. Raises FastmedError where the disk refuses.
    """
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, [_utf8(text + "\n")], durable=durable)


def write_findings_csv(
    findings: Iterable[Findings | Mapping[str, Any]], path: str | os.PathLike
) -> None:
    """Writes findings.csv: a header, then one row per mask, box or score.

    findings: results, or rows as `findings_rows` returns them, in the order of the file.

    Line breaks and tabs in texts become spaces, and a text that a spreadsheet would run as a
    formula gets a leading apostrophe; an unknown figure is an empty cell.

    Raises FastmedError where the disk refuses.
    """
    rows = (
        row
        for item in findings
        for row in (findings_rows(item) if isinstance(item, Findings) else [item])
    )
    write_table(CSV_COLUMNS, rows, path)


def write_table(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], path: str | os.PathLike
) -> None:
    """Writes a CSV file as `write_findings_csv` does, of other columns."""
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, columns, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: _cell(value) for name, value in plain(row).items()})
    write_atomically(path, [_utf8(buffer.getvalue())], durable=True)


def _mask_dict(mask: Mask) -> dict[str, Any]:
    return {
        "label": mask.label,
        "volume_ml": mask.volume_ml,
        "mean_hu": mask.mean_hu,
        "voxels": mask.voxels,
    }


def _score_dict(score: Score) -> dict[str, Any]:
    return {"label": score.label, "probability": score.probability}


def _box_dict(box: Box) -> dict[str, Any]:
    return {
        "label": box.label,
        "score": box.score,
        "box_lps_mm": box.box_lps_mm,
        "diameter_mm": box.diameter_mm,
        "slices": box.slices,
        "key_sop_instance_uid": sane_uid(box.key_sop_instance_uid),
        "key_box_px": box.key_box_px,
    }


def _box_cells(box: Box) -> dict[str, Any]:
    """The entry of findings.json with one number to a cell."""
    corners = ("x1", "y1", "z1", "x2", "y2", "z2")
    in_plane = ("x1", "y1", "x2", "y2")
    key_box_px = box.key_box_px or (None,) * 4
    return {
        "label": box.label,
        "score": box.score,
        "diameter_mm": box.diameter_mm,
        **{f"{c}_lps_mm": mm for c, mm in zip(corners, box.box_lps_mm, strict=True)},
        "first_slice": box.slices[0],
        "last_slice": box.slices[1],
        "key_sop_instance_uid": sane_uid(box.key_sop_instance_uid),
        **{f"key_{c}_px": px for c, px in zip(in_plane, key_box_px, strict=True)},
    }


def _geometry_dict(geometry: Geometry) -> dict[str, Any]:
    return {
        "shape_zyx": geometry.shape_zyx,
        "spacing_mm_zyx": geometry.spacing_mm_zyx,
        "origin_lps_mm": geometry.origin_lps_mm,
        "affine_zyx_to_lps_mm": geometry.affine,
        "tilt_degrees": geometry.tilt_degrees,
    }


def plain(value: Any) -> Any:
    """Turns NumPy values, tuples and non-finite numbers into what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    one_line = value.translate({ord(c): " " for c in "\t\r\n"})
    return "'" + one_line if one_line.lstrip().startswith(("=", "+", "-", "@")) else one_line


def _utf8(text: str) -> bytes:
    # A path of undecodable bytes carries lone surrogates; \udcXX is also what JSON calls them.
    return text.encode(errors="backslashreplace")
