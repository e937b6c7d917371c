"""report.html: one page about a run, a scan to the row with its picture and its figures."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastmed.findings import Findings
from fastmed.writers.atomic import write_atomically
from fastmed.writers.legend import format_boxes, format_score, format_share, format_size
from fastmed.writers.palette import label_color
from fastmed.writers.report_figures import Figures
from fastmed.writers.report_pictures import embedded, linked
from fastmed.writers.tables import findings_dict

VERDICTS = ("done", "refused", "failed", "skipped")
MOST_CARDS = 24  # above it the page is a table, and its pictures are files beside it
_PAGE = Path(__file__).with_name("report_page")
_LONGEST_TEXT = 2000
# Controls, and what turns the direction of text, would show something else than what is there.
_UNSHOWN = [*range(32), *range(127, 160), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F)]
_SHOWN = dict.fromkeys([*_UNSHOWN, *range(0x2066, 0x206A), 0xFEFF, 0xFFFE, 0xFFFF], "\ufffd")
_SHOWN |= dict.fromkeys([ord("\t"), ord("\n"), ord("\r"), 0x2028, 0x2029], " ")


@dataclass(frozen=True)
class ReportRow:
    """One scan of a run.

    name: of its result folder. source: where it came from. verdict: done, refused, failed or
    skipped; reason: why it was not done.
    findings: Findings or the content of a findings.json; kept as the latter, so that the rows of
    a whole archive hold no label maps.
    preview_png: the picture's bytes or its path, absolute or relative to the page's folder; a
    picture that cannot be read is left out.
    seconds: time that the scan took. warnings: beside those of the findings.

    Raises ValueError for another verdict.
    """

    name: str
    source: str = ""
    verdict: Literal["done", "refused", "failed", "skipped"] = "done"
    reason: str = ""
    findings: Findings | Mapping[str, Any] | None = None
    preview_png: bytes | str | Path | None = None
    seconds: float | None = None
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r}: expected one of {', '.join(VERDICTS)}")
        if isinstance(self.findings, Findings):
            object.__setattr__(self, "findings", findings_dict(self.findings))


def write_report(
    rows: Iterable[ReportRow],
    manifest: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    counts: Mapping[str, int] | None = None,
) -> None:
    """Writes report.html: counts, the run's model and engine, then every scan in the given order.

    Up to MOST_CARDS scans stand one below the other with large pictures that are part of the page:
    one file, to be sent by mail. More make a table that can be sorted and filtered; its pictures
    are the files beside the page (thumb.jpg beside the preview, else the preview), which a browser
    loads when they come into sight.

    rows: where they come one by one, none is kept.
    manifest: what manifest.json holds, of any depth; all of it is shown, a "notice" at the top.
    counts: scans by verdict; None counts them, for which `rows` must be a collection.

    The page loads nothing from the network, runs its own script alone, and needs none. All texts
    are escaped; a character that no reader sees shows as U+FFFD, and a text of more than 2,000
    characters is cut. Raises FastmedError where the disk refuses, ValueError for an iterator
    without counts.
    """
    import jinja2
    from markupsafe import Markup

    if counts is None:
        if not isinstance(rows, Sized):
            raise ValueError("rows come one by one: name their counts by verdict")
        counts = Counter(row.verdict for row in rows)
    counts = {verdict: counts.get(verdict, 0) for verdict in VERDICTS}
    total, folder = sum(counts.values()), Path(path).parent
    is_table = total > MOST_CARDS
    style, script = ((_PAGE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    environment.filters["color"] = lambda value: f"#{bytes(label_color(value)).hex()}"
    environment.filters["size"] = lambda mask: format_size(mask["volume_ml"], mask["voxels"])
    environment.filters["share"] = format_share
    environment.filters["score"] = format_score
    environment.filters["boxes"] = _boxes_in_words
    figures, seconds = Figures(), _Seconds()
    page = environment.get_template("page.html.j2").generate(
        rows=seconds.of(rows),
        counts=counts,
        total=total,
        is_table=is_table,
        seconds=lambda: seconds.total,
        notices=[str(text) for name, text in _flat(manifest) if name.endswith("notice") and text],
        facts=[(name, text) for name, text in _flat(manifest) if not name.endswith("notice")],
        picture=lambda row: embedded(row.preview_png, folder),
        thumbnail=lambda row: linked(row.preview_png, folder),
        warnings=_all_warnings,
        remarks=lambda row: [text for text in (row.reason, *_all_warnings(row)) if text],
        findings_of=figures.of,
        labels=figures.labels,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script if is_table else ""),
    )
    write_atomically(path, (text.encode(errors="backslashreplace") for text in page), durable=True)


def shown(text: str) -> str:
    """The text on one line, every character of it visible, cut where it is very long."""
    text = text.translate(_SHOWN)
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}… ({len(text) - _LONGEST_TEXT} more characters)"


class _Seconds:
    """Sums the time of the rows that pass by."""

    def __init__(self) -> None:
        self.total = 0.0

    def of(self, rows: Iterable[ReportRow]) -> Iterator[ReportRow]:
        for row in rows:
            self.total += row.seconds or 0.0
            yield row


def _policy(style: str, script: str) -> str:
    """What a browser may load and run: this page's own style and script, pictures beside it."""
    pictures = "data: 'self' file:" if script else "data:"
    runs = _hash(script) if script else "'none'"
    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src {pictures}; "
        f"style-src {_hash(style)}; script-src {runs}; require-trusted-types-for 'script'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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
