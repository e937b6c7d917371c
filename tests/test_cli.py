"""The command: exit status, one-line errors, and nothing half-written, whatever it is given."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scans as make

import fastmed
from fastmed.cli import main
from fastmed.errors import FastmedError

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with one good scan, in a folder of its own so that others can join it."""
    folder = tmp_path_factory.mktemp("good")
    make.series(folder / "good", make.volume(seed=1))
    return folder


@pytest.fixture
def infer(tiny_bundle, tmp_path, capsys):
    """Runs `fastmed infer`; returns exit status and the lines on stderr; stdout stays empty."""

    def infer(*arguments, model=tiny_bundle, output=tmp_path / "out", engine="torch"):
        words = ["infer", "--workers", "0", "--model", model]
        words += ["--output", output, "--engine", engine, "--input"]
        status = main([str(word) for word in (*words, *arguments)])
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return status, err.splitlines()

    return infer


def with_good(good, folder):
    shutil.copytree(good, folder, dirs_exist_ok=True)
    return folder


def no_pixels(folder):
    make.edit(make.series(folder / "bad", make.volume(seed=2))[4], PixelData=None)


def cut_short(folder):
    make.truncate(make.series(folder / "bad", make.volume(seed=2))[4], lose_bytes=100)


def one_slice(folder):
    for path in make.series(folder / "bad", make.volume(seed=2))[1:]:
        path.unlink()


def missing_slices(folder):
    for path in make.series(folder / "bad", make.volume(seed=2))[3:5]:
        path.unlink()


def broken_nifti(folder):
    (folder / "bad.nii.gz").write_bytes(b"\x1f\x8b" + b"\xff" * 100)


BAD_SCANS = {
    "pixel data missing": (no_pixels, "0005.dcm", "failed"),
    "truncated": (cut_short, "0005.dcm", "failed"),
    "one slice": (one_slice, "one slice", "refused"),
    "missing slices": (missing_slices, "2 slices missing", "refused"),
    "broken NIfTI": (broken_nifti, "bad.nii.gz", "failed"),
}


@pytest.mark.parametrize(("spoil", "words", "verdict"), BAD_SCANS.values(), ids=BAD_SCANS.keys())
def test_a_bad_scan_is_named_in_one_line_and_the_others_are_done(
    good, infer, tmp_path, spoil, words, verdict
):
    spoil(with_good(good, tmp_path / "in"))
    status, lines = infer(tmp_path / "in", "--quiet")
    assert status == 1
    (line,) = lines
    assert line.startswith(f"fastmed: {verdict}: bad")
    assert words in line
    (done,) = (tmp_path / "out" / "series").iterdir()
    assert (done / "labels.nii.gz").is_file()
    assert not list((tmp_path / "out").rglob(".*"))

    status, lines = infer(tmp_path / "in")
    assert status == 1
    assert any(words in line for line in lines)
    assert f"1 done, 1 {verdict}" in lines


def test_a_bad_scan_alone_is_named_too(infer, tmp_path):
    (tmp_path / "in").mkdir()
    one_slice(tmp_path / "in")
    status, (line,) = infer(tmp_path / "in", "--quiet")
    assert status == 1
    assert "one slice" in line


def test_a_folder_without_files_is_a_one_line_error(infer, tmp_path):
    (tmp_path / "in").mkdir()
    status, (line,) = infer(tmp_path / "in")
    assert (status, line) == (
        1,
        f"fastmed: {tmp_path / 'in'}: no files here; name a folder of CT scans with --input",
    )


def test_a_folder_without_ct_is_a_one_line_error(infer, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "letter.txt").write_text("no scan")
    status, (line,) = infer(tmp_path / "in")
    assert status == 1
    assert line.startswith(f"fastmed: {tmp_path / 'in'}: no CT series among 1 entries")
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_absent_is_a_wrong_usage(infer, tmp_path):
    status, (line,) = infer(tmp_path / "absent")
    assert (status, line) == (2, f"fastmed: {tmp_path / 'absent'}: no such file or folder")


BAD_BUNDLES = {
    "absent": (lambda folder: shutil.rmtree(folder), "is no bundle: it has no bundle.toml"),
    "no toml": (lambda f: (f / "bundle.toml").unlink(), "is no bundle: it has no bundle.toml"),
    "broken toml": (lambda f: (f / "bundle.toml").write_text("= ="), "bundle.toml: "),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors is miss"),
    "broken weights": (
        lambda f: (f / "weights.safetensors").write_bytes(b"x" * 99), "cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), BAD_BUNDLES.values(), ids=BAD_BUNDLES.keys())
def test_an_unreadable_bundle_is_a_one_line_error(
    good, infer, tiny_bundle, tmp_path, damage, words
):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    damage(tmp_path / "b")
    status, (line,) = infer(good, model=tmp_path / "b")
    assert status == 1
    assert str(tmp_path / "b") in line
    assert words in line
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_a_one_line_error(good, infer, tmp_path):
    (tmp_path / "out").write_text("in the way")
    status, lines = infer(good)
    assert status == 1
    assert lines[-1].startswith(f"fastmed: {tmp_path / 'out'}: cannot be written")
    assert "--output" in lines[-1]


def test_a_read_only_output_is_a_one_line_error(good, infer, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    if os.access(tmp_path / "out", os.W_OK):
        pytest.skip("this user may write anywhere")
    status, lines = infer(good)
    assert status == 1
    assert lines[-1].startswith(f"fastmed: {tmp_path / 'out'}: cannot be written, permission")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_full_is_a_one_line_error(good, infer, tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith(("labels.nii.gz", "report.html")):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("fastmed.writers.atomic.os.replace", full)
    status, lines = infer(good, "--quiet")
    assert status == 1
    (line,) = lines
    assert "no space left on device; free some space or name another --output" in line
    assert line.endswith("1 scan is left, with which the same command goes on")
    left = {path.name: path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left.keys() == {"findings.csv", "manifest.json", "journal.sqlite"}
    assert json.loads(left["manifest.json"].read_text())["finished"] is None


WRONG_USAGES = {
    "no command": [],
    "unknown command": ["guess"],
    "no input": ["infer"],
    "unknown flag": ["infer", "--input", "x", "--fast"],
    "strict and lenient": ["index", "x", "--strict", "--lenient"],
    "count": ["phantom", "abdomen", "--output", "x", "--count", "many"],
}


@pytest.mark.parametrize("words", WRONG_USAGES.values(), ids=WRONG_USAGES.keys())
def test_wrong_usage_has_exit_status_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: fastmed" in capsys.readouterr().err


NAMED = {
    "engine": (["--engine", "tpu"], "fastmed: --engine tpu: expected one of auto"),
    "device": (["--device", "tpu"], "fastmed: --device tpu: expected auto, cpu"),
    "write": (["--write", "nifti,docx"], "fastmed: --write docx: expected some of"),
    "write nothing": (["--write", ","], "fastmed: --write names nothing: expected some of"),
    "series": (["--series", "1.2.3"], "fastmed: --series 1.2.3: not among the series found"),
}


@pytest.mark.parametrize(("flags", "words"), NAMED.values(), ids=NAMED.keys())
def test_a_wrong_value_is_named_in_one_line(good, infer, tmp_path, flags, words):
    status, (line,) = infer(good, *flags)
    assert status == 2
    assert line.startswith(words)
    assert not (tmp_path / "out").exists()


def test_a_named_engine_that_is_absent_has_exit_status_2(good, infer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, (line,) = infer(good, engine="ov")
    assert status == 2
    assert line.startswith("fastmed: --engine ov: not installed")


def test_all_well_has_exit_status_0_and_the_engine_is_named(good, infer):
    status, lines = infer(good)
    assert status == 0
    assert lines[0] == "Engine torch on cpu, as asked."


def test_index_shows_each_verdict_and_fails_where_one_is_bad(good, tmp_path, capsys):
    assert main(["index", str(good)]) == 0
    assert "CT volume, uniform 2 mm" in capsys.readouterr().out
    missing_slices(with_good(good, tmp_path / "in"))
    assert main(["index", str(tmp_path / "in")]) == 1
    assert "refused" in capsys.readouterr().out
    assert main(["index", str(tmp_path / "in"), "--lenient"]) == 0


def test_index_remembers_what_it_read_unless_told_to_read_afresh(tmp_path, capsys):
    make.series(tmp_path)
    for flags, read, unchanged in (([], 9, 0), ([], 0, 9), (["--fresh"], 9, 0), ([], 0, 9)):
        assert main(["index", str(tmp_path), *flags]) == 0
        said = f"{read} files read, {unchanged} unchanged since the last index, 0 gone\n"
        assert capsys.readouterr().err == said


def test_index_writes_one_json_object_for_each_entry(good, tmp_path, capsys):
    missing_slices(with_good(good, tmp_path / "in"))
    path = tmp_path / "lines.json"
    assert main(["index", str(tmp_path / "in"), "--json", str(path)]) == 1
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["verdict"] for line in lines].count("ok") == 1
    shown = capsys.readouterr().out
    assert all(line["source"] in shown for line in lines)
    (ok,) = [line for line in lines if line["verdict"] == "ok"]
    assert {
        "kind": "ct",
        "conditions": ["uniform"],
        "files": 9,
        "warnings": [],
        "spacing_mm_zyx": pytest.approx([2.0, 0.75, 0.75]),
    }.items() <= ok.items()
    assert set(ok) == {
        *("name", "source", "kind", "conditions", "verdict", "reason", "warnings", "files"),
        *("shape_zyx", "spacing_mm_zyx"),
    }


def test_index_of_nothing_is_an_error(tmp_path, capsys):
    assert main(["index", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"fastmed: {tmp_path}: no files here\n"


def test_export_prints_the_file_it_wrote(monkeypatch, capsys, tiny_bundle):
    def export(bundle, *, to, precision, **others):
        assert others == {"scans": None, "device": "auto", "quiet": False}
        return (bundle / f"model.{precision}.{to}",)

    monkeypatch.setattr(fastmed, "export", export, raising=False)
    assert main(["export", str(tiny_bundle), "--to", "onnx", "--precision", "bf16"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tiny_bundle / 'model.bf16.onnx'}\n"
    assert f"fastmed certify {tiny_bundle} --scans PATH" in said.err


def test_export_certifies_on_the_scans_that_are_named(monkeypatch, tiny_bundle, tmp_path):
    called = {}

    def certify(bundle, scans, *, device, quiet):
        called.update(bundle=bundle, scans=scans, device=device)
        raise FastmedError("that will do")

    monkeypatch.setattr(fastmed, "export", lambda *_, **__: "model.onnx", raising=False)
    monkeypatch.setattr(fastmed, "certify", certify, raising=False)
    arguments = ["export", str(tiny_bundle), "--to", "onnx", "--scans", str(tmp_path)]
    assert main(arguments) == 1
    assert called == {"bundle": tiny_bundle, "scans": [tmp_path], "device": "auto"}


def test_doctor_looks_at_everything(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for subject in ("fastmed", "python", "kernels cpu", "engine ov", "DICOM JPEG 2000", "torch"):
        assert subject in shown
    assert "loaded and right" in shown
    assert all(f"{subject} " in shown for subject in ("engine trt", "engine ort", "engine torch"))


def test_doctor_says_where_caches_are_and_whether_they_can_be_written(tmp_path, monkeypatch):
    from fastmed.doctor import doctor

    def caches():
        return {c.subject: c for c in doctor() if c.subject.startswith("cache ")}

    (tmp_path / "kept").write_bytes(bytes(3_000_000))
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path))
    assert caches()["cache engines"].finding == f"{tmp_path}, 3 MB"
    assert [check.advice for check in caches().values()] == ["", "", ""]
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "kept" / "inside"))
    assert "name another folder in FASTMED_CACHE" in caches()["cache training"].advice


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"fastmed {fastmed.__version__}\n"


@pytest.mark.parametrize("command", ["infer", "index", "evaluate", "export", "phantom", "doctor"])
def test_help_of_each_command_names_the_exit_status(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "exit status: 0 all well" in capsys.readouterr().out


def _lines_of_the_guides():
    """Each line of README.md and docs/ that calls the command, its continuations joined."""
    for guide in (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))):
        text = guide.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"^    (fastmed .*)$", text, re.MULTILINE):
            yield line.partition(" #")[0]


def test_every_flag_that_the_guides_use_is_one_of_its_command(capsys):
    lines, helps = list(_lines_of_the_guides()), {}
    assert len(lines) > 40
    for line in lines:
        words = line.split()[1 : 3 if " prepare " in line else 2]
        if tuple(words) not in helps:
            with pytest.raises(SystemExit) as stopped:
                main([*words, "--help"])
            assert stopped.value.code == 0, line
            helps[tuple(words)] = re.findall(r"--[a-z0-9-]+", capsys.readouterr().out)
        assert set(re.findall(r"(?<= )--[a-z0-9-]+", line)) <= set(helps[tuple(words)]), line


def test_an_error_is_one_line_whatever_it_says(monkeypatch, capsys):
    def fail(*arguments, **options):
        raise FastmedError("first\nsecond \x1b[31m third")

    monkeypatch.setattr("fastmed.readers.index.iter_index", fail)
    assert main(["index", "x"]) == 1
    assert capsys.readouterr().err == "fastmed: first second ?[31m third\n"


def test_phantom_writes_scans_with_truth(tmp_path, capsys, monkeypatch):
    from fastmed import phantom_scans
    from fastmed.geometry import Geometry

    small = Geometry.from_spacing((8, 32, 36), (12.0, 12.0, 12.0), (-200.0, -190.0, -110.0))
    monkeypatch.setattr(
        phantom_scans, "_uprights", lambda count, seed: [phantom_scans._Scan("s", small, seed)]
    )
    assert main(["phantom", "abdomen", "--output", str(tmp_path / "p")]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "p" / "scans"), str(tmp_path / "p" / "truth"),
    ]  # fmt: skip
    (volume,) = fastmed.read(tmp_path / "p" / "scans")
    assert np.array_equal(volume.geometry.shape_zyx, (8, 32, 36))
    assert main(["phantom", "abdomen", "--output", str(tmp_path / "p")]) == 2
    assert main(["phantom", "head", "--output", str(tmp_path / "q")]) == 2
    assert main(["phantom", "abdomen", "--output", str(tmp_path / "q"), "--count", "0"]) == 2
    assert not (tmp_path / "q").exists()
