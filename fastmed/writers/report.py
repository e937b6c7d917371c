"""report.html: one self-contained page about a run, a row per scan with picture and figures."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastmed.findings import Findings
from fastmed.writers.atomic import write_atomically
from fastmed.writers.legend import format_boxes, format_score, format_share, format_size
from fastmed.writers.palette import label_color
from fastmed.writers.tables import findings_dict

VERDICTS = ("done", "refused", "failed", "skipped")
_TEMPLATE = "report.html.j2"
_WIDEST_PX, _NARROWEST_PX = 1200, 320
_WIDTHS_OF_A_PAGE_PX = 120_000  # more scans get narrower pictures, so that the page stays small


@dataclass(frozen=True)
class ReportRow:
    """One scan of a run.

    name: of its result folder. source: where it came from. verdict: done, refused, failed or
    skipped; reason: why it was not done.
    findings: Findings or the content of a findings.json; kept as the latter, so that the rows of
    a whole archive hold no label maps.
    preview_png: the picture's bytes or its path, read when the report is written; a picture that
    cannot be read is left out.
    seconds: time that the scan took. warnings: beside those of the findings.

    Raises ValueError for another verdict.
    """

    name: str
    source: str = ""
    verdict: Literal["done", "refused", "failed", "skipped"] = "done"
    reason: str = ""
    findings: Findings | Mapping[str, Any] | None = None
    preview_png: bytes | Path | None = None
    seconds: float | None = None
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r}: expected one of {', '.join(VERDICTS)}")
        if isinstance(self.findings, Findings):
            object.__setattr__(self, "findings", findings_dict(self.findings))


def write_report(
    rows: Sequence[ReportRow], manifest: Mapping[str, Any], path: str | os.PathLike
) -> None:
    """Writes report.html: counts, the run's model and engine, then every scan in the given order.

    manifest: what manifest.json holds, of any depth; all of it is shown, a "notice" at the top.

    The page loads nothing from anywhere. All texts are escaped. Raises FastmedError where the
    disk refuses.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["color"] = lambda value: f"#{bytes(label_color(value)).hex()}"
    environment.filters["size"] = lambda mask: format_size(mask["volume_ml"], mask["voxels"])
    environment.filters["share"] = format_share
    environment.filters["score"] = format_score
    environment.filters["boxes"] = _boxes_in_words
    template = environment.from_string(Path(__file__).with_name(_TEMPLATE).read_text("utf-8"))
    width_px = max(_NARROWEST_PX, min(_WIDEST_PX, _WIDTHS_OF_A_PAGE_PX // max(1, len(rows))))
    page = template.generate(
        rows=rows,
        counts={verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS},
        seconds=sum(row.seconds or 0.0 for row in rows),
        notices=[str(text) for name, text in _flat(manifest) if name.endswith("notice") and text],
        facts=[(name, text) for name, text in _flat(manifest) if not name.endswith("notice")],
        picture=lambda row: _picture_uri(row.preview_png, width_px),
        warnings=lambda row: _all_warnings(row),
    )
    write_atomically(path, (text.encode(errors="backslashreplace") for text in page))


def _all_warnings(row: ReportRow) -> list[str]:
    """The warnings of the row and of its findings, each once."""
    found = (row.findings or {}).get("warnings", ())
    return list(dict.fromkeys([*found, *row.warnings]))


def _boxes_in_words(findings: Mapping[str, Any]) -> str:
    boxes = findings.get("boxes", ())
    unit = "px" if findings.get("modality") == "grey" else "mm"
    return format_boxes([b["diameter_mm"] for b in boxes], [b["score"] for b in boxes], unit)


def _flat(manifest: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of a nested manifest, in its order, without what is empty."""
    for name, value in manifest.items():
        name = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} · ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif value not in (None, ""):
            yield name, value


def _picture_uri(preview_png: bytes | Path | None, width_px: int) -> tuple[str, int, int] | None:
    """The picture as a JPEG data URI of at most the given width, and its size in pixels."""
    from PIL import Image

    if preview_png is None:
        return None
    source = io.BytesIO(preview_png) if isinstance(preview_png, bytes) else preview_png
    try:
        with Image.open(source) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError):
        return None
    if picture.width > width_px:
        height_px = max(1, round(picture.height * width_px / picture.width))
        picture = picture.resize((width_px, height_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=84, subsampling=0, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/jpeg;base64,{encoded}", *picture.size
