"""A result file is complete or absent, and a disk that refuses is named."""

import errno
import os
import resource
from collections import Counter

import pytest

from fastmed.errors import FastmedError
from fastmed.inference.manifest import write_manifest
from fastmed.writers.atomic import is_full, write_atomically
from fastmed.writers.coco import write_coco
from fastmed.writers.luna import write_luna_marks
from fastmed.writers.nifti import write_labels
from fastmed.writers.report import write_report
from fastmed.writers.tables import write_findings_csv, write_findings_json

TABLES = {
    "manifest.json": lambda path: write_manifest({"program": "fastmed"}, (), path),
    "findings.csv": lambda path: write_findings_csv([], path),
    "marks.csv": lambda path: write_luna_marks([], path),
    "coco.json": lambda path: write_coco([], [], path, description=""),
    "report.html": lambda path: write_report([], {}, path, counts=Counter()),
}


def test_the_file_appears_complete_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "series" / "1.2.3" / "x.bin"
    write_atomically(path, [b"one", b"two"])
    assert path.read_bytes() == b"onetwo"
    assert os.listdir(path.parent) == ["x.bin"]


def test_nothing_shows_under_the_name_before_the_end(tmp_path):
    path = tmp_path / "x.bin"

    def pieces():
        yield b"half"
        assert not path.exists()
        yield b"half"

    write_atomically(path, pieces())
    assert path.read_bytes() == b"halfhalf"


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_a_run_is_on_the_disk_before_it_has_its_name(table, tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.fstat(file).st_size), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("named"), replace(*paths)))
    TABLES[table](tmp_path / "table")
    assert done == [(tmp_path / "table").stat().st_size, "named"]


def test_a_file_that_another_step_makes_safe_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", None)
    write_atomically(tmp_path / "x.bin", [b"x"])


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failure_midway_leaves_the_old_file_and_no_other(failure, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def pieces():
        yield b"new"
        raise failure

    with pytest.raises(failure):
        write_atomically(path, pieces())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_disk_that_is_full_midway_is_named_and_left_clean(make_findings, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(FastmedError, match=r"labels\.nii\.gz: cannot be written, .*; \w+"):
            write_labels(make_findings(), tmp_path / "labels.nii.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.EROFS, "read-only file system; name an --output on a disk"),
        (errno.EACCES, "permission denied; name an --output folder"),
    ],
)
def test_the_error_says_what_to_do(code, message, make_findings, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    path = tmp_path / "findings.json"
    with pytest.raises(FastmedError) as caught:
        write_findings_json(make_findings(), path)
    assert str(caught.value).startswith(f"{path}: cannot be written, {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder_is_named(make_findings, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(FastmedError, match="permission denied"):
        write_findings_json(make_findings(), folder / "findings.json")


def test_a_file_in_the_folders_place_is_named(make_findings, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FastmedError, match=r"out/findings\.json: cannot be written"):
        write_findings_json(make_findings(), tmp_path / "out" / "findings.json")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.EIO, False)],
)
def test_a_full_disk_and_a_spent_quota_are_told_from_other_errors(number, expected):
    cause = OSError(number, "as the system says it")
    outer = FastmedError("cannot be written")
    outer.__cause__ = cause
    assert [is_full(cause), is_full(outer)] == [expected, expected]
