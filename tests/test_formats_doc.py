"""docs/formats.md: every bundle.toml in it is one that fastmed reads."""

import re
import tomllib
from pathlib import Path

import pytest

from fastmed.spec_toml import spec_from_table

TEXT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text("utf-8")
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
