"""docs/formats.md: every bundle.toml in it is one that fastmed reads, scores have their names."""

import json
import re
import tomllib
from pathlib import Path

import pytest

import fastmed
from fastmed.spec_toml import spec_from_table

TEXT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text("utf-8")
SCORES = [json.loads(text) for text in re.findall(r'```json\n(\{\n  "task".*?)```', TEXT, re.S)]
BUNDLES = re.findall(r"```toml\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("toml", BUNDLES, ids=lambda toml: tomllib.loads(toml)["name"])
def test_a_printed_bundle_is_a_bundle(toml):
    spec = spec_from_table(tomllib.loads(toml))
    assert spec.name in ("demo-liver", "lung-resnet3d", "lung-unet2d-png")


def test_every_entry_of_a_bundle_is_in_the_table():
    from fastmed import spec_toml

    for entry in spec_toml._GRID_OPTIONS:
        assert f"`grid.{entry}`" in TEXT
    assert len(BUNDLES) == 3


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
