"""Imports run one way only, and kernel users pay for no more than torch and numpy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "fastmed"

# The layer of each room or file of the package. Two rooms of one layer may not import each other.
LAYERS = {
    0: ["errors", "cache_folder", "malloc", "_C", "_C_cuda", "_host"],
    1: ["ops", "geometry", "spec", "spec_toml"],
    2: ["volume", "findings", "boxes", "slice_boxes", "losses", "metrics", "integrations"],
    3: ["readers", "writers", "preprocessing", "models", "tasks", "phantom"],
    4: [
        "bundle",
        "exporter",
        "phantom_scans",
        "phantom_sets",
        "phantom_nodules",
        "phantom_archive",
    ],
    5: ["inference"],
    6: ["training"],
    7: ["cli", "cli_archive", "cli_prepare", "doctor"],
}
# Neighbours in one layer that lean on each other, in this direction alone.
ALLOWED = {
    ("spec_toml", "spec"), ("findings", "volume"), ("exporter", "bundle"), ("cli", "doctor"),
    ("phantom_scans", "phantom_sets"), ("losses", "boxes"), ("phantom_scans", "phantom_nodules"),
    ("cli", "cli_prepare"), ("cli", "cli_archive"), ("phantom_scans", "phantom_archive"),
}  # fmt: skip
LAYER_OF = {room: layer for layer, rooms in LAYERS.items() for room in rooms}

FILES = sorted(p for p in PACKAGE.rglob("*.py") if "testing" not in p.parts)


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of fastmed that a file imports anywhere in it, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides its layer"
            if node.module == "fastmed":
                names |= {f"fastmed.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("fastmed.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_layers_below_its_own(path):
    room = room_of(path)
    if room == "__init__":
        assert not imported_rooms(path), "`import fastmed` imports nothing"
        return
    for other in imported_rooms(path) - {room}:
        if other == "__version__":
            continue
        assert other != "testing", f"{path.name} imports testing.py, which serves tests and benches"
        below = LAYER_OF[other] < LAYER_OF[room]
        assert below or (room, other) in ALLOWED, (
            f"{room} (layer {LAYER_OF[room]}) imports {other} (layer {LAYER_OF[other]})"
        )


def test_every_room_has_a_layer():
    unplaced = {room_of(path) for path in FILES} - LAYER_OF.keys() - {"__init__", "__main__"}
    assert not unplaced


def test_no_room_is_a_lumber_room():
    names = {part.removesuffix(".py") for p in FILES for part in p.relative_to(PACKAGE).parts}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


# Folder of csrc: the folders that it may include from.
INCLUDES = {"math": {"math"}, "cpu": {"math", "cpu"}, "cuda": {"math", "cuda"}, "host": {"host"}}
NATIVE = sorted(p for room in INCLUDES for p in (PROJECT / "csrc" / room).glob("*") if p.is_file())


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_native_code_includes_only_what_lies_below(path):
    for include in re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text("utf-8")):
        reached = [part for part in include.split("/")[:-1] if part in INCLUDES]
        assert set(reached) <= INCLUDES[path.parent.name], include
        if path.parent.name in ("math", "host"):
            assert not include.startswith(("torch", "ATen", "c10", "cuda")), include


HEAVY = (
    "pydicom", "nibabel", "SimpleITK", "scipy", "onnx", "onnxruntime", "openvino", "rich",
    "jinja2", "PIL", "matplotlib", "safetensors", "monai", "nnunetv2", "torchmetrics",
    "highdicom", "imagecodecs", "fastmed._host",
)  # fmt: skip


def modules_after(statement: str, *names: str) -> set[str]:
    """Which of `names` are imported in a fresh process once `statement` has run."""
    program = f"{statement}\nimport sys; print(*(n for n in {names!r} if n in sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_importing_the_kernels_imports_nothing_heavy_but_torch():
    assert modules_after("import fastmed.ops", "torch", *HEAVY) == {"torch"}


def test_help_answers_without_loading_torch():
    ask = "import fastmed.cli\ntry: fastmed.cli.main(['--help'])\nexcept SystemExit: print()"
    program = (
        f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n exec({ask!r})"
    )
    assert modules_after(program, "torch", "numpy", *HEAVY) == set()


def test_public_functions_are_the_ones_promised():
    import fastmed

    promised = ("certify", "evaluate", "export", "index", "infer", "load", "read", "train")
    found = {name: getattr(fastmed, name).__name__ for name in fastmed.__all__}
    assert found == {name: name for name in promised}
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = fastmed.absent
