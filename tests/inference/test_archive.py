"""An archive run: a scan is either done or named with the reason; a file is complete or absent."""

import csv
import json
import os
import shutil

import nibabel
import numpy as np
import pytest
import scans as make
from archive_results import SCAN_FILES, TABLES, files_below, verdicts

import fastmed
from fastmed.errors import FastmedError, UsageError
from fastmed.readers.index import index


def test_every_scan_is_done_or_named(archive, run):
    result = run(archive)
    assert verdicts(result) == {
        "a": "done", "a/localizer.dcm": "skipped", "b": "done", "missing": "refused",
        "notes.txt": "skipped", "short": "failed",
    }  # fmt: skip
    assert result.exit_status == 1
    reasons = {row.source: row.reason for row in result.rows}
    assert "2 slices missing" in reasons["missing"]
    assert "--lenient" in reasons["missing"]
    assert "0004.dcm" in reasons["short"]
    done = [row for row in result.rows if row.verdict == "done"]
    expected = {f"series/{row.name}/{file}" for row in done for file in SCAN_FILES}
    assert files_below(result.output) == expected | TABLES
    for row in done:
        assert set(result.series_seconds[row.name]) == {
            "read", "resample", "network", "stitch", "decode", "write",
        }  # fmt: skip


def test_every_table_tells_the_same(archive, run):
    result = run(archive)
    with open(result.output / "findings.csv") as file:
        rows = list(csv.DictReader(file))
    manifest = json.loads((result.output / "manifest.json").read_text())
    report = (result.output / "report.html").read_text()
    assert {entry["source"]: entry["verdict"] for entry in manifest["series"]} == verdicts(result)
    assert manifest["engine"] == "torch"
    assert manifest["settings"]["strict"] is True
    assert set(manifest["model"]["sha256"]) >= {"bundle.toml", "weights.safetensors"}
    for row in result.rows:
        assert row.source in report
        if row.verdict == "done":
            figures = json.loads(
                (result.output / "series" / row.name / "findings.json").read_text()
            )
            (mask,) = figures["masks"]
            image = nibabel.load(result.output / "series" / row.name / "labels.nii.gz")
            labels = np.asarray(image.dataobj)
            assert mask["voxels"] == (labels == 1).sum()
            assert mask["volume_ml"] == pytest.approx(
                mask["voxels"] * abs(np.linalg.det(image.affine[:3, :3])) / 1000
            )
            (in_table,) = [r for r in rows if r["series"] == row.name]
            assert float(in_table["volume_ml"]) == mask["volume_ml"]
    assert len(rows) == 2


def test_lenient_does_the_doubtful_scan_and_records_it(archive, run):
    result = run(archive / "missing", strict=False)
    (row,) = result.rows
    assert (row.verdict, result.exit_status) == ("done", 0)
    folder = result.output / "series" / row.name
    assert {p.name for p in folder.iterdir()} == SCAN_FILES | {"labels_slices.npz"}
    assert any("2 slices missing" in w for w in row.findings["warnings"])
    assert nibabel.load(folder / "labels.nii.gz").shape == (14, 12, 9)
    with np.load(folder / "labels_slices.npz") as slices:
        assert {slices[name].shape for name in slices} == {(12, 14)}
        assert len(slices.files) == 7
    assert json.loads((result.output / "manifest.json").read_text())["settings"]["strict"] is False


def test_the_same_scan_gives_the_same_bytes(archive, run, tmp_path):
    one, two = (run(archive / "b", tmp_path / name) for name in ("one", "two"))
    names = [n for n in files_below(one.output) if n.startswith("series") or n.endswith(".csv")]
    assert len(names) == 5
    for name in names:
        assert (one.output / name).read_bytes() == (two.output / name).read_bytes(), name


def test_a_result_is_safe_on_the_disk_before_it_has_its_name(archive, run, monkeypatch):
    safe, unsafe, named = set(), [], []
    sync, replace = os.fsync, os.replace

    def syncing(file):
        safe.add(os.fstat(file).st_ino)
        sync(file)

    def naming(source, target):
        if str(source).endswith(".partial"):
            files = [path for path in source.rglob("*") if path.is_file()]
            unsafe.extend(path.name for path in files if path.stat().st_ino not in safe)
            named.extend(path.name for path in files)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", naming)
    run(archive / "b")
    assert (unsafe, set(named)) == ([], SCAN_FILES)


def test_an_output_inside_the_input_is_no_input_of_the_next_run(archive, run, tmp_path):
    inside = tmp_path / "scans"
    shutil.copytree(archive / "a", inside / "a")
    first = run(inside, inside / "results")
    again = run(inside, inside / "results")
    elsewhere = run(inside, tmp_path / "other")
    assert verdicts(first) == verdicts(again) == verdicts(elsewhere)


def test_an_output_that_is_the_input_is_a_wrong_usage(archive, run):
    with pytest.raises(UsageError, match="it is the input itself"):
        run(archive / "a", archive / "a")


def test_a_rerun_replaces_what_is_there(archive, run):
    first = run(archive / "a")
    (row,) = [row for row in first.rows if row.verdict == "done"]
    folder = first.output / "series" / row.name
    (folder / "labels.nii.gz").write_bytes(b"old")
    (folder / "of-an-older-version.txt").write_text("old")
    run(archive / "a")
    assert {p.name for p in folder.iterdir()} == SCAN_FILES
    assert (folder / "labels.nii.gz").stat().st_size > 3
    assert [p.name for p in folder.parent.iterdir()] == [row.name]


def test_a_run_clears_what_a_killed_one_left(archive, run, tmp_path):
    series = tmp_path / "out" / "series"
    name = next(entry.name for entry in index(archive / "b"))
    for folder in (".1.2.3.0a.partial", ".4.5.6.0b.old", "4.5.6", ".7.8.9.0c.old"):
        (series / folder).mkdir(parents=True)
        (series / folder / "labels.nii.gz").write_text(folder)
    (tmp_path / "out" / ".report.html.0123456789ab.tmp").write_text("half")
    run(archive / "b")
    assert sorted(p.name for p in series.iterdir()) == sorted([name, "4.5.6", "7.8.9"])
    assert (series / "4.5.6" / "labels.nii.gz").read_text() == "4.5.6"
    assert (series / "7.8.9" / "labels.nii.gz").read_text() == ".7.8.9.0c.old"
    assert not list((tmp_path / "out").glob(".*"))


WRITTEN = {
    ("nifti",): ({"labels.nii.gz"}, set()),
    ("json",): ({"findings.json"}, set()),
    ("csv",): (set(), {"findings.csv"}),
    ("png",): ({"preview.png"}, set()),
    ("report",): ({"preview.png", "thumb.jpg"}, {"report.html"}),
    ("nifti", "csv"): ({"labels.nii.gz"}, {"findings.csv"}),
}


@pytest.mark.parametrize(("formats", "files"), WRITTEN.items(), ids=str)
def test_only_what_was_asked_for_is_written(archive, run, formats, files):
    result = run(archive / "b", write=formats)
    (row,) = result.rows
    per_scan = {f"series/{row.name}/{file}" for file in files[0]}
    always = {"manifest.json", "journal.sqlite"}
    assert files_below(result.output) == per_scan | files[1] | always


def test_series_picks_by_name(archive, run, tmp_path):
    wanted = next(entry.name for entry in index(archive / "b"))
    result = run(archive, series=[wanted])
    assert verdicts(result) == {"b": "done"}
    with pytest.raises(UsageError, match=r"--series 1\.2\.3: not among the series found"):
        run(archive, tmp_path / "other", series=["1.2.3", wanted])
    assert not (tmp_path / "other").exists()


def test_a_series_uid_stands_for_all_volumes_split_from_it(run, tmp_path):
    for part, seed in (("x", 1), ("y", 2)):
        spacing = (2.0, 0.75, 0.75) if part == "x" else (2.0, 0.5, 0.5)
        scan = make.volume(seed=seed, spacing_mm_zyx=spacing)
        make.series(tmp_path / "scan" / part, scan, series_uid="1.2.3")
        for path in (tmp_path / "scan" / part).iterdir():
            make.edit(path, StudyInstanceUID="1.2", FrameOfReferenceUID="1.2.9")
    entries = index(tmp_path / "scan", strict=False)
    assert sorted(e.name for e in entries if e.verdict == "ok") == ["1.2.3", "1.2.3-2"]
    result = run(tmp_path / "scan", series=["1.2.3"], strict=False)
    assert sorted(row.name for row in result.rows) == ["1.2.3", "1.2.3-2"]


def test_dry_run_writes_nothing_and_names_everything(archive, run, tmp_path, capsys):
    result = run(archive, dry_run=True)
    assert result.exit_status == 1
    assert not (tmp_path / "out").exists()
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("a", "b", "missing", "notes.txt", "short"))


def test_results_go_beside_the_caller_under_the_inputs_name(
    archive, tiny_bundle, tmp_path, monkeypatch
):
    shutil.copytree(archive / "b", tmp_path / "my scans")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fastmed.infer("../my scans", model=tiny_bundle, engine="torch", device="cpu", quiet=True)
    results = tmp_path / "here" / "fastmed-results" / "my scans"
    assert (results / "report.html").is_file()
    (tmp_path / "a link").symlink_to(tmp_path / "my scans")
    fastmed.infer("../a link", model=tiny_bundle, engine="torch", device="cpu", quiet=True)
    assert (tmp_path / "here" / "fastmed-results" / "a link" / "report.html").is_file()


def test_the_demo_bundle_says_loudly_that_it_runs(archive, run, monkeypatch, capsys, tiny_bundle):
    monkeypatch.setattr("fastmed.bundle.demo_path", lambda: tiny_bundle)
    run(archive / "b", model=None, quiet=False)
    assert "No --model named: the DEMO bundle tiny runs." in capsys.readouterr().err


def test_quiet_is_silent_where_all_is_well(archive, run, capsys):
    run(archive / "b")
    assert capsys.readouterr() == ("", "")


def test_quiet_still_names_each_scan_that_is_not_done(archive, run, capsys):
    run(archive)
    out, err = capsys.readouterr()
    assert out == ""
    refused, failed = err.splitlines()
    assert refused.startswith("fastmed: refused: missing: 2 slices missing")
    assert failed.startswith("fastmed: failed: short")
    assert failed.count("short") == failed.count("short/")


def test_without_a_terminal_the_table_has_a_line_for_each_scan(archive, run, capsys):
    run(archive, quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert any(line.startswith("Engine torch on cpu") for line in lines)
    for source in ("a", "b"):
        assert any(line.split()[:2] == [source, "done"] for line in lines)
    assert "2 done, 1 refused, 1 failed, 2 skipped" in lines
    assert lines[-1].startswith("Results are in ")


HOPELESS = {
    "empty": ([], "no files here"),
    "no CT": (["a.txt", "b.py"], "no CT series"),
}


@pytest.mark.parametrize(("files", "words"), HOPELESS.values(), ids=HOPELESS.keys())
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_folder_without_ct_is_an_error(run, tmp_path, files, words, dry_run):
    (tmp_path / "in").mkdir()
    for file in files:
        (tmp_path / "in" / file).write_text("no scan")
    with pytest.raises(FastmedError, match=words) as caught:
        run(tmp_path / "in", dry_run=dry_run)
    assert str(tmp_path / "in") in str(caught.value)
    assert not (tmp_path / "out").exists()


WRONG_COUNTS = {
    "--workers -1": {"workers": -1},
    "--attempts 0": {"attempts": 0},
    "--hang 0.5": {"hang_seconds": 0.5},
    "--hang nan": {"hang_seconds": float("nan")},
    "--memory 0": {"memory_gb": 0},
}


@pytest.mark.parametrize(("words", "options"), WRONG_COUNTS.items(), ids=WRONG_COUNTS)
def test_a_count_that_is_none_is_a_wrong_usage(archive, run, words, options):
    with pytest.raises(UsageError, match=f"{words}: expected at least"):
        run(archive, **options)


@pytest.mark.parametrize("write", [["nifti", "docx"], "json", []], ids=str)
def test_an_unknown_format_is_a_wrong_usage(archive, run, write):
    with pytest.raises(UsageError, match="expected some of nifti,json,csv,png,report"):
        run(archive, write=write)


def test_text_from_files_cannot_steer_the_terminal(archive, run, tmp_path, capsys):
    nasty = tmp_path / "in" / "\x1b[31mred\x1b[0m [bold]"
    shutil.copytree(archive / "b", nasty)
    (tmp_path / "in" / "c.txt").write_text("a second thing, so that the folder is named")
    result = run(tmp_path / "in", quiet=False)
    run(tmp_path / "in", dry_run=True)
    out, err = capsys.readouterr()
    assert "done" in verdicts(result).values()
    assert "\x1b" not in out + err
    assert "[bold]" in out
    assert "[bold]" in err


def test_names_that_are_no_text_are_shown_and_written(archive, run, tmp_path, capsys):
    nasty = (tmp_path / "in").as_posix().encode() + b"/\xff\xfe"
    shutil.copytree(str(archive / "b").encode(), nasty)
    (tmp_path / "in" / "c.txt").write_text("a second thing, so that the folder is named")
    result = run(tmp_path / "in", quiet=False)
    assert "done" in verdicts(result).values()
    run(tmp_path / "in", dry_run=True)
    assert capsys.readouterr().out.isascii()
