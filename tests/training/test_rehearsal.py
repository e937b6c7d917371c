"""What a recipe names is tried before any scan is read: a mistake is named, and nothing written."""

import re

import pytest

import fastmed
from fastmed.errors import UsageError
from fastmed.training.recipe import read_recipe, recipe_names
from fastmed.training.rehearsal import rehearse

WRONG = {
    "loss": ("liver-unet3d", "loss.name=dise", "[loss] loss 'dise' is unknown; known are ce"),
    "network": ("liver-unet3d", "network.name=unet4d", "[network] network 'unet4d' is unknown"),
    "argument": ("liver-unet3d", "network.depth=3", "unexpected keyword argument 'depth'"),
    "width": ("liver-unet3d", "network.base_channels=9", "base_channels 9: expected a multiple"),
    "classes": ("liver-unet3d", "network.num_classes=3", "expected 1 or 2 classes, 1 labels and"),
    "task": ("liver-unet3d", "network.name=resnet3d_18", "a network of the task"),
    "logits of a classification": (
        "lung-resnet3d", "network.num_classes=1", "expected 2 classes, 1 labels and negative",
    ),
    "patch": ("lesion-unet2d", "sampling.patch_zyx=[1,8,8]", "cannot take 8 of (8, 8) voxels"),
    "slices": ("lesion-unet2d", "sampling.patch_zyx=[2,64,64]", "expected 1 slice"),
    "crop": ("lung-resnet3d", "sampling.crop=label", "a classification has its whole grid"),
    "balance": ("liver-unet3d", "sampling.balance=over", "balance is for classifications"),
    "auto": ("liver-unet3d", "loss.name=auto", "are for classifications"),
    "an option of another loss": (
        "liver-unet3d", "loss.options.gamma=2.0", "option 'gamma' is unknown",
    ),
    "an option of auto": ("lung-resnet3d", "loss.options.gamma=2.0", "name that loss, not auto"),
    "weights": ("liver-unet3d", "loss.class_weights=inverse", "are for classifications"),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "setting", "words"), WRONG.values(), ids=WRONG)
def test_a_recipe_that_cannot_train_is_named_before_anything_is_written(
    tmp_path, recipe, setting, words
):
    with pytest.raises(UsageError, match=re.escape(words)):
        fastmed.train(recipe, tmp_path / "absent", tmp_path / "run", settings=[setting])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_the_recipes_of_the_package_can_train(name):
    recipe = read_recipe(name)
    assert rehearse(recipe, batch_size=recipe.loop.batch_size) > 100_000


DEVICES = {
    "none": ({"devices": 0}, "--devices 0: expected at least 1"),
    "uneven": ({"devices": 3}, "batch_size 2: expected a multiple of --devices 3"),
    "unknown": ({"device": "gpu"}, "--device gpu: expected auto, cpu, cuda or cuda:1"),
    "no index": ({"device": "cuda:x"}, "--device cuda:x: expected auto"),
    "one of two": ({"device": "cuda:1", "devices": 2}, "--device cuda:1: is one device"),
    "absent": ({"device": "cuda:99"}, "CUDA devices"),
}


@pytest.mark.parametrize(("options", "words"), DEVICES.values(), ids=DEVICES)
def test_devices_are_checked_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        fastmed.train("liver-unet3d", tmp_path, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
