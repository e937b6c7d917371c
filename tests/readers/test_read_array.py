"""NumPy files: HU without a geometry of their own, which a JSON beside them may give."""

import json

import numpy as np
import pytest

from fastmed.readers.index import index, read, read_series

HU = np.random.default_rng(0).integers(-1000, 900, (4, 5, 6)).astype(np.int16)
LABELS = np.zeros((4, 5, 6), np.uint8)
LABELS[1:3] = 2


def the_entry(folder, **options):
    (entry,) = [e for e in index(folder, **options) if e.kind != "not an image"]
    return entry


STORED = {
    "int16": HU,
    "float32": HU.astype(np.float32),
    "float64 of fractions": HU / 3,
    "int64": HU.astype(np.int64),
    "big-endian": HU.astype(">i2"),
    "Fortran order": np.asfortranarray(HU),
    "one slice": HU[0],
}


@pytest.mark.parametrize("voxels", STORED.values(), ids=STORED)
def test_voxels_come_as_hu(tmp_path, voxels):
    np.save(tmp_path / "a.npy", voxels)
    (volume,) = read(tmp_path)
    assert volume.voxels.shape == (voxels.shape if voxels.ndim == 3 else (1, *voxels.shape))
    assert (volume.slope, volume.intercept) == (1, 0)
    np.testing.assert_array_equal(volume.voxels.reshape(voxels.shape), voxels)
    assert volume.voxels.dtype.isnative


def test_without_a_json_the_spacing_is_unknown_and_said_to_be(tmp_path):
    np.save(tmp_path / "a.npy", HU)
    entry = the_entry(tmp_path)
    assert (entry.verdict, entry.spacing_is_known, entry.spacing_mm_zyx) == ("ok", False, None)
    volume = read_series(entry)
    assert not volume.spacing_is_known
    assert any("the file names no spacing" in warning for warning in volume.warnings)


def test_a_json_beside_it_gives_the_spacing(tmp_path):
    np.save(tmp_path / "a.npy", HU)
    (tmp_path / "a.json").write_text(json.dumps({"spacing_mm_zyx": [2.5, 0.7, 0.8], "by": "me"}))
    (volume,) = read(tmp_path)
    assert volume.spacing_is_known
    assert volume.geometry.spacing_mm_zyx == pytest.approx((2.5, 0.7, 0.8))
    assert not any("names no spacing" in warning for warning in volume.warnings)


def test_a_json_of_something_else_says_nothing(tmp_path):
    np.save(tmp_path / "a.npy", HU)
    (tmp_path / "a.json").write_text('{"patient": "p7"}')
    assert not the_entry(tmp_path).spacing_is_known


WRONG = {
    "no JSON": ("{", "a.json beside it is no JSON"),
    "two numbers": ('{"spacing_mm_zyx": [1, 2]}', "expected three positive numbers"),
    "zero": ('{"spacing_mm_zyx": [0, 1, 1]}', "expected three positive numbers"),
    "text": ('{"spacing_mm_zyx": "1 mm"}', "expected three positive numbers"),
    "true": ('{"spacing_mm_zyx": [true, 1, 1]}', "expected three positive numbers"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_json_is_refused(tmp_path, text, words):
    np.save(tmp_path / "a.npy", HU)
    (tmp_path / "a.json").write_text(text)
    entry = the_entry(tmp_path)
    assert entry.verdict == "refused"
    assert words in entry.reason


def test_what_is_not_hu_is_told_apart(tmp_path):
    np.save(tmp_path / "labels.npy", LABELS)
    np.save(tmp_path / "scaled.npy", (HU + 1000) / 1900)
    labels, scaled = index(tmp_path)
    assert (labels.kind, labels.verdict) == ("label map", "skipped")
    assert (scaled.kind, scaled.verdict) == ("not in hu", "refused")


NO_SCANS = {
    "one axis": np.arange(4.0),
    "four axes": np.zeros((1, 1, 2, 3)),
    "texts": np.array([["a", "b"]]),
    "booleans": LABELS > 0,
    "objects": np.array([[{}, {}]], dtype=object),
    "nothing": np.zeros((0, 3)),
}


@pytest.mark.parametrize("array", NO_SCANS.values(), ids=NO_SCANS)
@pytest.mark.parametrize("modality", ["ct", "grey"])
def test_arrays_of_something_else_are_no_scans(tmp_path, array, modality):
    np.save(tmp_path / "a.npy", array)
    (entry,) = index(tmp_path, modality=modality)
    assert (entry.kind, entry.verdict) == ("not an image", "skipped")


def test_a_file_cut_short_is_named(tmp_path):
    np.save(tmp_path / "a.npy", HU)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-20])
    entry = the_entry(tmp_path)
    assert (entry.kind, entry.verdict) == ("damaged", "failed")
    (tmp_path / "a.npy").write_bytes(content[:20])
    assert the_entry(tmp_path).verdict == "failed"


def test_what_is_not_a_number_becomes_air_with_a_warning(tmp_path):
    voxels = HU.astype(np.float32)
    voxels[1, 2, 3] = np.nan
    np.save(tmp_path / "a.npy", voxels)
    (volume,) = read(tmp_path)
    assert volume.voxels[1, 2, 3] == -1024
    assert "1 voxels are not a number: taken as air" in volume.warnings


def test_asked_for_grey_images_an_array_of_two_axes_is_one(tmp_path):
    np.save(tmp_path / "a.npy", LABELS[1] * 100)
    np.save(tmp_path / "b.npy", HU)
    image, volume = index(tmp_path, modality="grey")
    assert (image.kind, image.verdict) == ("grey image", "ok")
    assert np.array_equal(read_series(image).voxels, LABELS[1:2] * 100)
    assert (volume.verdict, "one grey image [rows, columns]" in volume.reason) == ("refused", True)
