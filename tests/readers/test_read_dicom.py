"""DICOM series as Volumes: voxels and geometry against other readers and against the truth."""

import numpy as np
import pydicom
import pytest
import scans as make
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.readers.index import index, read, read_series
from fastmed.volume import Volume


def one(path, *, strict=True) -> Volume:
    (volume,) = read(path, strict=strict)
    return volume


def by_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def affine_of(image) -> np.ndarray:
    """Index (z, y, x) to LPS of a SimpleITK image."""
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    return Geometry.from_axes(image.GetSize()[::-1], image.GetOrigin(), steps.T[::-1]).affine


def shuffled(files, seed=0) -> None:
    """Gives the files of a series other names and instance numbers, in no order."""
    order = np.random.default_rng(seed).permutation(len(files))
    for number, k in enumerate(order):
        make.edit(files[k], InstanceNumber=str(number + 1))
        files[k].rename(files[k].with_name(f"IM{number:03d}"))


def test_voxels_hu_and_geometry_are_those_that_were_written(tmp_path):
    scan = make.volume()
    files = make.series(tmp_path, scan)
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    shuffled(files)
    volume = one(tmp_path)
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.flags.c_contiguous
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)
    assert (volume.slope, volume.intercept) == (1.0, -1024.0)
    assert [s.sop_instance_uid for s in volume.slices] == uids
    assert [s.z_index for s in volume.slices] == list(range(9))
    assert not volume.is_resliced


@pytest.mark.parametrize("orientation", ["axial", "feet first", "coronal", "oblique"])
def test_geometry_and_hu_equal_those_of_simpleitk(orientation, tmp_path):
    angle = np.radians(30)
    axes = {
        "axial": [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
        "feet first": [(0, 0, -1), (0, 1, 0), (-1, 0, 0)],
        "coronal": [(0, 1, 0), (0, 0, -1), (1, 0, 0)],
        "oblique": [
            (0, -np.sin(angle), np.cos(angle)),
            (0, np.cos(angle), np.sin(angle)),
            (1, 0, 0),
        ],
    }[orientation]
    steps = np.array(axes) * np.array([[1.5], [0.8], [0.7]])
    scan = make.volume(intercept=-1000.0, slope=2.0)
    scan = Volume(
        scan.voxels,
        Geometry.from_axes(make.SHAPE, (3.25, -40.5, 17.0), steps),
        scan.slope,
        scan.intercept,
    )
    shuffled(make.series(tmp_path, scan))
    volume, image = one(tmp_path), by_simpleitk(tmp_path)
    np.testing.assert_allclose(volume.geometry.affine, affine_of(image), atol=1e-6)
    np.testing.assert_array_equal(volume.hu(), sitk.GetArrayFromImage(image))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 999),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    gap=st.floats(0.3, 8),
    lean=st.tuples(*[st.floats(-0.4, 0.4)] * 2),
)
def test_any_pose_in_any_file_order_gives_the_same_volume(
    tmp_path_factory, seed, angles, origin, gap, lean
):
    turn = sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()
    x, y, z = np.reshape(turn, (3, 3)).T
    steps = [gap * (z + lean[0] * x + lean[1] * y), 0.7 * y, 0.9 * x]
    scan = make.volume((5, 6, 7), seed=seed)
    scan = Volume(scan.voxels, Geometry.from_axes((5, 6, 7), origin, steps), 1.0, -1024.0)
    folder = tmp_path_factory.mktemp("pose")
    shuffled(make.series(folder, scan), seed)
    volume = one(folder)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-6)


def test_a_tilted_gantry_goes_into_the_affine_and_is_no_reason_to_refuse(tmp_path):
    scan = make.volume(tilt_degrees=18.5)
    make.series(tmp_path, scan)
    (entry,) = index(tmp_path)
    assert entry.reason == "CT volume, tilted 18.5 degrees, uniform 2 mm"
    volume = read_series(entry)
    assert volume.geometry.is_sheared
    assert volume.geometry.tilt_degrees == pytest.approx(18.5)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)


def test_a_file_that_shrinks_between_index_and_read_is_named(tmp_path):
    files = make.series(tmp_path / "scan")
    (entry,) = index(tmp_path)
    make.truncate(files[2], lose_bytes=10)
    with pytest.raises(SeriesError, match=r"scan/0003.dcm is truncated: 326 of 336 bytes"):
        read_series(entry)
    files[2].unlink()
    with pytest.raises(SeriesError, match=r"scan/0003.dcm: No such file"):
        read_series(entry)


def test_long_headers_and_files_without_a_preamble_are_read(tmp_path):
    scan = make.volume()
    files = make.series(tmp_path, scan)
    for file in files[::2]:
        make.edit(file, ImageComments="x" * 9000, PatientComments="y" * 9000,
                  InstitutionAddress="z" * 1000)  # fmt: skip
        dataset = pydicom.dcmread(file)
        dataset.add_new(0x00091001, "OB", bytes(200_000))
        dataset.add_new(0x00090010, "LO", "FASTMED TEST")
        dataset.save_as(file)
    for file in files[1::2]:
        file.write_bytes(file.read_bytes()[132:])
    np.testing.assert_array_equal(one(tmp_path).voxels, scan.voxels)


def test_the_real_abdomen_is_a_uniform_volume(scans):
    (entry,) = index(scans / "ct-abdomen-dicom")
    assert (entry.kind, entry.verdict) == ("ct", "ok")
    assert entry.reason == "CT volume, uniform 2 mm"
    volume, image = read_series(entry), by_simpleitk(scans / "ct-abdomen-dicom")
    assert volume.geometry.shape_zyx == (20, 512, 512)
    np.testing.assert_allclose(volume.geometry.affine, affine_of(image), atol=1e-9)
    np.testing.assert_array_equal(volume.hu(), sitk.GetArrayFromImage(image))


def test_the_real_tilted_head_is_refused_or_laid_on_a_grid(scans):
    (entry,) = index(scans / "ct-head-tilt-dicom")
    assert entry.verdict == "refused"
    assert entry.reason.startswith(
        "tilted 18.5 degrees, unevenly spaced (1.08, 4.00 and 7.00 mm along the normal; "
        "1.14, 4.22 and 7.38 along the table)"
    )
    volume = one(scans / "ct-head-tilt-dicom", strict=False)
    assert volume.geometry.tilt_degrees == pytest.approx(18.5, abs=0.01)
    files = sorted((scans / "ct-head-tilt-dicom").iterdir())
    for file, piece in zip(files, volume.slices, strict=True):
        dataset = pydicom.dcmread(file)
        assert dataset.SOPInstanceUID == piece.sop_instance_uid
        position = volume.geometry.to_world((piece.z_index, 0, 0))
        np.testing.assert_allclose(position, dataset.ImagePositionPatient, atol=0.11)
        if piece.z_index == int(piece.z_index):
            pixels = dataset.pixel_array.astype(np.float32)
            pixels[pixels == -1500] = -1024
            np.testing.assert_array_equal(volume.hu()[int(piece.z_index)], pixels)
    assert volume.hu().min() >= -1024


def test_the_real_scans_get_exactly_these_verdicts(scans):
    found = {e.source: (e.kind, e.verdict) for e in index(scans)}
    assert {k: v for k, v in found.items() if v[0] != "not an image"} == {
        "ct-abdomen-dicom": ("ct", "ok"),
        "ct-head-tilt-dicom": ("ct", "refused"),
        "ct-torso-nifti/ct.nii.gz": ("ct", "ok"),
        "ct-torso-nifti/labels.nii.gz": ("label map", "skipped"),
        "ct-abdomen-dicom-labels.nii.gz": ("label map", "skipped"),
    }


def test_what_is_free_to_lie_about_places_is_not_asked(tmp_path):
    scan = make.volume()
    lies = {"SpacingBetweenSlices": -9, "SliceLocation": 0, "InstanceNumber": "1"}
    make.edit_all(make.series(tmp_path, scan), SliceThickness=77, **lies)
    volume = one(tmp_path)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)
