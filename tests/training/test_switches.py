"""Each switch of a recipe reaches what it switches; a new one without a test here fails."""

from dataclasses import fields

import pytest
import torch
from test_pipelines import CLASSES, chests
from training_runs import TINY, balls

import fastmed
from fastmed.training import loop
from fastmed.training.augment import Augmentation
from fastmed.training.batches import Sampling
from fastmed.training.cache import Cache
from fastmed.training.recipe import Loop, Loss, Optimiser

QUIET = tuple(
    f"augmentation.{name}_p=0.0"
    for name in ("rotation", "zoom", "shift", "window", "noise", "brightness", "contrast",
                 "elastic")
)  # fmt: skip
_ON = {
    "rotation": 'rotation_degrees=40.0', "zoom": "zoom=[0.5,0.6]", "shift": "shift_voxels=9.0",
    "window": "window_jitter=0.3", "noise": "noise=0.4", "brightness": "brightness=[0.5,0.6]",
    "contrast": "contrast=[0.4,0.5]", "elastic": "elastic_voxels=5.0",
}  # fmt: skip

# Settings that change the first batch of a segmentation: the switch, what it needs, two values.
BATCHES = {
    "sampling.patch_zyx": ((), "[16,16,16]", "[16,16,32]"),
    "sampling.samples_per_case": ((), "1", "3"),
    "sampling.foreground": ((), "0.0", "1.0"),
    "sampling.crop": (("sampling.foreground=0.0",), "scan", "[0,4]"),
    "augmentation.flip_zyx": ((), "[false,false,false]", "[true,true,true]"),
    "augmentation.elastic_spacing": (("augmentation.elastic_p=1.0",), "4", "8"),
    "loop.batch_size": ((), "2", "4"),
    "loop.seed": ((), "0", "1"),
    "loop.shares": ((), "[0.5,0.25,0.25]", "[1,0,0]"),
    **{f"augmentation.{name}_p": ((), "0.0", "1.0") for name in _ON},
    **{
        f"augmentation.{entry.split('=')[0]}": (
            (f"augmentation.{name}_p=1.0",), None, entry.split("=")[1]
        )
        for name, entry in _ON.items()
    },
}  # fmt: skip
BATCHES["augmentation.window_p"] = (("augmentation.window_jitter=0.3",), "0.0", "1.0")

# Settings that change the loss of a classification's first step.
LOSSES = {
    "loss.name": ((), "ce", "asymmetric"),
    "loss.class_weights": (("loss.name=ce",), "none", "inverse"),
    "loss.beta": (("loss.name=ce", "loss.class_weights=effective"), "0.5", "0.999"),
    "loss.options.gamma": (("loss.name=focal",), "0.0", "2.0"),
    "loss.options.smooth": (("loss.name=dice",), "0.1", "10.0"),
    "loss.options.gamma_positive": (("loss.name=asymmetric",), "0.0", "1.0"),
    "loss.options.gamma_negative": (("loss.name=asymmetric",), "0.0", "4.0"),
    "loss.options.clip": (("loss.name=asymmetric",), "0.0", "0.2"),
    "sampling.balance": ((), "none", "over"),
}

ELSEWHERE = {  # test_optimising.py, test_loop.py, test_detection_runs.py
    "loss": {"matcher"},
    "optimiser": {
        "name",
        "learning_rate",
        "weight_decay",
        "schedule",
        "factor",
        "patience",
        "step_epochs",
        "final_learning_rate",
        "warmup_steps",
        "clip_norm",
        "accumulate",
    },
    "loop": {"epochs", "precision", "patience", "ema", "compile", "checkpoints", "validate_every"},
}
HERE = {"loop": {"cache_gb"}}


class _Seen(Exception):
    pass


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: True)  # it would hold for all tests


@pytest.fixture
def first_batch(own_cache, tmp_path, monkeypatch):
    """Starts a run and returns its training set, the loss and the first batch."""

    def start(recipe, data, settings, name):
        def stop(fabric, network, optimiser, average, loss, batches, *rest):
            raise _Seen(batches, loss, batches.batch(1, 0))

        monkeypatch.setattr(loop, "_train_epoch", stop)
        with pytest.raises(_Seen) as seen:
            fastmed.train(
                recipe, data, tmp_path / name, device="cpu", quiet=True, settings=settings
            )
        return seen.value.args

    return start


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return balls(tmp_path_factory.mktemp("balls"))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chests") / "data"
    return chests(folder, {"train": [0, 0, 0, 1], "val": [0, 1], "test": [0, 1]})


@pytest.mark.parametrize("switch", BATCHES)
def test_a_switch_changes_what_the_network_is_given(switch, first_batch, data):
    needs, off, on = BATCHES[switch]
    made = []
    for name, value in (("off", off), ("on", on)):
        own = () if value is None else (f"{switch}={value}",)
        settings = [*TINY, *QUIET, *needs, *own]
        batches, _, batch = first_batch("liver-unet3d", data, settings, name)
        made.append((batches.steps_per_epoch, batch))
    (steps, one), (other_steps, other) = made
    same_image = one.image.shape == other.image.shape and torch.equal(one.image, other.image)
    assert not same_image or steps != other_steps


@pytest.mark.parametrize("switch", LOSSES)
def test_a_switch_changes_the_loss_of_a_classification(switch, first_batch, scans):
    needs, off, on = LOSSES[switch]
    values = []
    logits = torch.tensor([[1.0, -1.0], [0.5, 0.25]])
    for name, value in (("off", off), ("on", on)):
        settings = [*CLASSES, *QUIET, *needs, f"{switch}={value}"]
        batches, loss, _ = first_batch("lung-resnet3d", scans, settings, name)
        values.append((float(loss(logits, torch.tensor([0, 1]))), batches.steps_per_epoch))
    assert values[0] != values[1]


@pytest.mark.parametrize(("size", "is_kept"), [("1.0", True), ("0.0", False)])
def test_the_cache_is_as_large_as_the_recipe_says(first_batch, data, size, is_kept, monkeypatch,
                                                  tmp_path):  # fmt: skip
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "own"))
    batches, _, _ = first_batch("liver-unet3d", data, [*TINY, f"loop.cache_gb={size}"], "run")
    assert all((case.folder is not None) == is_kept for case in batches.cases)
    assert Cache.default_folder() == tmp_path / "own"


PARTS = {
    "loss": Loss, "sampling": Sampling, "augmentation": Augmentation, "optimiser": Optimiser,
    "loop": Loop,
}  # fmt: skip


@pytest.mark.parametrize("table", PARTS)
def test_each_switch_has_its_test(table):
    names = [name.split(".") for name in (*BATCHES, *LOSSES)]
    tested = {entry for part, entry, *_ in names if part == table}
    tested |= ELSEWHERE.get(table, set()) | HERE.get(table, set())
    assert {field.name for field in fields(PARTS[table])} == tested
