"""Volumes written as DICOM CT: valid, deterministic, and where the geometry says."""

import numpy as np
import pydicom
import pytest
import scans as make

from fastmed.geometry import Geometry
from fastmed.volume import Volume
from fastmed.writers.dicom_ct import write_dicom_ct


def test_the_same_volume_gives_the_same_bytes_and_another_one_other_uids(tmp_path):
    first = write_dicom_ct(make.volume(), tmp_path / "a")
    second = write_dicom_ct(make.volume(), tmp_path / "b")
    other = write_dicom_ct(make.volume(seed=1), tmp_path / "c")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    uids = [pydicom.dcmread(p).SeriesInstanceUID for p in (first[0], other[0])]
    assert uids[0] != uids[1]
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)


def test_each_slice_says_where_it_is_and_names_nobody(tmp_path):
    scan = make.volume(tilt_degrees=-12.0)
    for k, path in enumerate(write_dicom_ct(scan, tmp_path, series_uid="1.2.3")):
        dataset = pydicom.dcmread(path)
        corner = scan.geometry.to_world((k, 0, 0))
        np.testing.assert_allclose(dataset.ImagePositionPatient, corner, atol=1e-9)
        np.testing.assert_array_equal(dataset.pixel_array, scan.voxels[k])
        assert dataset.SeriesInstanceUID == "1.2.3"
        assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        assert str(dataset.PatientName) == "PHANTOM^FASTMED"


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 1, 1)])
def test_odd_sizes_are_written_whole(shape, tmp_path):
    paths = write_dicom_ct(make.volume(shape), tmp_path)
    assert all(len(pydicom.dcmread(p).PixelData) % 2 == 0 for p in paths)


def test_what_dicom_cannot_hold_is_refused(tmp_path):
    scan = make.volume()
    with pytest.raises(TypeError, match="expected int16 or uint16"):
        write_dicom_ct(Volume(scan.voxels.astype(np.float32), scan.geometry), tmp_path)
    steps = [(0, 0, 1), (0.2, 1, 0), (1, 0, 0)]
    skewed = Geometry.from_axes(make.SHAPE, (0, 0, 0), steps)
    with pytest.raises(ValueError, match="not at right angles"):
        write_dicom_ct(Volume(scan.voxels, skewed), tmp_path)
