"""Runs of every kind of model: the right inputs, the right files, the same figures everywhere."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import scans as make
import torch
from PIL import Image
from torch import nn

import fastmed
from fastmed import bundle, models
from fastmed.errors import FastmedError, UsageError
from fastmed.spec import CleanUp, Label, Network, Spec

MASKS = Spec(
    name="lesions",
    task="segmentation",
    modality="grey",
    dimensions=2,
    labels=(Label(1, "lesion", grey=255),),
    spacing_mm_zyx=(1.0, 1.0, 1.0),
    window_hu=(0.0, 200.0),
    tile_zyx=(1, 16, 16),
    network=Network("bright", {}),
)
SCORES = Spec(
    name="nodules",
    task="classification",
    labels=(Label(1, "nodule"), Label(2, "effusion")),
    negative="clear",
    spacing_mm_zyx=None,
    size_zyx=(8, 8, 8),
    window_hu=(-1000.0, 400.0),
    network=Network("mean", {}),
)


class Bright(nn.Module):
    """Label 1 where the windowed image is above one half."""

    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], dim=1)


class Mean(nn.Module):
    """Logits that follow from the mean of the image."""

    def forward(self, x):
        mean = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([mean, 2 * mean, -mean], dim=1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Writes the spec's bundle and runs it over a folder, quietly."""
    monkeypatch.setitem(models._NETWORKS, "bright", Bright)
    monkeypatch.setitem(models._NETWORKS, "mean", Mean)

    def run(spec, input, **options):
        bundle.write(tmp_path / "bundle", spec, models.build(spec.network.name))
        settings = {"model": tmp_path / "bundle", "engine": "torch", "device": "cpu"}
        settings |= {"quiet": True} | options
        return fastmed.infer(input, tmp_path / "out", **settings)

    return run


@pytest.fixture
def images(tmp_path):
    """Two grey images, one with a bright lesion of 12 pixels, and one in colour."""
    folder = tmp_path / "images"
    folder.mkdir()
    one = np.full((20, 33), 40, np.uint8)
    one[3:6, 20:24] = 180
    Image.fromarray(one).save(folder / "one.png")
    Image.fromarray(np.full((17, 16), 30, np.uint16)).save(folder / "two.tif")
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 9
    Image.fromarray(colour).save(folder / "red.png")
    (folder / "notes.txt").write_text("a note")
    return folder


def verdicts(run):
    return {row.source: row.verdict for row in run.rows}


def files_below(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def csv_rows(run):
    with open(run.output / "findings.csv") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_images_gets_label_pictures_of_the_labels_grey_values(run, images):
    result = run(MASKS, images)
    assert verdicts(result) == {
        "one.png": "done", "two.tif": "done", "red.png": "refused", "notes.txt": "skipped",
    }  # fmt: skip
    per_image = {"labels.png", "findings.json", "preview.png", "thumb.jpg"}
    expected = {f"series/{name}/{f}" for name in ("one.png", "two.tif") for f in per_image}
    tables = {"findings.csv", "report.html", "manifest.json"}
    assert files_below(result.output) == expected | tables
    with Image.open(result.output / "series" / "one.png" / "labels.png") as picture:
        assert picture.mode == "L"
        labels = np.array(picture)
    assert np.array_equal(labels, 255 * (np.array(Image.open(images / "one.png")) > 100))
    assert (labels == 255).sum() == 12


def test_the_figures_of_an_image_are_pixels_and_grey_values(run, images):
    result = run(MASKS, images)
    content = json.loads((result.output / "series/one.png/findings.json").read_text())
    assert content["modality"] == "grey"
    assert content["masks"] == [
        {"label": "lesion", "volume_ml": None, "mean_hu": 180.0, "voxels": 12}
    ]
    one, two = csv_rows(result)
    assert (one["volume_ml"], one["voxels"], float(one["mean_hu"])) == ("", "12", 180)
    assert (two["volume_ml"], two["voxels"], two["mean_hu"]) == ("", "0", "")
    report = (result.output / "report.html").read_text()
    assert "12 px" in report
    assert "33 × 20 pixels" in report
    assert " mm" not in report[report.index("33 × 20") : report.index("lesion")]
    with Image.open(result.output / "series/one.png/preview.png") as preview:
        assert preview.width > preview.height  # one plane, wide as the image


def test_sixteen_bits_where_a_label_needs_them(run, images):
    spec = replace(MASKS, labels=(Label(1, "lesion", grey=1000),))
    result = run(spec, images)
    with Image.open(result.output / "series" / "one.png" / "labels.png") as picture:
        assert sorted(np.unique(np.array(picture))) == [0, 1000]


def test_an_image_resized_for_the_network_keeps_its_own_size(run, images):
    spec = replace(MASKS, spacing_mm_zyx=None, size_zyx=(1, 40, 66))
    result = run(spec, images)
    with Image.open(result.output / "series" / "one.png" / "labels.png") as picture:
        assert picture.size == (33, 20)
        assert 8 <= (np.array(picture) == 255).sum() <= 16


def test_an_array_is_a_grey_image_too(run, tmp_path):
    np.save(tmp_path / "a.npy", np.full((16, 16), 150.0))
    result = run(MASKS, tmp_path / "a.npy")
    assert csv_rows(result)[0]["voxels"] == "256"


def test_a_model_of_images_passes_ct_by_and_says_so(run, tmp_path):
    make.series(tmp_path / "ct")
    with pytest.raises(FastmedError, match="no grey image among 1 entries"):
        run(MASKS, tmp_path / "ct")


def test_a_model_of_ct_passes_images_by(run, images):
    with pytest.raises(FastmedError, match="no CT series among 1 entries"):
        run(SCORES, images)


def test_scores_stand_in_every_table(run, tmp_path):
    make.series(tmp_path / "in" / "a", make.volume(seed=1))
    result = run(SCORES, tmp_path / "in")
    (row,) = result.rows
    assert row.verdict == "done"
    folder = result.output / "series" / row.name
    assert {p.name for p in folder.iterdir()} == {"findings.json", "preview.png", "thumb.jpg"}
    content = json.loads((folder / "findings.json").read_text())
    assert content["masks"] == []
    assert [score["label"] for score in content["scores"]] == ["clear", "nodule", "effusion"]
    total = sum(score["probability"] for score in content["scores"])
    assert total == pytest.approx(1)
    rows = csv_rows(result)
    assert {r["kind"] for r in rows} == {"score"}
    assert [(r["label"], float(r["probability"])) for r in rows] == [
        (score["label"], score["probability"]) for score in content["scores"]
    ]
    assert all(r["volume_ml"] == r["voxels"] == "" for r in rows)
    report = (result.output / "report.html").read_text()
    for score in content["scores"]:
        assert f"{100 * score['probability']:.1f} %" in report
    assert "<th>mean HU</th>" not in report
    settings = json.loads((result.output / "manifest.json").read_text())["settings"]
    assert settings["size_zyx"] == [8, 8, 8]
    assert not {"spacing_mm_zyx", "tile_zyx", "overlap"} & settings.keys()


def test_the_manifest_names_what_the_model_sees_and_clean_up(run, images, tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("fastmed.tasks.clean_up")
    module.clean = lambda labels, spec, voxel_volume_ml: labels
    monkeypatch.setitem(sys.modules, "fastmed.tasks.clean_up", module)
    result = run(replace(MASKS, clean_up=CleanUp(fill_holes=True)), images)
    settings = json.loads((result.output / "manifest.json").read_text())["settings"]
    assert settings["clean_up"] == {
        "largest_component": False, "fill_holes": True, "smallest_ml": 0.0,
    }  # fmt: skip
    make.series(tmp_path / "ct")
    result = run(replace(SCORES, region="lungs"), tmp_path / "ct")
    settings = json.loads((result.output / "manifest.json").read_text())["settings"]
    assert settings["region"] == "lungs"
    (row,) = result.rows
    assert row.verdict == "failed"
    assert "no lungs found" in row.reason
    result = run(replace(SCORES, axes="RAS", mirror_zyx=(True, False, False)), tmp_path / "ct")
    settings = json.loads((result.output / "manifest.json").read_text())["settings"]
    assert (settings["axes"], settings["mirror_zyx"]) == ("RAS", [True, False, False])


@pytest.mark.parametrize("spec", [MASKS, SCORES], ids=["grey", "scores"])
def test_nifti_alone_is_nothing_for_a_model_without_label_maps_in_mm(run, tmp_path, spec):
    with pytest.raises(UsageError, match="--write nifti: the model"):
        run(spec, tmp_path, write=["nifti"])


def test_an_array_without_spacing_is_refused_where_the_model_needs_mm(run, tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 400, (6, 8, 10)).astype(np.int16)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", hu)
    needs_mm = replace(SCORES, spacing_mm_zyx=(2.0, 2.0, 2.0), size_zyx=None)
    (row,) = run(needs_mm, tmp_path / "in").rows
    assert row.verdict == "refused"
    assert 'put {"spacing_mm_zyx": [z, y, x]} into a .json file' in row.reason
    (row,) = run(SCORES, tmp_path / "in").rows
    assert row.verdict == "done"
    (tmp_path / "in" / "a.json").write_text('{"spacing_mm_zyx": [2.0, 1.0, 1.0]}')
    done = [row for row in run(needs_mm, tmp_path / "in").rows if row.verdict == "done"]
    assert [row.source for row in done] == ["a.npy"]


def test_the_same_image_gives_the_same_bytes(run, images):
    first = run(MASKS, images)
    names = [n for n in files_below(first.output) if n.startswith("series")]
    before = {name: (first.output / name).read_bytes() for name in names}
    run(MASKS, images)
    for name in names:
        assert (first.output / name).read_bytes() == before[name], name


SHOWN = {"grey": (MASKS, "lesion 12 px, 180 grey"), "scores": (SCORES, "effusion ")}


@pytest.mark.parametrize(("spec", "words"), SHOWN.values(), ids=SHOWN)
def test_the_terminal_shows_pixels_and_probabilities(run, images, tmp_path, capsys, spec, words):
    make.series(tmp_path / "ct")
    run(spec, images if spec is MASKS else tmp_path / "ct", quiet=False)
    assert words in capsys.readouterr().err
