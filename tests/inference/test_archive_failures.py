"""An archive run that meets errors: a scan fails alone and by name, and nothing is half written."""

import errno
import json

import pytest
from archive_results import SCAN_FILES, TABLES, files_below, verdicts

from fastmed.errors import FastmedError, SeriesError
from fastmed.inference import pipeline, series_folder

WRITERS = ("write_labels", "write_findings_json", "write_preview")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "error",
    [FastmedError("disk full; free some space"), RuntimeError("a bug"), MemoryError("no room")],
    ids=lambda e: type(e).__name__,
)
def test_a_scan_that_cannot_be_written_leaves_nothing_half_done(
    archive, run, monkeypatch, writer, error
):
    real, calls = getattr(series_folder, writer), []

    def fail_once(*arguments, **options):
        calls.append(writer)
        if len(calls) == 1:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(series_folder, writer, fail_once)
    result = run([archive / "a", archive / "b"], attempts=1)
    done = [row for row in result.rows if row.verdict == "done"]
    (failed,) = [row for row in result.rows if row.verdict == "failed"]
    assert str(error) in failed.reason
    assert len(done) == 1
    assert [p.name for p in (result.output / "series").iterdir()] == [done[0].name]
    assert files_below(result.output) >= TABLES


def test_a_failed_rerun_keeps_the_finished_scan(archive, run, monkeypatch):
    first = run(archive / "b")
    (row,) = first.rows
    before = (first.output / "series" / row.name / "labels.nii.gz").read_bytes()

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(series_folder, "write_preview", fail)
    with pytest.raises(FastmedError, match="No space left on device; 1 scan is left"):
        run(archive / "b", fresh=True)
    assert (first.output / "series" / row.name / "labels.nii.gz").read_bytes() == before


def test_a_rename_that_fails_brings_the_old_scan_back(archive, run, monkeypatch):
    first = run(archive / "b")
    (row,) = first.rows
    real = series_folder.os.replace

    def fail_in(source, target):
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(series_folder.os, "replace", fail_in)
    assert verdicts(run(archive / "b", fresh=True)) == {"b": "failed"}
    assert {p.name for p in (first.output / "series" / row.name).iterdir()} == SCAN_FILES
    assert [p.name for p in (first.output / "series").iterdir()] == [row.name]


def test_a_full_disk_names_the_file_and_what_to_do(archive, run, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastmed.writers.atomic.os.replace", full)
    with pytest.raises(FastmedError, match=r"no space left on device; free some space"):
        run(archive / "b")
    monkeypatch.undo()


def test_an_output_that_cannot_be_written_stops_before_the_first_scan(archive, run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FastmedError, match=r"cannot be written.*--output") as caught:
            run(archive / "b", output)
        assert str(output) in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_unknown_error_in_one_scan_stops_no_other(archive, run, monkeypatch):
    real = pipeline.read_series

    def fail_on_a(entry, **options):
        if entry.source == "a":
            raise ZeroDivisionError("a bug")
        return real(entry, **options)

    monkeypatch.setattr(pipeline, "read_series", fail_on_a)
    result = run(archive, attempts=1)
    assert verdicts(result)["a"] == "failed"
    assert verdicts(result)["b"] == "done"
    (row,) = [row for row in result.rows if row.source == "a"]
    assert row.reason == "unexpected ZeroDivisionError: a bug"


def test_ctrl_c_keeps_finished_scans_and_names_the_others(archive, run, monkeypatch, tmp_path):
    real, written = series_folder.write_preview, []

    def interrupted(volume, findings, path, **options):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        real(volume, findings, path, **options)

    monkeypatch.setattr(series_folder, "write_preview", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(archive)
    output = tmp_path / "out"
    manifest = json.loads((output / "manifest.json").read_text())
    outcome = {entry["source"]: entry for entry in manifest["series"]}
    assert {source: entry["verdict"] for source, entry in outcome.items()} == {
        "a": "done", "a/localizer.dcm": "skipped", "b": "failed", "missing": "refused",
        "notes.txt": "skipped", "short": "failed",
    }  # fmt: skip
    assert "the run was stopped" in outcome["b"]["reason"]
    done = outcome["a"]["name"]
    assert files_below(output) == {f"series/{done}/{file}" for file in SCAN_FILES} | TABLES


def test_an_error_of_the_model_names_the_scan(archive, run, monkeypatch):
    def not_finite(self, *_, **__):
        raise SeriesError("the network returned logits that are not finite")

    monkeypatch.setattr("fastmed.inference.case.Model.look", not_finite)
    result = run(archive / "b")
    assert verdicts(result) == {"b": "failed"}
    assert "not finite" in result.rows[0].reason
