"""What --lenient makes of doubtful DICOM series: every voxel where its slice says it is."""

import numpy as np
import pydicom
import pytest
import scans as make

from fastmed.readers import dicom_pixels
from fastmed.readers.index import index, read
from fastmed.volume import Volume


def one(path, *, strict=True) -> Volume:
    (volume,) = read(path, strict=strict)
    return volume


@pytest.mark.parametrize("missing", [[4], [1, 2, 6]])
@pytest.mark.parametrize("tilt", [0.0, 18.5])
def test_lenient_interpolates_missing_slices_between_their_neighbours(missing, tilt, tmp_path):
    scan = make.volume(tilt_degrees=tilt)
    ramp = (np.arange(9, dtype=np.int16) * 30)[:, None, None]
    scan = Volume(scan.voxels[:1] + ramp, scan.geometry, 1.0, -1024.0)
    files = make.series(tmp_path, scan)
    for k in missing:
        files[k].unlink()
    volume = one(tmp_path, strict=False)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)
    assert [s.z_index for s in volume.slices] == [k for k in range(9) if k not in missing]
    assert volume.is_resliced
    assert "interpolated between their neighbours" in volume.warnings[0]


def test_lenient_lays_uneven_slices_on_a_grid_no_coarser_than_the_smallest_gap(tmp_path):
    scan = make.volume((5, 12, 14))
    files = make.series(tmp_path, scan)
    depths = np.array([0.0, 1.1, 5.1, 9.1, 16.1])
    for k, file in enumerate(files):
        make.edit(file, ImagePositionPatient=[0, 0, depths[k]])
    (entry,) = index(tmp_path)
    assert "unevenly spaced (1.10, 4.00 and 7.00 mm)" in entry.reason
    volume = one(tmp_path, strict=False)
    step = volume.geometry.spacing_mm_zyx[0]
    assert 1.0 < step <= 1.1
    assert np.isfinite(volume.voxels).all()
    at = np.array([s.z_index for s in volume.slices])
    np.testing.assert_allclose(at * step, depths, atol=0.1)
    assert at[-1] == volume.voxels.shape[0] - 1
    for z, plane in enumerate(volume.voxels):
        expected = [np.interp(z, at, scan.voxels[:, y, x]) for y, x in ((0, 0), (5, 7), (11, 13))]
        np.testing.assert_allclose([plane[0, 0], plane[5, 7], plane[11, 13]], expected, atol=0.51)


def test_lenient_interpolates_uneven_slices_also_where_their_number_fits_the_grid(tmp_path):
    scan = make.volume()
    paths = make.series(tmp_path, scan)
    late = np.maximum(np.arange(len(paths)) - 4, 0) * 0.2  # gaps of 2.0, then of 2.2 mm
    for path, shift in zip(paths, late, strict=True):
        make.move(path, by_lps_mm=(0, 0, float(shift)))
    (volume,) = read(tmp_path, strict=False)
    assert volume.geometry.shape_zyx == scan.geometry.shape_zyx
    at = np.array([s.z_index for s in volume.slices])
    step = volume.geometry.spacing_mm_zyx[0]
    np.testing.assert_allclose(at * step, 2.0 * np.arange(9) + late, atol=0.1)
    for z, plane in enumerate(volume.voxels):
        expected = [np.interp(z, at, scan.voxels[:, y, x]) for y, x in ((0, 0), (5, 7), (11, 13))]
        np.testing.assert_allclose([plane[0, 0], plane[5, 7], plane[11, 13]], expected, atol=0.51)


def test_lenient_takes_a_slice_beside_the_line_up_to_a_pixel(tmp_path):
    scan = make.volume()
    files = make.series(tmp_path, scan)
    make.move(files[4], by_lps_mm=(0.4, 0, 0))
    volume = one(tmp_path, strict=False)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)
    assert "up to 0.40 mm beside the line" in volume.warnings[0]
    make.move(files[4], by_lps_mm=(0.4, 0, 0))
    (entry,) = index(tmp_path, strict=False)
    assert entry.verdict == "refused"
    assert "more than a pixel" in entry.reason


def test_lenient_refuses_a_grid_of_too_many_slices(tmp_path):
    files = make.series(tmp_path)
    make.move(files[1], by_lps_mm=(0, 0, -1.98))
    make.move(files[-1], by_lps_mm=(0, 0, 100))
    (entry,) = index(tmp_path, strict=False)
    assert entry.verdict == "refused"
    assert "above the limit of 2048 slices" in entry.reason


def test_lenient_keeps_one_of_several_slices_at_a_position_by_its_rule(tmp_path):
    files = make.series(tmp_path)
    make.edit(files[4], AcquisitionNumber="2")
    make.move(files[4], by_lps_mm=(0, 0, 2))
    volume = one(tmp_path, strict=False)
    uids = [s.sop_instance_uid for s in volume.slices]
    assert pydicom.dcmread(files[5]).SOPInstanceUID in uids
    assert pydicom.dcmread(files[4]).SOPInstanceUID not in uids
    assert "of 2 acquisitions: kept the lowest AcquisitionNumber" in " ".join(volume.warnings)


def test_lenient_splits_mixed_series_into_volumes(tmp_path):
    files = make.series(tmp_path)
    make.edit_all(files[6:], PixelSpacing=[0.9, 0.9])
    entries = index(tmp_path, strict=False)
    assert [(e.verdict, e.shape_zyx[0]) for e in entries] == [("ok", 6), ("ok", 3)]
    assert entries[1].name == entries[0].name + "-2"
    assert all("split into 2 volumes" in e.warnings[0] for e in entries)
    assert [v.voxels.shape[0] for v in read(tmp_path, strict=False)] == [6, 3]


def test_interpolation_between_unsigned_extremes_neither_wraps_nor_overflows():
    slices = np.array([0, 65535], np.uint16).reshape(2, 1, 1)
    planes = np.empty((5, 1, 1), np.uint16)
    dicom_pixels._interpolate(slices, np.array([0.0, 4.0]), planes)
    assert planes.ravel().tolist() == [0, 16384, 32768, 49151, 65535]
