"""A recipe is one typed value; what is wrong in it is named before anything starts."""

import re
import tomllib
from operator import attrgetter

import pytest
import tomli_w

from fastmed import models
from fastmed.errors import UsageError
from fastmed.training.recipe import (
    read_recipe,
    recipe_from_table,
    recipe_names,
    recipe_to_table,
)

NAMES = ("lesion-unet2d", "liver-unet3d", "lung-resnet3d", "lung-unet2d-png")


def test_the_recipes_of_the_package_are_listed_with_what_they_are_for():
    assert set(NAMES) <= set(recipe_names())
    assert all(recipe_names().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_its_own_toml(name):
    recipe = read_recipe(name)
    again = recipe_from_table(tomllib.loads(tomli_w.dumps(recipe_to_table(recipe))))
    assert recipe_to_table(again) == recipe_to_table(recipe)
    assert again.spec == recipe.spec
    assert again.loop == recipe.loop


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_a_network_that_can_be_built_with_its_classes(name):
    spec = read_recipe(name).spec
    network = models.build(spec.network.name, **(spec.network.arguments | {"base_channels": 8}))
    assert spec.network.arguments["num_classes"] == spec.num_classes
    assert sum(p.numel() for p in network.parameters()) > 0


SETTINGS = {
    "a number": ("loop.epochs=7", "loop.epochs", 7),
    "a whole number for a fraction": ("optimiser.learning_rate=1", "optimiser.learning_rate", 1.0),
    "a list": ("values.liver=[5, 6]", "values", {"liver": (5, 6)}),
    "a bare word": ("loop.checkpoints=every", "loop.checkpoints", "every"),
    "a quoted word": ('loop.checkpoints="last"', "loop.checkpoints", "last"),
    "true": ("loop.compile=true", "loop.compile", True),
    "a network's argument": (
        "network.up=transpose",
        "spec.network.arguments",
        {"in_channels": 1, "num_classes": 2, "base_channels": 24, "up": "transpose"},
    ),
    "a grid": ("grid.spacing_mm_zyx=[2,2,2]", "spec.spacing_mm_zyx", (2.0, 2.0, 2.0)),
    "shares": ("loop.shares=[1,0,0]", "loop.shares", (1.0, 0.0, 0.0)),
    "a crop of slices": ("sampling.crop=[10,20]", "sampling.crop", (10, 20)),
    "clean-up": ("clean_up.largest_component=true", "spec.clean_up.largest_component", True),
}


@pytest.mark.parametrize(("setting", "read", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_set_changes_one_entry(setting, read, expected):
    assert attrgetter(read)(read_recipe("liver-unet3d")) != expected
    assert attrgetter(read)(read_recipe("liver-unet3d", [setting])) == expected


WRONG = {
    "no value": ("loop.epochs", "expected table.entry=value"),
    "unknown entry": ("loop.speed=3", "[loop] speed: unknown; known are batch_size"),
    "unknown table": ("loops.epochs=3", "loops: unknown"),
    "text for a number": ("loop.epochs=many", "[loop] epochs: expected a whole number, got 'many'"),
    "fraction for a whole number": ("loop.epochs=1.5", "[loop] epochs: expected a whole number"),
    "number for true": ("loop.compile=1", "[loop] compile: expected true or false"),
    "below its range": ("loop.epochs=0", "loop.epochs 0: expected at least 1"),
    "above its range": ("loop.ema=1.0", "loop.ema 1.0: expected a number"),
    "unknown word": ("optimiser.name=sgd", "optimiser.name 'sgd': expected one of adam, adamw"),
    "unknown precision": ("loop.precision=fp8", "loop.precision 'fp8'"),
    "two shares": ("loop.shares=[0.5,0.5]", "loop.shares (0.5, 0.5): expected three numbers"),
    "shares as texts": ('loop.shares=["1","0","0"]', "expected three numbers from 0 to 1"),
    "shares of more than all": ("loop.shares=[0.9,0.2,0.1]", "expected a sum of 1"),
    "nothing to train": ("loop.shares=[0,0.5,0.5]", "and some to train"),
    "an unknown loss option": ("loss.sharpness=2", "[loss] sharpness: unknown"),
    "values of no label": ("values.spleen=[1]", "[values] spleen: no label of that name"),
    "values as texts": ('values.liver=["5"]', "[values] liver: expected a list of whole numbers"),
    "a spec that contradicts itself": ("grid.window_hu=[5,1]", "window_hu"),
    "an entry below an entry": ("task.name=3", "task is no table"),
}


@pytest.mark.parametrize(("setting", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_named(setting, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        read_recipe("liver-unet3d", [setting])


def test_an_unknown_recipe_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(
        UsageError, match=r"recipe liver: unknown; known are lesion-unet2d, .*liver"
    ):
        read_recipe("liver")
    (tmp_path / "mine.toml").write_text("= 3")
    with pytest.raises(UsageError, match=r"mine\.toml: cannot be read"):
        read_recipe(tmp_path / "mine.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "absent.toml")


def test_a_recipe_of_ones_own_is_read_from_its_file(tmp_path):
    table = recipe_to_table(read_recipe("liver-unet3d", ["loop.epochs=3"]))
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(table))
    assert read_recipe(tmp_path / "mine.toml").loop.epochs == 3
