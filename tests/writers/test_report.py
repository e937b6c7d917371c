"""report.html is one page that loads nothing, trusts no text and names every scan."""

import io
import re
import weakref
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fastmed.writers.report import MOST_CARDS, VERDICTS, ReportRow, write_report
from fastmed.writers.report_figures import Figures

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


@pytest.mark.parametrize("copies", [1, MOST_CARDS])
def test_hostile_text_stays_text(copies, make_findings, tmp_path):
    hostile = make_findings(names=(_HOSTILE, "b"), warnings=(_HOSTILE,), source=_HOSTILE)
    rows = [
        ReportRow(_HOSTILE, _HOSTILE + "2", "done", findings=hostile),
        ReportRow("b", "c", "failed", _HOSTILE, warnings=(_HOSTILE + "3",)),
    ]
    manifest = {_HOSTILE: _HOSTILE, "notice": _HOSTILE, "list": [_HOSTILE]}
    page, _ = _write(rows * copies, tmp_path, manifest)
    assert page.words.count(_HOSTILE) >= 6 * copies + 2
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == (copies > 1)
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


def test_many_scans_link_to_their_pictures_and_hold_none(make_findings, tmp_path):
    name = "a%2e #1'\".nii"
    folder = tmp_path / "series" / name
    folder.mkdir(parents=True)
    (folder / "preview.png").write_bytes(_png())
    row = ReportRow(name, findings=make_findings(), preview_png=f"series/{name}/preview.png")
    page, text = _write([row] * 400, tmp_path)
    address = "series/a%252e%20%231%27%22.nii/"
    assert set(page.attributes("src")) == {f"{address}preview.png"}
    (folder / "thumb.jpg").write_bytes(b"small")
    page, text = _write([replace(row, preview_png=folder / "preview.png")] * 400, tmp_path)
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert {attrs["src"] for attrs in pictures} == {f"{address}thumb.jpg"}
    assert {attrs["loading"] for attrs in pictures} == {"lazy"}
    assert set(page.attributes("href")) == {f"{address}preview.png"}
    assert len(text) < 400 * 1500


def test_rows_may_come_one_by_one_and_none_is_kept(make_findings, tmp_path):
    alive, most = weakref.WeakSet(), 0

    def rows():
        nonlocal most
        for k in range(100):
            row = ReportRow(f"scan{k}", verdict="skipped")
            alive.add(row)
            most = max(most, len(alive))
            yield row
            del row

    write_report(rows(), {}, tmp_path / "report.html", counts={"skipped": 100})
    page = _Page((tmp_path / "report.html").read_text("utf-8"))
    assert most < 10
    assert "scan99" in page.words
    assert "100scans" in page.words
    with pytest.raises(ValueError, match="name their counts"):
        write_report(rows(), {}, tmp_path / "report.html")


@pytest.mark.parametrize("copies", [1, MOST_CARDS + 1])
@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\u202egnp.exe", "a\ufffdgnp.exe"),
        ("a\0b\x1b[2Jc", "a\ufffdb\ufffd[2Jc"),
        ("two\nlines", "two lines"),
        ("x" * 10_000, "x" * 2000 + "… (8000 more characters)"),
        ("half of a pair \ud800", "half of a pair \\ud800"),
    ],
)
def test_texts_that_would_show_something_else_are_shown_as_they_are(copies, text, seen, tmp_path):
    row = ReportRow("a", text, "failed", text, warnings=(text + "2",))
    page, _ = _write([row] * copies, tmp_path, {"fact": text})
    assert page.words.count(seen) >= 2 * copies + 1
    assert not set("\0\x1b\u202e") & set(page.words)


def test_a_row_names_its_largest_findings_and_can_be_found_by_all(make_findings, tmp_path):
    names = tuple(f"label {k}" for k in range(9))
    row = ReportRow("a", findings=make_findings(names=names))
    page, _ = _write([row] * (MOST_CARDS + 1), tmp_path)
    (found,) = set(page.attributes("data-found"))
    assert len(found.split()) == 9
    assert "and 3 more" in page.words
    assert [attrs["value"] for tag, attrs in page.tags if tag == "option"][3:] == list("012345678")


@pytest.mark.parametrize(
    ("findings", "found", "figure"),
    [
        ({"scores": [("negative", 0.9), ("nodule", 0.1)]}, "0=0.9", "0.1"),
        ({"boxes": [("nodule", 0.4, 30.0), ("nodule", 0.7, 5.0)]}, "0=0.7", "0.7"),
        ({"masks": [("liver", 3, 1.5), ("spleen", 0, 0.0)]}, "0=1.5", "1.5"),
        ({"masks": [("lesion", 7, None)]}, "0=7", "7"),
        ({}, "", None),
    ],
)
def test_a_row_is_sorted_by_what_matters(findings, found, figure):
    keys = {
        "masks": ("label", "voxels", "volume_ml"),
        "boxes": ("label", "score", "diameter_mm"),
        "scores": ("label", "probability"),
    }
    content = {
        kind: [dict(zip(keys[kind], entry, strict=True)) for entry in entries]
        for kind, entries in findings.items()
    }
    row = Figures().of(ReportRow("a", findings=content))
    assert (row.by_label, row.figure) == (found, figure)


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
