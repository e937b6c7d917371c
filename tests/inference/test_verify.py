"""`infer --verify`: a result, an input or a bundle that changed is named."""

import shutil

import pytest
import scans as make

import fastmed
from fastmed.cli import main
from fastmed.errors import FastmedError
from fastmed.inference.verify import verify


@pytest.fixture
def done(tiny_bundle, tmp_path):
    model = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    for number in range(2):
        make.series(tmp_path / "in" / f"s{number}", make.volume(seed=number))
    settings = {"engine": "torch", "device": "cpu", "quiet": True}
    return fastmed.infer(tmp_path / "in", tmp_path / "out", model=model, **settings)


def test_a_run_as_it_was_is_all_well(done, capsys):
    assert main(["infer", "--verify", str(done.output)]) == 0
    assert "2 results and 2 inputs compared: all as they were" in capsys.readouterr().err


def change_a_label_map(done, folder):
    path = done.output / "series" / done.rows[0].name / "labels.nii.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return f"series/{done.rows[0].name}/labels.nii.gz: has changed since"


def lose_a_file(done, folder):
    (done.output / "series" / done.rows[0].name / "findings.json").unlink()
    return f"series/{done.rows[0].name}/findings.json: is missing"


def add_a_file(done, folder):
    (done.output / "series" / done.rows[0].name / "mine.txt").write_text("x")
    return f"series/{done.rows[0].name}/mine.txt: was not written by the run"


def add_a_folder(done, folder):
    (done.output / "series" / "1.2.3").mkdir()
    return "series/1.2.3: is not in manifest.json"


def change_an_input(done, folder):
    path = folder / "in" / "s1" / "0003.dcm"
    path.write_bytes(path.read_bytes()[:-2] + b"ab")
    return "input s1: its content has changed since"


def change_the_bundle(done, folder):
    path = folder / "bundle" / "bundle.toml"
    path.write_text(path.read_text() + "\n# changed")
    return "bundle.toml has changed since"


CHANGES = (
    change_a_label_map, lose_a_file, add_a_file, add_a_folder, change_an_input, change_the_bundle,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_is_named(done, tmp_path, change, capsys):
    words = change(done, tmp_path)
    assert main(["infer", "--verify", str(done.output), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_an_input_that_is_gone_is_no_problem(done, tmp_path):
    shutil.rmtree(tmp_path / "in" / "s0")
    found = verify(done.output, quiet=True)
    assert (found.problems, found.gone, found.inputs) == ((), ("s0",), 1)


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FastmedError, match="holds no manifest"):
        verify(tmp_path)
