"""Survey: every bad case is named before training starts, and the data are described."""

from __future__ import annotations

from pathlib import Path

import data_sets
import numpy as np
import pytest
import scans as make
from data_sets import CHEST, LIVER, ORGANS, SLICES, organ, scan, write_grey, write_nifti, write_pair

from fastmed.errors import DataError
from fastmed.geometry import Geometry
from fastmed.training.cases import Case
from fastmed.training.layouts import discover
from fastmed.training.survey import survey


def problems_of(folder: Path, spec, values=None) -> str:
    with pytest.raises(DataError) as error:
        survey(discover(folder, spec), spec, values or {})
    return str(error.value)


def test_every_bad_case_has_a_line(tmp_path):
    write_pair(tmp_path, "good")
    write_pair(tmp_path, "shape", labels=organ((19, 24, 28)))
    write_pair(tmp_path, "range", labels=organ(value=7))
    nan = scan().voxels.astype(np.float32)
    nan[3, 4, 5:8] = np.nan
    write_pair(tmp_path, "nan")
    write_nifti(tmp_path / "image/nan.nii.gz", nan, scan().geometry)
    write_pair(tmp_path, "moved")
    moved = Geometry(scan().geometry.shape_zyx, scan().geometry.affine + np.eye(4, k=3) * 0.1)
    write_nifti(tmp_path / "label/moved.nii.gz", organ(), moved)
    write_pair(tmp_path, "broken")
    (tmp_path / "image/broken.nii.gz").write_bytes(b"not a scan")
    text = problems_of(tmp_path, ORGANS)
    assert "5 problems in 6 cases" in text
    for sentence in (
        "shape: the image has shape (20, 24, 28), its label (19, 24, 28)",
        "range: label values 7 out of range; known are [0, 1, 2]",
        "nan: 3 voxels of nan.nii.gz are NaN or infinite",
        "moved: image and label lie on different grids, 0.0667 voxels apart",
        "broken: ",
    ):
        assert sentence in text
    assert "\n  good" not in text


def test_a_class_without_examples_is_named(tmp_path):
    write_pair(tmp_path, "a")
    assert "class 2 (spleen): not one voxel of it" in problems_of(tmp_path, ORGANS)


def test_a_class_without_cases_is_named(tmp_path):
    write_pair(tmp_path, "a")
    cases = [Case("a", "a", tmp_path / "image/a.nii.gz", target=0)]
    with pytest.raises(DataError, match=r"class 1 \(positive\): not one case of it"):
        survey(cases, CHEST, {})


def test_an_empty_mask_is_a_warning(tmp_path):
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", labels=np.zeros(data_sets.SHAPE, np.uint8))
    found = survey(discover(tmp_path, LIVER), LIVER, {})
    assert found.warnings == ("b: its mask is empty",)
    assert "warning: b: its mask is empty" in str(found)


def test_grids_that_differ_by_rounding_agree(tmp_path):
    write_pair(tmp_path, "a")
    near = Geometry(scan().geometry.shape_zyx, scan().geometry.affine * (1 + 1e-6))
    write_nifti(tmp_path / "label/a.nii.gz", organ(), near)
    survey(discover(tmp_path, LIVER), LIVER, {})


def test_the_table_shows_sizes_spacings_and_voxels(tmp_path):
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", shape=(30, 24, 28), spacing=(1.0, 1.5, 1.5))
    found = survey(discover(tmp_path, LIVER), LIVER, {})
    assert found.counts()[1] == 2 * 8 * 8 * 12
    lines = str(found).splitlines()
    assert lines[0].split() == ["2", "cases", "min", "median", "max"]
    assert lines[1].split() == ["size", "z,", "voxels", "20", "25", "30"]
    assert lines[4].split() == ["spacing", "z,", "mm", "1", "1.75", "2.5"]
    assert lines[-1].split() == ["liver", "1,536", "voxels"]


def test_strata_tell_which_classes_are_present(tmp_path):
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", labels=organ(value=2) + organ(end=(7, 9, 9)) * 0)
    found = survey(discover(tmp_path, ORGANS), ORGANS, {})
    assert found.strata() == {"a": (0, 1), "b": (0, 2)}


def test_grey_masks_take_their_two_values_and_no_others(tmp_path):
    for name, white in (("a", 255), ("b", 254)):
        pixels = np.full((20, 30), 90, np.uint8)
        mask = np.zeros((20, 30), np.uint8)
        mask[5:9, 5:9] = white
        write_grey(tmp_path / "image" / f"{name}.png", pixels)
        write_grey(tmp_path / "label" / f"{name}.png", mask)
    assert "b: label values 254 out of range; known are [0, 255]" in problems_of(tmp_path, SLICES)


def test_named_values_are_background_where_nobody_names_them(tmp_path):
    write_pair(tmp_path, "a", labels=organ(value=5) + organ(value=3, end=(7, 9, 9)))
    values = {"liver": (5,)}
    found = survey(discover(tmp_path, LIVER), LIVER, values)
    assert found.counts()[1] == 8 * 8 * 12 - 1


def test_numpy_volumes_are_taken(tmp_path):
    for folder, voxels in (("image", scan().voxels), ("label", organ())):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", voxels)
    from dataclasses import replace

    sized = replace(LIVER, spacing_mm_zyx=None, size_zyx=(16, 32, 32))
    assert survey(discover(tmp_path, sized), sized, {}).counts()[1] == 768
    bad = scan().voxels.astype(np.float32)
    bad[0, 0, 0] = np.inf
    np.save(tmp_path / "image" / "a.npy", bad)
    assert "a: 1 voxels of a.npy are NaN or infinite" in problems_of(tmp_path, sized)


def test_a_dicom_folder_and_a_nifti_mask_lie_on_one_grid(tmp_path):
    volume = make.volume(tilt_degrees=8.0)
    make.series(tmp_path / "image" / "a", volume)
    labels = organ(make.SHAPE, first=(3, 4, 5), end=(6, 9, 11))
    write_nifti(tmp_path / "label" / "a.nii.gz", labels, volume.geometry)
    found = survey(discover(tmp_path, LIVER), LIVER, {})
    assert found.facts[0].shape_zyx == make.SHAPE
    assert found.counts()[1] == labels.sum()
