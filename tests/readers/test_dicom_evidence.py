"""Evidence for a report: the wanted images, what an archive files by, and nobody's name."""

import pytest
import scans as make

from fastmed.errors import SeriesError
from fastmed.readers.dicom_evidence import read_evidence
from fastmed.readers.index import index


def entry_of(folder, **attributes):
    paths = make.series(folder)
    make.edit_all(paths, **attributes)
    (entry,) = index(folder)
    return entry


def test_the_wanted_images_come_by_rising_z_without_names(tmp_path):
    entry = entry_of(tmp_path, PatientName="DOE^JANE", PatientID="77", PatientSex="F")
    uids = [header.sop_instance_uid for header in entry.stored.headers]
    images = read_evidence(entry, {uids[5], uids[2]})
    assert [image.SOPInstanceUID for image in images] == [uids[2], uids[5]]
    assert {image.PatientID for image in images} == {"77"}
    assert all(image.PatientName == image.PatientSex == "" for image in images)
    assert "PixelData" not in images[0]


def test_where_none_is_named_the_middle_image_stands_for_the_series(tmp_path):
    entry = entry_of(tmp_path)
    (image,) = read_evidence(entry, ())
    assert image.SOPInstanceUID == entry.stored.headers[4].sop_instance_uid


def test_what_is_no_date_stays_empty(tmp_path):
    paths = make.series(tmp_path)
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"DA\x08\x0020000101", b"DA\x08\x00yesterdy"))
    (entry,) = index(tmp_path)
    (image,) = read_evidence(entry, ())
    assert image.StudyDate == image.ContentDate == ""


def test_an_image_without_a_series_is_named(tmp_path):
    entry = entry_of(tmp_path, SeriesInstanceUID=None)
    with pytest.raises(SeriesError, match=r"0005\.dcm has no SeriesInstanceUID"):
        read_evidence(entry, ())


def test_a_file_that_vanished_is_named(tmp_path):
    entry = entry_of(tmp_path)
    (tmp_path / "0005.dcm").unlink()
    with pytest.raises(SeriesError, match=r"0005\.dcm: "):
        read_evidence(entry, ())


def test_a_scan_that_is_no_dicom_has_no_evidence(tmp_path):
    import nibabel
    import numpy as np

    hu = np.random.default_rng(0).integers(-1000, 400, (12, 10, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, np.eye(4)), tmp_path / "a.nii.gz")
    (entry,) = index(tmp_path)
    with pytest.raises(SeriesError, match=r"a\.nii\.gz is no DICOM"):
        read_evidence(entry, ())
