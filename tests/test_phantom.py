"""Phantoms: the same seed, the same patient, whatever grid is laid through it."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch

import fastmed
from fastmed import phantom_scans
from fastmed.geometry import Geometry
from fastmed.phantom import CLASSES, LIVER, abdomen

LEAN = np.radians(15)
TILTED = [(0, 0, 6.0), (0, 6 * np.cos(LEAN), -6 * np.sin(LEAN)), (6.0, 0, 0)]
LOW, HIGH = -259.0, 104.0  # mm in z that the tilted scan reaches, and so do the others
_STEP = (HIGH - LOW) / 60
UPRIGHT = Geometry.from_spacing((60, 60, 70), (_STEP, 6.0, 6.0), (-207.0, -177.0, LOW + _STEP / 2))
GEOMETRIES = {
    "upright": UPRIGHT,
    "flipped": Geometry.from_axes(
        (60, 60, 70), UPRIGHT.to_world((59, 59, 69)), -UPRIGHT.steps_lps_mm
    ),
    "tilted": Geometry.from_axes((44, 64, 70), (-207.0, -183.0, -157.39), TILTED),
}


@pytest.fixture(scope="module")
def phantoms():
    return {name: abdomen(geometry, 5) for name, geometry in GEOMETRIES.items()}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_scan_and_truth_share_a_grid(phantoms, name):
    volume, truth = phantoms[name]
    assert volume.geometry == truth.geometry == GEOMETRIES[name]
    assert (volume.voxels.dtype, truth.labels.dtype) == (np.int16, np.uint8)
    assert (volume.slope, volume.intercept) == (1.0, -1024.0)
    assert truth.classes == (LIVER,)


@pytest.mark.parametrize("name", ["flipped", "tilted"])
def test_every_grid_shows_the_same_liver(phantoms, name):
    """The centre and the volume of the liver do not depend on the axes it was cut along."""
    ends = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in GEOMETRIES[name].shape_zyx)))
    z = GEOMETRIES[name].to_world(ends.reshape(3, -1).T)[:, 2]
    assert (z.min(), z.max()) == pytest.approx((LOW, HIGH), abs=1.5)
    _, upright = phantoms["upright"]
    _, other = phantoms[name]
    assert other.masks[0].volume_ml == pytest.approx(upright.masks[0].volume_ml, rel=0.06)
    centres = [t.geometry.to_world(np.argwhere(t.labels)).mean(axis=0) for t in (upright, other)]
    np.testing.assert_allclose(*centres, atol=2.0)


def test_the_liver_looks_like_one(phantoms):
    volume, truth = phantoms["upright"]
    (mask,) = truth.masks
    assert 700 < mask.volume_ml < 3000
    assert 0 < mask.mean_hu < 200
    left, _, _ = truth.geometry.to_world(np.argwhere(truth.labels)).mean(axis=0)
    assert left < -20, "the liver lies on the patient's right"
    assert volume.hu().min() < -900
    assert np.median(volume.hu()[truth.labels == 1]) == pytest.approx(mask.mean_hu, abs=10)


def test_the_same_seed_gives_the_same_patient_and_another_seed_another():
    small = Geometry.from_spacing((10, 30, 34), (12.0, 12.0, 12.0), (-200.0, -175.0, -110.0))
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    (one, truth), (two, _), (other, _) = (abdomen(small, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.voxels, two.voxels)
    assert not np.array_equal(one.voxels, other.voxels)
    assert truth.labels.any()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_all_organs_are_named_where_asked_for(phantoms):
    volume, truth = abdomen(UPRIGHT, 5, organs=True)
    assert truth.classes == CLASSES
    assert truth.labels.max() <= len(CLASSES)
    found = {mask.label for mask in truth.masks if mask.voxels}
    assert found >= {"body", "muscle", "lung", "liver", "spleen", "kidney", "bone", "table"}
    _, liver_alone = phantoms["upright"]
    number = next(label.value for label in CLASSES if label.name == "liver")
    assert np.array_equal(truth.labels == number, liver_alone.labels == 1)
    assert volume.voxels.min() >= 0


@pytest.mark.parametrize("seed", [17, 4242])
def test_no_seed_makes_a_patient_without_liver(seed):
    small = Geometry.from_spacing((14, 20, 22), (16.0, 20.0, 20.0), (-210.0, -190.0, -200.0))
    _, truth = abdomen(small, seed)
    assert 400 < truth.masks[0].volume_ml < 4000


def test_the_archive_has_a_truth_for_each_series(phantom_archive):
    scans, truth = phantom_archive
    folders = {p.name.removesuffix(".nii.gz") for p in truth.iterdir()}
    assert folders == {p.name for p in scans.iterdir() if p.is_dir()}


@pytest.mark.parametrize("folder", ["abdomen-001", "abdomen-002", "tilted"])
def test_truth_lies_on_the_grid_of_its_scan(phantom_archive, folder):
    scans, truth = phantom_archive
    import nibabel

    (volume,) = fastmed.read(scans / folder)
    image = nibabel.load(truth / f"{folder}.nii.gz")
    assert image.shape == volume.geometry.shape_zyx[::-1]
    np.testing.assert_allclose(image.affine, volume.geometry.to_ras_xyz(), atol=1e-3)
    liver = np.asarray(image.dataobj).T == 1
    assert liver.any()
    assert -60 < volume.hu()[liver].mean() < 250


def test_other_readers_find_the_scan_in_the_same_place(phantom_archive):
    scans, _ = phantom_archive
    (volume,) = fastmed.read(scans / "abdomen-002")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(scans / "abdomen-002"))
    image = sitk.ReadImage(names)
    np.testing.assert_allclose(image.GetOrigin(), volume.geometry.origin_lps_mm, atol=1e-3)
    np.testing.assert_allclose(image.GetSpacing()[::-1], volume.geometry.spacing_mm_zyx, atol=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.hu())


def test_phantoms_say_that_they_are_no_person(phantom_archive):
    scans, _ = phantom_archive
    header = pydicom.dcmread(scans / "abdomen-001" / "0001.dcm", stop_before_pixels=True)
    assert str(header.PatientName) == "PHANTOM^FASTMED"
    assert header.PatientBirthDate == ""


def test_the_same_seed_gives_the_same_files(tmp_path, monkeypatch):
    small = Geometry.from_spacing((4, 24, 26), (20.0, 16.0, 16.0), (-200.0, -190.0, -110.0))
    plan = [phantom_scans._Scan("s", small, 9, localizer=True)]
    monkeypatch.setattr(phantom_scans, "_uprights", lambda count, seed: plan)
    for name in ("one", "two"):
        phantom_scans.write_phantoms("abdomen", tmp_path / name, seed=9)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
