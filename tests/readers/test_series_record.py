"""An entry of an index, written as JSON and read back, stands for the same scan."""

import json
from dataclasses import fields, replace

import nibabel
import numpy as np
import pytest
import scans as make
from PIL import Image

from fastmed.errors import SeriesError
from fastmed.readers import reread
from fastmed.readers.dicom_evidence import read_evidence
from fastmed.readers.index import index, read_series
from fastmed.readers.judge import judge
from fastmed.readers.series_json import series_dict, series_from_dict
from fastmed.readers.walk import Found, walk


def recorded(entry):
    """The entry as a record gives it back."""
    return series_from_dict(json.loads(json.dumps(series_dict(entry))))


def one_ok(path, **options):
    (entry,) = [entry for entry in index(path, **options) if entry.verdict == "ok"]
    return entry


def nifti(path):
    image = nibabel.Nifti1Image(np.full((4, 5, 6), -900, np.int16), np.diag([2, 2, 3, 1.0]))
    image.to_filename(path)


def odd_archive(folder):
    make.series(folder / "tilted", make.volume(tilt_degrees=12.3, seed=1))
    make.edit(make.series(folder / "mixed", make.volume(seed=2))[0], PixelSpacing=[0.8, 0.8])
    nifti(folder / "plain.nii.gz")
    np.save(folder / "array.npy", np.full((3, 4, 5), -900, np.int16))
    (folder / "damaged.dcm").write_bytes(b"")
    (folder / "notes.txt").write_text("hello")
    (folder / "broken\udcff").symlink_to(folder / "absent")


def test_a_record_keeps_every_field_but_what_the_files_give_again(tmp_path):
    odd_archive(tmp_path)
    for strict in (True, False):
        for entry in index(tmp_path, strict=strict):
            back = recorded(entry)
            for field in fields(entry):
                if field.name != "stored":
                    assert getattr(back, field.name) == getattr(entry, field.name), field.name
            assert back.stored is None


def test_the_members_are_the_files_behind_an_entry(tmp_path):
    odd_archive(tmp_path)
    there = {found.place: found for found in walk(tmp_path)}
    for entry in index(tmp_path, strict=False):
        if entry.kind != "not an image":
            assert len(entry.members) == entry.files
            assert all(there[member.place] == member for member in entry.members)


@pytest.mark.parametrize("strict", [True, False])
def test_a_recorded_entry_reads_as_a_fresh_one(tmp_path, strict):
    odd_archive(tmp_path)
    readable = [entry for entry in index(tmp_path, strict=strict) if entry.verdict == "ok"]
    assert len(readable) == (3 if strict else 4)
    for entry in readable:
        fresh, again = read_series(entry), read_series(recorded(entry))
        np.testing.assert_array_equal(again.voxels, fresh.voxels)
        assert again.geometry == fresh.geometry
        assert (again.name, again.warnings) == (fresh.name, fresh.warnings)
        assert again.slices == fresh.slices


def test_a_recorded_grey_image_reads_as_a_fresh_one(tmp_path):
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "a.png")
    entry = one_ok(tmp_path, modality="grey")
    np.testing.assert_array_equal(read_series(recorded(entry)).voxels, read_series(entry).voxels)


def test_evidence_of_a_recorded_entry_is_that_of_a_fresh_one(tmp_path):
    make.series(tmp_path)
    entry = one_ok(tmp_path)
    assert read_evidence(recorded(entry), []) == read_evidence(entry, [])


CHANGES = {
    "a slice was moved": lambda files: make.move(files[0], by_lps_mm=(0, 0, -2)),
    "a slice is gone": lambda files: files[4].unlink(),
    "a slice is damaged": lambda files: files[4].write_bytes(b"\0" * 128 + b"DICM"),
    "the rescale is gone": lambda files: make.edit_all(
        files, RescaleSlope=None, RescaleIntercept=None, RescaleType=None
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_changed_since_they_were_judged_are_not_read(tmp_path, change):
    files = make.series(tmp_path)
    entry = recorded(one_ok(tmp_path))
    CHANGES[change](files)
    with pytest.raises(SeriesError, match="changed since it was indexed"):
        read_series(entry)


def test_files_are_judged_alike_in_any_order(tmp_path):
    odd_archive(tmp_path)
    founds = list(walk(tmp_path))
    expected = [series_dict(entry) for entry in judge(founds, strict=False)]
    for seed in range(5):
        shuffled = [founds[k] for k in np.random.default_rng(seed).permutation(len(founds))]
        assert [series_dict(entry) for entry in judge(shuffled, strict=False)] == expected


def test_a_file_that_vanishes_between_two_looks_fails_its_series_alone(tmp_path):
    make.series(tmp_path / "a", make.volume(seed=1))
    files = make.series(tmp_path / "b", make.volume(seed=2))
    founds = list(walk(tmp_path))
    gone = replace(founds[-1], path=str(tmp_path / "gone"))
    assert isinstance(gone, Found)
    files[-1].unlink()
    verdicts = {entry.source: entry.verdict for entry in judge([*founds[:-1], gone])}
    assert verdicts["a"] == "ok"
    assert "failed" in verdicts.values()


@pytest.mark.parametrize(
    ("name", "content", "condition"),
    [
        ("a.dcm", b"", "truncated"),
        ("a.dcm", b"hello", "not dicom"),
        ("a.dcm", b"\0" * 128 + b"DICM", "damaged"),
        ("a.dcm", b"-----BEGIN CMS-----\n", "encrypted"),
        ("a.txt", b"hello", "not dicom"),
    ],
)
def test_what_is_no_scan_has_a_condition(tmp_path, name, content, condition):
    (tmp_path / name).write_bytes(content)
    (entry,) = index(tmp_path)
    assert entry.conditions == (condition,)


def test_files_of_a_lenient_entry_are_looked_at_once_to_read_it_again(tmp_path, monkeypatch):
    make.series(tmp_path)[4].unlink()
    (entry,) = index(tmp_path, strict=False)
    looks = []
    facts_of = reread.facts_of
    monkeypatch.setattr(reread, "facts_of", lambda *a: looks.append(a) or facts_of(*a))
    assert read_series(recorded(entry)).voxels.shape == entry.shape_zyx
    assert len(looks) == 1
