"""findings.json and findings.csv: the agreed names, and nothing that a parser chokes on."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastmed.findings import Mask
from fastmed.writers.tables import (
    CSV_COLUMNS,
    findings_dict,
    findings_rows,
    write_findings_csv,
    write_findings_json,
    write_json,
)


def test_json_has_the_agreed_keys(make_findings, tmp_path):
    findings = make_findings(warnings=("millimetres are assumed",))
    write_findings_json(findings, tmp_path / "findings.json")
    content = json.loads((tmp_path / "findings.json").read_text("utf-8"))
    assert content == findings_dict(findings)
    keys = [
        "series", "source", "model", "modality", "geometry", "masks", "boxes", "scores", "warnings",
    ]  # fmt: skip
    assert list(content) == keys
    assert [list(mask) for mask in content["masks"]] == [
        ["label", "volume_ml", "mean_hu", "voxels"]
    ] * 2
    assert content["boxes"] == content["scores"] == []
    assert content["warnings"] == ["millimetres are assumed"]


def test_json_geometry_rebuilds_the_scans_affine(tilted, make_findings):
    geometry = findings_dict(make_findings(tilted))["geometry"]
    assert np.array_equal(geometry["affine_zyx_to_lps_mm"], tilted.affine)
    assert geometry["shape_zyx"] == list(tilted.shape_zyx)
    assert geometry["tilt_degrees"] == pytest.approx(18.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, np.float32(np.nan)])
def test_what_is_no_number_becomes_null(value, make_findings, tmp_path):
    findings = make_findings(masks=(Mask("liver", 0.0, value, 0),))
    write_findings_json(findings, tmp_path / "findings.json")
    content = json.loads((tmp_path / "findings.json").read_text(), parse_constant=pytest.fail)
    assert content["masks"][0]["mean_hu"] is None


def test_json_takes_numpy_values_and_paths(tmp_path):
    write_json({"n": np.int64(3), "at": Path("a/b"), "x": np.array([1.5])}, tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text()) == {"n": 3, "at": "a/b", "x": [1.5]}


def test_csv_has_one_row_per_mask(make_findings, tmp_path):
    first, second = make_findings(), make_findings(series="4.5.6")
    write_findings_csv([first, *findings_rows(second)], tmp_path / "findings.csv")
    with open(tmp_path / "findings.csv", newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        rows = list(table)
    assert tuple(table.fieldnames) == CSV_COLUMNS
    assert [(row["series"], row["label"]) for row in rows] == [
        ("1.2.3", "liver"),
        ("1.2.3", "spleen"),
        ("4.5.6", "liver"),
        ("4.5.6", "spleen"),
    ]
    assert {row["kind"] for row in rows} == {"mask"}
    assert float(rows[0]["volume_ml"]) == first.masks[0].volume_ml
    assert int(rows[0]["voxels"]) == first.masks[0].voxels


def test_csv_leaves_unknown_figures_empty(make_findings, tmp_path):
    findings = make_findings(masks=(Mask("liver", 0.0, math.nan, 0),))
    write_findings_csv([findings], tmp_path / "findings.csv")
    assert ",mask,liver,0.0,,0,," in (tmp_path / "findings.csv").read_text()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n@1"])
def test_csv_text_is_never_a_formula(text, make_findings, tmp_path):
    write_findings_csv([make_findings(source=text)], tmp_path / "findings.csv")
    with open(tmp_path / "findings.csv", newline="", encoding="utf-8") as file:
        assert {row["source"] for row in csv.DictReader(file)} == {
            "'" + text.replace("\t", " ").replace("\r", " ").replace("\n", " ")
        }


def test_csv_of_an_empty_run_is_its_header(tmp_path):
    write_findings_csv([], tmp_path / "findings.csv")
    assert (tmp_path / "findings.csv").read_text() == ",".join(CSV_COLUMNS) + "\n"


def test_names_that_are_no_unicode_are_written(make_findings, tmp_path):
    findings = replace(make_findings(), source="scan-\udcff-ä")
    write_findings_json(findings, tmp_path / "findings.json")
    write_findings_csv([findings], tmp_path / "findings.csv")
    assert json.loads((tmp_path / "findings.json").read_text("utf-8"))["source"] == findings.source
    assert "ä" in (tmp_path / "findings.csv").read_text("utf-8")
