"""fastmed.index: where it looks, what it leaves out, and the names that it gives."""

import json
import os
import re
import subprocess

import numpy as np
import pydicom
import pytest
import scans as make

from fastmed.errors import SeriesError, UsageError
from fastmed.readers.index import index, read


def only(entries):
    (entry,) = entries
    return entry


@pytest.mark.parametrize("uid", ["..", ".", "../../etc", "1.2/3", "1" * 65, "x"])
def test_no_series_uid_can_lead_out_of_a_folder(uid, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
        patch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
        make.edit_all(make.series(tmp_path), SeriesInstanceUID=uid)
    assert re.fullmatch("[0-9a-f]{64}", only(index(tmp_path)).name)


def test_paths_may_be_files_folders_or_several(tmp_path):
    make.series(tmp_path / "a", make.volume(seed=1))
    make.series(tmp_path / "b", make.volume(seed=2))
    entries = index([tmp_path / "a", str(tmp_path / "b"), tmp_path / "a"])
    assert [entry.source for entry in entries] == ["a", "b"]
    assert only(index(tmp_path / "a" / "0001.dcm")).reason.startswith("a series with one slice")


def test_a_missing_path_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        index(tmp_path / "absent")


def test_an_empty_folder_gives_no_entry_and_reading_it_says_so(tmp_path):
    assert index(tmp_path) == []
    with pytest.raises(SeriesError, match="no CT found, it is empty"):
        read(tmp_path)


def test_reading_a_folder_without_ct_says_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SeriesError, match=r"no CT found \(notes.txt: 1 file that is no scan"):
        read(tmp_path)


def test_links_are_followed_once_and_broken_ones_named(tmp_path):
    make.series(tmp_path / "elsewhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "in" / "pipe")
    entries = {entry.verdict: entry for entry in index(tmp_path / "in")}
    assert set(entries) == {"ok", "failed"}
    assert entries["ok"].files == 9
    assert entries["failed"].reason == "a link to a file that is absent"


def test_folders_nested_a_thousand_deep_are_searched(tmp_path):
    scan = make.series(tmp_path / "scan")
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        os.link(scan[0], "leaf")
    finally:
        os.chdir(here)
    scan[0].unlink()
    entries = index(tmp_path)
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # Python's own rmtree recurses
    assert [(entry.verdict, entry.files) for entry in entries] == [("ok", 9)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path):
    make.series(tmp_path / "scan")[0].chmod(0)
    assert any("Permission denied" in entry.reason for entry in index(tmp_path))


def test_output_folders_are_left_out(tmp_path):
    make.series(tmp_path / "scan")
    make.series(tmp_path / "out" / "series", make.volume(seed=1))
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"fastmed": "0.1.0"}))
    make.series(tmp_path / "more", make.volume(seed=2))
    assert [entry.source for entry in index(tmp_path, exclude=[tmp_path / "more"])] == ["scan"]
    assert [entry.source for entry in index(tmp_path)] == ["more", "scan"]
    assert len(index(tmp_path / "out")) == 2  # named itself, it is searched


def test_results_of_a_large_run_are_left_out_however_long_its_manifest_is(tmp_path):
    make.series(tmp_path / "scan")
    make.series(tmp_path / "out" / "series", make.volume(seed=1))
    manifest = {"program": "fastmed", "series": [{"name": "1.2.3", "reason": "x" * (2 << 20)}]}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest, indent=2))
    assert [entry.source for entry in index(tmp_path)] == ["scan"]


def test_a_folder_with_a_manifest_of_another_program_is_searched(tmp_path):
    make.series(tmp_path / "out" / "series")
    manifest = {"program": "another", "of": {"program": "fastmed"}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert len(index(tmp_path)) == 2


def test_the_index_does_not_depend_on_names_of_files(tmp_path):
    make.series(tmp_path / "a", make.volume(seed=5))
    before = only(index(tmp_path))
    (tmp_path / "a").rename(tmp_path / "z")
    after = only(index(tmp_path))
    assert (before.name, before.reason) == (after.name, after.reason)


def test_file_names_become_flat_and_stay_unique(tmp_path):
    import nibabel

    (tmp_path / "a").mkdir()
    image = nibabel.Nifti1Image(np.full((4, 4, 4), -900, np.int16), np.eye(4))
    image.to_filename(tmp_path / "a" / "b.nii.gz")
    image.to_filename(tmp_path / "a__b.nii.gz")
    assert sorted(e.name for e in index(tmp_path)) == ["a__b.nii.gz", "a__b.nii.gz-2"]
