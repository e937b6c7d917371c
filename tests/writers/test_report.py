"""report.html is one page that loads nothing, trusts no text and names every scan."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fastmed.writers.report import VERDICTS, ReportRow, write_report

_HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>"
_MANIFEST = {
    "engine": "ov",
    "device": "cpu",
    "model": {"name": "liver-demo", "hash": "0a1b2c", "notice": "A demonstration."},
    "versions": {"torch": "2.13.0"},
}


class _Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def _png(width=64, height=32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 90, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def _write(rows, tmp_path, manifest=_MANIFEST) -> tuple[_Page, str]:
    write_report(rows, manifest, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    return _Page(text), text


def test_every_scan_stands_there_with_figures_or_reason(make_findings, tmp_path):
    findings = make_findings(warnings=("millimetres are assumed",))
    rows = [
        ReportRow("1.2.3", "scans/a", "done", findings=findings, preview_png=_png(), seconds=3.21),
        ReportRow("4.5.6", "scans/b", "refused", "2 slices are missing", warnings=("odd",)),
        ReportRow("x.dcm", "scans/x.dcm", "failed", "pixel data missing"),
        ReportRow("labels.nii.gz", "labels.nii.gz", "skipped", "a label map, not CT"),
    ]
    page, _ = _write(rows, tmp_path)
    for text in (
        *("1.2.3", "scans/a", "3.21 s", "liver", "spleen", "56", "millimetres are assumed"),
        *("2 slices are missing", "odd", "pixel data missing", "a label map, not CT"),
        *("liver-demo", "2.13.0", "A demonstration.", "Not a medical device", "ov"),
    ):
        assert text in page.words
    cards = [attrs["class"].split()[1] for tag, attrs in page.tags if tag == "article"]
    assert cards == list(VERDICTS)


def test_nothing_is_loaded_from_anywhere(make_findings, tmp_path):
    rows = [ReportRow("a", findings=make_findings(), preview_png=_png())]
    page, text = _write(rows, tmp_path)
    assert not re.search(r"https?://|url\(|@import|javascript:", text)
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    assert not page.attributes("href")
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}


def test_hostile_text_stays_text(make_findings, tmp_path):
    hostile = make_findings(names=(_HOSTILE, "b"), warnings=(_HOSTILE,), source=_HOSTILE)
    rows = [
        ReportRow(_HOSTILE, _HOSTILE + "2", "done", findings=hostile),
        ReportRow("b", "c", "failed", _HOSTILE, warnings=(_HOSTILE + "3",)),
    ]
    manifest = {_HOSTILE: _HOSTILE, "notice": _HOSTILE, "list": [_HOSTILE]}
    page, _ = _write(rows, tmp_path, manifest)
    assert page.words.count(_HOSTILE) >= 8
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not page.attributes("onerror")


def test_pictures_come_from_bytes_or_files_and_are_made_smaller(tmp_path):
    (tmp_path / "preview.png").write_bytes(_png(4000, 1000))
    rows = [
        ReportRow("a", preview_png=tmp_path / "preview.png"),
        ReportRow("b", preview_png=_png(64, 32)),
        ReportRow("c", preview_png=tmp_path / "absent.png"),
        ReportRow("d", preview_png=b"no picture"),
    ]
    page, _ = _write(rows, tmp_path)
    sizes = [(attrs["width"], attrs["height"]) for tag, attrs in page.tags if tag == "img"]
    assert sizes == [("1200", "300"), ("64", "32")]


def test_a_page_of_many_scans_stays_small(make_findings, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (100, 400, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    row = ReportRow("a", findings=make_findings(), preview_png=buffer.getvalue())
    page, text = _write([row] * 400, tmp_path)
    assert {attrs["width"] for tag, attrs in page.tags if tag == "img"} == {"320"}
    assert len(text) < 40e6


def test_the_figures_may_come_from_findings_json(make_findings, tmp_path):
    row = ReportRow("a", findings=make_findings())
    again = ReportRow("a", findings=dict(row.findings))
    _, first = _write([row], tmp_path)
    _, second = _write([again], tmp_path)
    assert first == second
    assert not any(isinstance(value, np.ndarray) for value in row.findings.values())


def test_a_run_without_scans_or_manifest_is_a_page_too(tmp_path):
    page, _ = _write([], tmp_path, {})
    assert "No scan was found." in page.words


def test_a_verdict_of_its_own_is_refused():
    with pytest.raises(ValueError, match="verdict 'ok': expected one of done"):
        ReportRow("a", verdict="ok")
