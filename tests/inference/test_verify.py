"""`infer --verify`: a result, an input or a bundle that changed is named."""

import json
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


def damage_the_bundle(done, folder):
    (folder / "bundle" / "bundle.toml").write_text("[model")
    return f"bundle {folder / 'bundle'}: bundle.toml"


def make_a_file_unreadable(done, folder):
    name = f"series/{done.rows[0].name}/findings.json"
    (done.output / name).unlink()
    (done.output / name).symlink_to(folder / "absent")
    return f"{name}: cannot be read"


def stop_the_run(done, folder):
    change_the_manifest(done, finished=None)
    return "the run has not finished; the same command goes on"


def refuse_a_series(done, folder):
    manifest = json.loads((done.output / "manifest.json").read_text())
    manifest["series"][0] |= {"verdict": "refused", "reason": "uneven", "files": {}}
    change_the_manifest(done, series=manifest["series"])
    name = manifest["series"][0]["name"]
    return f"series/{name}: an earlier result of other input; its series is now refused: uneven"


def change_the_manifest(done, **facts):
    path = done.output / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


CHANGES = (
    change_a_label_map, lose_a_file, add_a_file, add_a_folder, change_an_input, change_the_bundle,
    damage_the_bundle, make_a_file_unreadable, stop_the_run, refuse_a_series,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_is_named(done, tmp_path, change, capsys):
    words = change(done, tmp_path)
    assert main(["infer", "--verify", str(done.output), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_every_file_of_results_inputs_and_bundle_is_compared(done, tmp_path):
    folders = (done.output / "series", tmp_path / "in", tmp_path / "bundle")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 8 + 18 + 3
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert len(verify(done.output, quiet=True).problems) == 1, path
        path.write_bytes(whole)
    assert verify(done.output, quiet=True).problems == ()


def test_an_input_that_is_gone_is_no_problem(done, tmp_path):
    shutil.rmtree(tmp_path / "in" / "s0")
    found = verify(done.output, quiet=True)
    assert (found.problems, found.gone, found.inputs) == ((), ("s0",), 1)


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FastmedError, match="holds no manifest"):
        verify(tmp_path)


@pytest.mark.parametrize("state", ["absent", "damaged"])
def test_a_journal_that_cannot_be_read_is_a_problem_and_none_is_made(done, state):
    journal = done.output / "journal.sqlite"
    journal.unlink()
    if state == "damaged":
        journal.write_bytes(b"x" * 5000)
    found = verify(done.output, quiet=True)
    assert (found.results, found.inputs, len(found.problems)) == (2, 0, 2)
    assert all(problem.startswith("journal.sqlite: ") for problem in found.problems)
    assert journal.exists() == (state == "damaged")


def test_nothing_is_written_beside_the_results(done):
    before = {path: path.stat().st_mtime_ns for path in done.output.rglob("*")}
    before[done.output] = done.output.stat().st_mtime_ns
    verify(done.output, quiet=True)
    after = {path: path.stat().st_mtime_ns for path in (done.output, *done.output.rglob("*"))}
    assert after == before


def test_a_run_that_was_killed_lists_no_result_as_foreign(done):
    change_the_manifest(done, finished=None, series=[])
    assert verify(done.output, quiet=True).problems == (
        "the run has not finished; the same command goes on",
    )
