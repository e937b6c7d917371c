"""Boxes as figures: findings.json, findings.csv, LUNA16's marks, the page."""

import csv
import json

import pytest

from fastmed.findings import Box
from fastmed.writers.luna import luna_rows, write_luna_marks
from fastmed.writers.report import ReportRow, write_report
from fastmed.writers.tables import write_findings_csv, write_findings_json

NODULE = Box(
    "nodule", 0.9375, (10.0, -20.0, -30.5, 18.0, -12.0, -22.5), 8.0, (3, 7), "1.2.3.5",
    (40.5, 30.25, 50.5, 40.25),
)  # fmt: skip
WITHOUT_UIDS = Box("nodule", 0.25, (0.0, 0.0, 0.0, 4.0, 4.0, 4.0), 4.0, (0, 0))


@pytest.fixture
def detection(make_findings):
    return make_findings(masks=(), names=("nodule",), series="1.2.3", boxes=(NODULE, WITHOUT_UIDS))


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_json_holds_a_box_by_the_agreed_names(detection, tmp_path):
    write_findings_json(detection, tmp_path / "findings.json")
    first, second = json.loads((tmp_path / "findings.json").read_text())["boxes"]
    assert first == {
        "label": "nodule",
        "score": 0.9375,
        "box_lps_mm": [10.0, -20.0, -30.5, 18.0, -12.0, -22.5],
        "diameter_mm": 8.0,
        "slices": [3, 7],
        "key_sop_instance_uid": "1.2.3.5",
        "key_box_px": [40.5, 30.25, 50.5, 40.25],
    }
    assert (second["key_sop_instance_uid"], second["key_box_px"]) == ("", None)


def test_csv_has_one_number_of_a_box_to_a_cell(detection, tmp_path):
    write_findings_csv([detection], tmp_path / "findings.csv")
    first, second = rows_of(tmp_path / "findings.csv")
    assert {name: text for name, text in first.items() if text} == {
        "series": "1.2.3", "source": "scans/a", "model": "liver-demo", "kind": "box",
        "label": "nodule", "score": "0.9375", "diameter_mm": "8.0",
        "x1_lps_mm": "10.0", "y1_lps_mm": "-20.0", "z1_lps_mm": "-30.5",
        "x2_lps_mm": "18.0", "y2_lps_mm": "-12.0", "z2_lps_mm": "-22.5",
        "first_slice": "3", "last_slice": "7", "key_sop_instance_uid": "1.2.3.5",
        "key_x1_px": "40.5", "key_y1_px": "30.25", "key_x2_px": "50.5", "key_y2_px": "40.25",
    }  # fmt: skip
    assert second["key_x1_px"] == second["key_sop_instance_uid"] == ""


def test_marks_are_lunas_five_columns_with_the_centre_in_world_mm(detection, tmp_path):
    write_luna_marks(luna_rows(detection), tmp_path / "marks.csv")
    assert (tmp_path / "marks.csv").read_text() == (
        "seriesuid,coordX,coordY,coordZ,probability\n"
        "1.2.3,14.0,-16.0,-26.5,0.9375\n"
        "1.2.3,2.0,2.0,2.0,0.25\n"
    )


@pytest.mark.parametrize(
    ("series", "source", "expected"),
    [
        ("1.3.6.1", "patient/study", "1.3.6.1"),
        ("subset0__1.3.6.1.4.mhd", "subset0/1.3.6.1.4.mhd", "1.3.6.1.4"),
        ("nodules-7.nii.gz", "scans/nodules-7.nii.gz", "nodules-7"),
    ],
)
def test_a_mark_names_the_scan_as_luna_names_it(detection, make_findings, series, source, expected):
    findings = make_findings(series=series, source=source, masks=(), boxes=(NODULE,))
    assert [row["seriesuid"] for row in luna_rows(findings)] == [expected]


def test_the_page_counts_the_findings_and_lists_them(detection, make_findings, tmp_path):
    nothing = make_findings(masks=())
    rows = [ReportRow("a", findings=detection), ReportRow("b", findings=nothing)]
    write_report(rows, {}, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "2 findings · largest 8.0 mm · highest score 0.94" in page
    assert "<td>0.94</td><td>8.0 mm</td><td>3–7</td>" in page
    assert "<td>0.25</td><td>4.0 mm</td><td>0</td>" in page
    assert '<p class="summary">no finding</p>' in page


def test_the_page_shows_a_label_of_a_box_as_text(make_findings, tmp_path):
    hostile = Box("<script>x</script>", 0.5, NODULE.box_lps_mm, 8.0, (0, 1))
    findings = make_findings(masks=(), boxes=(hostile,))
    write_report([ReportRow("a", findings=findings)], {}, tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text("utf-8")
