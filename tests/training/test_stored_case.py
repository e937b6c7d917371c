"""StoredCase: what training keeps of a scan, and where it lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_sets import LIVER, SHAPE, organ, scan, write_nifti, write_pair

from fastmed.errors import DataError
from fastmed.geometry import Geometry
from fastmed.training.cases import Case
from fastmed.training.layouts import discover
from fastmed.training.stored_case import POINTS, prepare
from fastmed.volume import Volume

LONG = (60, 40, 44)


def stored(folder: Path, crop="scan", spec=LIVER, **pair):
    write_pair(folder, "a", **pair)
    (case,) = discover(folder, spec)
    return prepare(case, spec, {}, crop)


def test_a_whole_scan_is_kept_as_stored(tmp_path):
    kept = stored(tmp_path)
    assert kept.voxels.dtype == np.int16
    assert (kept.voxels == scan().voxels).all()
    assert (kept.labels == organ()).all()
    np.testing.assert_allclose(kept.geometry.affine, scan().geometry.affine, atol=1e-5)
    assert kept.volume().hu().min() == -1000
    assert kept.region == tuple((0, n) for n in kept.grid.shape_zyx)


@pytest.mark.parametrize("crop", ["label", (20, 39)])
def test_a_crop_keeps_its_place_in_the_scan(crop, tmp_path):
    labels = organ(LONG, first=(30, 15, 15), end=(34, 22, 24))
    whole = stored(tmp_path, shape=LONG, labels=labels)
    kept = stored(tmp_path, crop, shape=LONG, labels=labels)
    assert kept.voxels.size < whole.voxels.size
    assert kept.labels.sum() == labels.sum()
    assert kept.grid == whole.grid
    first = np.rint(whole.geometry.to_index(kept.geometry.origin_lps_mm)).astype(int)
    end = first + kept.voxels.shape
    piece = tuple(slice(a, b) for a, b in zip(first, end, strict=True))
    assert (kept.voxels == whole.voxels[piece]).all()
    np.testing.assert_array_equal(kept.matrix[:, 3] + first, whole.matrix[:, 3])


def test_a_crop_by_label_keeps_its_margin(tmp_path):
    labels = organ(LONG, first=(30, 15, 15), end=(34, 22, 24))
    kept = stored(tmp_path, "label", shape=LONG, labels=labels, spacing=(3.0, 2.0, 2.0))
    # The grid is the scan's own here: 20 mm are 7 of its slices, 10 of its rows.
    assert kept.region == ((23, 41), (5, 32), (5, 34))


def test_a_crop_by_slices_is_what_patches_lie_in(tmp_path):
    kept = stored(tmp_path, (20, 39), shape=LONG, spacing=(3.0, 2.0, 2.0))
    assert kept.region == ((20, 40), (0, 40), (0, 44))


@pytest.mark.parametrize("crop", [(250, 300), (0, 20), (19, 25)])
def test_slices_beyond_a_shorter_scan_are_an_error_by_name(crop, tmp_path):
    with pytest.raises(
        DataError, match=r"a: crop .* leaves the scan, which has the slices 0 to 19"
    ):
        stored(tmp_path, crop)


def test_a_narrow_crop_is_widened_to_a_tile(tmp_path):
    kept = stored(tmp_path, (40, 40), shape=LONG, spacing=(3.0, 2.0, 2.0))
    assert kept.region[0] == (36, 44)


def test_points_are_voxels_of_their_class(tmp_path):
    labels = organ((40, 60, 60), first=(2, 2, 2), end=(38, 50, 50))
    kept = stored(tmp_path, shape=(40, 60, 60), labels=labels)
    assert len(kept.points) == POINTS < labels.sum()
    assert len(np.unique(kept.points, axis=0)) == POINTS
    assert (labels[tuple(kept.points[:, 1:].T)] == kept.points[:, 0]).all()


@pytest.mark.parametrize(
    ("dtype", "add", "kept"),
    [
        ("int16", 0, "int16"),
        ("int32", 0, "int16"),
        ("float32", 0, "int16"),
        ("float64", 0, "int16"),
        ("float32", 0.5, "float32"),
        ("int32", 100_000, "int32"),
        ("uint16", 41_000, "uint16"),
    ],
)
def test_scans_are_kept_in_the_smallest_integer_type_that_holds_them(dtype, add, kept, monkeypatch):
    voxels = (scan().voxels.astype(np.float64) + add).astype(dtype)
    volume = Volume(voxels, scan().geometry)
    monkeypatch.setattr("fastmed.training.stored_case.read_image", lambda case, spec: volume)
    found = prepare(Case("a", "a", Path("a.nii")), LIVER, {})
    assert found.voxels.dtype == kept
    assert (found.voxels == voxels).all()


def test_pairs_on_two_grids_are_an_error_by_name(tmp_path):
    write_pair(tmp_path, "a")
    other = Geometry(SHAPE, scan().geometry.affine * 1.01)
    write_nifti(tmp_path / "label" / "a.nii.gz", organ(), other)
    (case,) = discover(tmp_path, LIVER)
    with pytest.raises(DataError, match="a: image and label lie on different grids"):
        prepare(case, LIVER, {})


def test_a_scan_without_the_region_is_an_error_by_name(tmp_path):
    from data_sets import CHEST

    write_pair(tmp_path, "a")
    case = Case("a", "a", tmp_path / "image/a.nii.gz", target=0)
    with pytest.raises(DataError, match="a: no lungs found"):
        prepare(case, replace(CHEST, region="lungs"), {})
