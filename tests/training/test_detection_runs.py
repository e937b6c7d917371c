"""Detections through the common loop: from tables of boxes to a bundle that finds."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from detection_runs import TINY_2D, TINY_3D, TinySSD300, nodules, spots
from PIL import Image

import fastmed
from fastmed import models
from fastmed.errors import UsageError
from fastmed.losses import Targets
from fastmed.training import loop
from fastmed.training.box_targets import as_channels, input_channels
from fastmed.training.recipe import read_recipe
from fastmed.training.rehearsal import rehearse
from fastmed.training.task_loss import build_loss

NAMED = re.compile(r"\d+_train_iou_0\.\d{3}_val_iou_0\.\d{3}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: True)  # it would hold for all tests
    monkeypatch.setitem(models._NETWORKS, "tiny_ssd300", TinySSD300)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return nodules(tmp_path_factory.mktemp("nodules"), count=8)


def train(recipe, data, output, *settings, **options):
    return fastmed.train(
        recipe, data, output, device="cpu", quiet=True, settings=settings, **options
    )


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_detector_in_3d_learns_and_its_bundle_finds(data, tmp_path):
    run = train(
        "nodule-ssd3d", data, tmp_path / "run", *TINY_3D, "loop.epochs=5",
        "sampling.samples_per_case=8", "optimiser.learning_rate=5e-3", "optimiser.warmup_steps=0",
    )  # fmt: skip
    history = rows(run.path / "metrics.csv")
    figures = ("train_loss", "train_iou", "val_loss", "val_iou", "val_ap10", "val_ap50", "val_cpm")
    assert all(float(row[name]) >= 0 for row in history for name in figures)
    assert float(history[-1]["train_loss"]) < 0.7 * float(history[0]["train_loss"])
    best = history[run.best_epoch - 1]
    assert float(best["val_cpm"]) == max(float(row["val_cpm"]) for row in history) > 0.5
    (named,) = (run.path / "checkpoints").iterdir()
    assert NAMED.fullmatch(named.name)
    test = json.loads((run.path / "test.json").read_text())
    assert test["mean"].keys() == {"loss", "iou", "ap10", "ap50", "cpm"}
    assert len(test["detection"]["sensitivities"]) == 7
    assert Image.open(run.path / "predictions.png").size[0] > 100
    marks = rows(run.path / "predictions.csv")
    assert list(marks[0])[:5] == ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    name = marks[0]["seriesuid"]
    done = fastmed.infer(
        data / f"{name}.nii.gz", tmp_path / "out", model=run.best, write=["json"], quiet=True
    )
    assert [row.verdict for row in done.rows] == ["done"]
    (volume,) = fastmed.read(data / f"{name}.nii.gz")
    found = fastmed.load(run.best, engine="torch")(volume).boxes
    said = [row for row in marks if row["seriesuid"] == name]
    assert len(found) == len(said)
    corners = ("x1", "y1", "z1", "x2", "y2", "z2")
    for box, row in zip(found, said, strict=True):
        expected = [float(row[column]) for column in ("probability", *corners)]
        np.testing.assert_allclose([box.score, *box.box_lps_mm], expected, atol=1e-3)


def test_a_detector_of_slices_trains_validates_and_its_bundle_finds(tmp_path):
    data = spots(tmp_path / "data")
    run = train("nodule-ssd300", data, tmp_path / "run", "network.name=tiny_ssd300", *TINY_2D)
    history = rows(run.path / "metrics.csv")
    figures = ("train_loss", "train_iou", "val_loss", "val_iou", "val_ap10", "val_ap50")
    assert all(float(row[name]) >= 0 for row in history for name in figures)
    assert "val_cpm" not in history[0]
    marks = rows(run.path / "predictions.csv")
    assert list(marks[0]) == ["name", "slice", "probability", "label", "x1", "y1", "x2", "y2"]
    done = fastmed.infer(
        data / "image-0.png", tmp_path / "out", model=run.best, write=["json"], quiet=True
    )
    assert [row.verdict for row in done.rows] == ["done"]


def weights(run, which):
    return (run.path / which / "weights.safetensors").read_bytes()


def test_a_detection_that_was_broken_off_resumes_to_the_same_weights(data, tmp_path, monkeypatch):
    settings = (*TINY_3D, "loop.epochs=3", "loop.ema=0.5")
    whole = train("nodule-ssd3d", data, tmp_path / "whole", *settings)
    real, done = loop.save_state, []

    def once(*what):
        if done:
            raise KeyboardInterrupt  # after the epoch's bundles, before its state
        done.append(real(*what))

    monkeypatch.setattr(loop, "save_state", once)
    with pytest.raises(KeyboardInterrupt):
        train("nodule-ssd3d", data, tmp_path / "cut", *settings)
    monkeypatch.setattr(loop, "save_state", real)
    cut = train("nodule-ssd3d", data, tmp_path / "cut", *settings, resume=True)
    for which in ("best", "last"):
        assert weights(whole, which) == weights(cut, which), which


def test_two_processes_train_a_detection_and_judge_the_same_cases(data, tmp_path):
    settings = (*TINY_3D, "loop.epochs=1", "loop.shares=[0.5,0.375,0.125]")
    run = train("nodule-ssd3d", data, tmp_path / "run", *settings, devices=2)
    (row,) = rows(run.path / "metrics.csv")
    assert 0 <= float(row["train_iou"]) <= 1
    assert 0 <= float(row["val_cpm"]) <= 1


WRONG = {
    "elastic": ("augmentation.elastic_p=0.2", "boxes cannot be bent with the image; set it to 0"),
    "values": ("values.nodule=[1]", "for label maps; a detection's tables name their labels"),
    "loss": ("loss.name=dice_ce", "a detection takes detection_focal or detection_hard_negative"),
    "option": ("loss.options.nearby=8", "option 'nearby' is unknown; it has matcher"),
    "matcher": ("loss.matcher=nearest", "expected one of atss, iou"),
    "strides": ("network.strides=[4,8,16]", "expected 2592 default boxes with 6 coordinates"),
    "boxes": ("network.boxes_per_place=1", "network.boxes_per_place"),
    "classes": ("network.num_classes=3", "2 classes each"),
    "task": ("network.name=unet3d", "unexpected keyword argument"),
    "crop": ("sampling.crop=label", "crop label is for label maps"),
}


@pytest.mark.parametrize(("setting", "words"), WRONG.values(), ids=WRONG)
def test_a_recipe_of_a_detection_that_cannot_be_is_named(setting, words, tmp_path):
    with pytest.raises(UsageError, match=re.escape(words)):
        train("nodule-ssd3d", tmp_path / "absent", tmp_path / "run", setting)


def test_a_loss_of_boxes_is_for_detections_alone(tmp_path):
    for setting in ("loss.name=detection_focal", "loss.matcher=iou"):
        with pytest.raises(UsageError, match=re.escape("detection_* is for detections")):
            train("liver-unet3d", tmp_path / "absent", tmp_path / "run", setting)


CHANNELS = {
    "slices of a volume": (
        "nodule-ssd3d",
        "network.in_channels=3",
        "3 channels, a scan gives it 1",
    ),
    "neighbours": ("nodule-ssd300", "grid.slices=5", "3 channels, a scan gives it 5"),
}


@pytest.mark.parametrize(("recipe", "setting", "words"), CHANNELS.values(), ids=CHANNELS)
def test_channels_that_no_scan_fills_are_named(recipe, setting, words):
    with pytest.raises(UsageError, match=words):
        rehearse(read_recipe(recipe, [setting]), batch_size=1)


def test_a_slice_fills_the_channels_that_its_network_takes_by_default():
    spec = read_recipe("nodule-ssd300").spec
    bare = replace(spec, network=replace(spec.network, arguments={}))
    assert input_channels(bare) == 3
    assert as_channels(torch.ones(2, 1, 4, 4), input_channels(bare)).shape == (2, 3, 4, 4)
    assert as_channels(torch.ones(2, 5, 4, 4), 5).shape == (2, 5, 4, 4)


def test_a_size_that_ssd300_cannot_take_is_named():
    recipe = read_recipe("nodule-ssd300", ["grid.size_zyx=[1,512,512]"])
    with pytest.raises(UsageError, match=re.escape("cannot take 8 of (512, 512) voxels")):
        rehearse(recipe, batch_size=8)


def test_matcher_and_options_change_the_loss_of_a_detection():
    places = torch.tensor([[5.0, 6.0, 7.0, 14.0, 13.0, 12.0], [1.0, 1.0, 2.0, 3.5, 4.0, 4.0]])
    targets = [Targets(places, torch.tensor([1, 1]))]
    values = []
    for settings in ([], ["loss.matcher=iou"], ["loss.options.alpha=0.75"]):
        recipe = read_recipe("nodule-ssd3d", [*TINY_3D, *settings])
        loss = build_loss(recipe, recipe.loss.name)
        count = len(loss.patch.defaults)
        torch.manual_seed(0)
        values.append(float(loss(torch.randn(1, count, 8), targets)))
    assert len(set(values)) == 3
