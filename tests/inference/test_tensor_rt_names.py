"""Every name that the engine calls exists in TensorRT 10.13, 11.4 and TensorRT-RTX."""

import ast
import json
from importlib import import_module
from pathlib import Path

import pytest
from tensor_rt_names import CALLED, CALLED_OF_RTX, LISTED, names_of

from fastmed.inference import engines

SOURCES = sorted(Path(engines.__file__).parent.glob("tensor_rt*.py"))
STORED = json.loads(LISTED.read_text("utf-8"))


def missing(names: dict, wanted: dict) -> list[str]:
    return [
        f"{kind}.{name}"
        for kind in wanted
        for name in sorted(wanted[kind]) or [""]
        if kind not in names or (name and name not in names[kind])
    ]


@pytest.mark.parametrize("version", STORED)
def test_stored_versions_have_what_is_called(version):
    assert missing(STORED[version], CALLED) == []


def test_the_oldest_and_the_newest_are_stored():
    assert [version.rsplit(".", 2)[0][:5] for version in sorted(STORED)] == ["10.13", "11.4"]


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx_bindings"])
def test_installed_bindings_have_what_is_called(module):
    pytest.importorskip(module)
    names = names_of(import_module(module))
    assert missing(names, CALLED) == []
    if "ComputeCapability" in names:
        assert missing(names, CALLED_OF_RTX) == []


def test_nothing_is_called_that_is_not_listed():
    """Attributes of our sources that are names of the bindings are all in the list."""
    used = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
    }
    known = {name for version in STORED.values() for names in version.values() for name in names}
    rtx = set().union(*CALLED_OF_RTX.values())
    listed = set().union(*CALLED.values()) | rtx
    overridden = CALLED["IProgressMonitor"] | {"log"}  # defined by us and called by TensorRT
    by_name = {"TF32"} | CALLED_OF_RTX["ComputeCapability"]  # by getattr
    our_own = {"dtype", "precision"}  # of an ONNX file
    assert used & (known | rtx) - listed - our_own == set()
    assert listed - used - overridden - by_name == set()
