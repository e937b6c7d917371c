"""docs/formats.md: each bundle.toml in it can be read, scores and boxes are as printed."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import fastmed
from fastmed.findings import Box, Findings
from fastmed.geometry import Geometry
from fastmed.spec import Label
from fastmed.spec_toml import spec_from_table
from fastmed.volume import SourceSlice, Volume

TEXT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text("utf-8")
SCORES = [json.loads(text) for text in re.findall(r'```json\n(\{\n  "task".*?)```', TEXT, re.S)]
BUNDLES = re.findall(r"```toml\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("toml", BUNDLES, ids=lambda toml: tomllib.loads(toml)["name"])
def test_a_printed_bundle_is_a_bundle(toml):
    spec = spec_from_table(tomllib.loads(toml))
    assert spec.name in ("demo-liver", "lung-resnet3d", "lung-unet2d-png")


def test_every_entry_of_a_bundle_is_in_the_table():
    from fastmed import spec_toml

    for entry in spec_toml._DETECTION:
        assert f"`detection.{entry}`" in TEXT
    for entry in spec_toml._GRID_OPTIONS:
        assert f"`grid.{entry}`" in TEXT
    for entry in spec_toml._LIMITS:
        assert f"`limits.{entry}`" in TEXT
    assert len(BUNDLES) == 3


def test_the_printed_row_of_a_certificate_has_the_names_of_the_real_ones():
    from dataclasses import asdict

    from fastmed.inference.agreement import Agreement
    from fastmed.inference.certificate import Row

    (printed,) = re.findall(r'```json\n(\{\n  "engine": "ov",\n  "precision".*?)```', TEXT, re.S)
    row = Row("ov", "fp32", "cpu", Agreement(0.0, 0.0, 0.0))
    real = asdict(row) | {"verdict": row.verdict}
    assert json.loads(printed).keys() == real.keys()
    assert json.loads(printed)["agreement"].keys() == real["agreement"].keys()


@pytest.mark.parametrize("luna16", [False, True])
def test_the_printed_scores_of_a_detection_have_the_names_of_the_real_ones(luna16, tmp_path):
    rows = ["seriesuid,coordX,coordY,coordZ,diameter_mm,probability", "1,0,0,0,10,0.5"]
    (tmp_path / "annotations.csv").write_text("\n".join(rows))
    (tmp_path / "ids.csv").write_text("1")
    (tmp_path / "b.csv").write_text("path,label,score,x1,y1,z1,x2,y2,z2\n1,nodule,1,0,0,0,1,1,1")
    truth = tmp_path / "annotations.csv"
    lists = {"luna16": True, "excluded": truth, "series": tmp_path / "ids.csv"} if luna16 else {}
    predictions = truth if luna16 else tmp_path / "b.csv"
    real = fastmed.evaluate(predictions, truth, task="detection", quiet=True, **lists).scores
    (printed,) = [one for one in SCORES if one.get("luna16") == luna16]
    assert list(printed) == list(real)
    for name in ("ap", "left_out", "assumed"):
        if isinstance(real.get(name), dict):
            assert printed[name].keys() == real[name].keys()


@pytest.fixture
def one_box():
    """A scan with the box that is printed; its findings and its volume."""
    geometry = Geometry.from_spacing((9, 512, 512), (1.0, 0.8, 0.8))
    slices = tuple(SourceSlice(f"1.2.3.{z}", float(z)) for z in range(9))
    volume = Volume(np.zeros(geometry.shape_zyx, np.int8), geometry, slices=slices)
    corners, pixels = (10.0, -20.0, -30.5, 18.0, -12.0, -22.5), (40.5, 30.25, 50.5, 40.25)
    box = Box("nodule", 0.9375, corners, 8.0, (3, 7), "1.2.3.5", pixels)
    labels = (Label(1, "nodule"),)
    values = ("1.2.3", "scans/a", "nodule-ssd3d", geometry, None, labels)
    return Findings(*values, boxes=(box,)), volume


def test_the_printed_tables_of_boxes_are_those_that_are_written(one_box, tmp_path):
    from fastmed.writers.luna import luna_rows, write_luna_marks
    from fastmed.writers.tables import findings_dict, write_findings_csv

    findings, _ = one_box
    printed = re.search(r'  "boxes": (\[\n.*?\n  \]),', TEXT, re.S)[1]
    assert json.loads(printed) == findings_dict(findings)["boxes"]
    write_findings_csv([findings], tmp_path / "findings.csv")
    for line in (tmp_path / "findings.csv").read_text().splitlines():
        assert f"\n{line}\n" in TEXT
    write_luna_marks(luna_rows(findings), tmp_path / "marks.csv")
    assert f"```csv\n{(tmp_path / 'marks.csv').read_text()}```" in TEXT


def test_the_printed_voc_and_coco_are_those_that_are_written(one_box, tmp_path):
    from fastmed.writers.coco import write_coco
    from fastmed.writers.slice_boxes import boxes_by_slice
    from fastmed.writers.voc import write_voc

    findings, volume = one_box
    (at,) = (at for at in boxes_by_slice(findings, volume) if at.name == "1.2.3.5")
    write_voc(at, tmp_path / "a.xml", folder="1.2.3")
    assert f"```xml\n{(tmp_path / 'a.xml').read_text()}```" in TEXT
    printed = json.loads(re.search(r"```json\n(\{\n  \"info\".*?)```", TEXT, re.S)[1])
    description = printed["info"]["description"]
    path = tmp_path / "coco.json"
    write_coco([("1.2.3", at)], findings.classes, path, description=description)
    assert json.loads(path.read_text()) == printed
