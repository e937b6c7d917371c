"""Enhanced multi-frame CT: each frame is a slice, judged and read as those of one file each."""

import numpy as np
import pydicom
import pytest
import scans as make

from fastmed.readers import dicom_frames
from fastmed.readers.dicom_evidence import read_evidence
from fastmed.readers.dicom_header import read_headers
from fastmed.readers.index import index, read_series
from fastmed.readers.walk import Found

SYNTAXES = {
    "explicit little endian": "",
    "implicit little endian": "1.2.840.10008.1.2",
    "explicit big endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG 2000 lossless": "1.2.840.10008.1.2.4.90",
}


def only(entries):
    (entry,) = entries
    return entry


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("legacy", [False, True])
def test_frames_in_any_order_are_the_volume_that_was_written(syntax, legacy, tmp_path):
    scan = make.volume((5, 40, 36))
    make.enhanced(
        tmp_path / "a.dcm",
        scan,
        legacy=legacy,
        order=[3, 0, 4, 1, 2],
        transfer_syntax=SYNTAXES[syntax],
    )
    entry = only(index(tmp_path))
    assert (entry.kind, entry.verdict) == ("ct", "ok")
    assert entry.conditions == ("uniform", "enhanced multi-frame")
    assert entry.reason == "CT volume, uniform 2 mm"
    assert (entry.files, entry.shape_zyx, entry.source) == (1, (5, 40, 36), "a.dcm")
    volume = read_series(entry)
    np.testing.assert_array_equal(volume.hu(), scan.hu())
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)
    assert [at.frame for at in volume.slices] == [2, 4, 5, 1, 3]
    assert len({at.name for at in volume.slices}) == 5


@pytest.mark.parametrize("syntax", ["RLE", "JPEG 2000 lossless"])
def test_the_whole_of_a_compressed_file_is_read_once_not_for_each_frame(
    syntax, tmp_path, monkeypatch
):
    scan = make.volume((6, 40, 36))
    make.enhanced(tmp_path / "a.dcm", scan, transfer_syntax=SYNTAXES[syntax])
    entry = only(index(tmp_path))
    reads = []
    dcmread = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: reads.append(a) or dcmread(*a, **k))
    np.testing.assert_array_equal(read_series(entry).hu(), scan.hu())
    assert len(reads) == 1


def test_rescale_of_each_frame_is_honoured(tmp_path):
    scan = make.volume((4, 12, 14))
    path = make.enhanced(tmp_path / "a.dcm", scan)
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    (values,) = shared.PixelValueTransformationSequence
    del shared.PixelValueTransformationSequence
    for k, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        own = pydicom.Dataset()
        own.update(values)
        own.RescaleIntercept = -1000 - k
        groups.PixelValueTransformationSequence = [own]
    dataset.save_as(path)
    volume = read_series(only(index(tmp_path)))
    k = np.arange(4)[:, None, None]
    np.testing.assert_array_equal(volume.hu(), scan.voxels - 1000.0 - k)


def test_missing_and_tilted_frames_are_judged_as_slices_are(tmp_path):
    scan = make.volume((6, 12, 14), tilt_degrees=12.0)
    make.enhanced(tmp_path / "a.dcm", scan, order=[0, 1, 3, 4, 5])
    entry = only(index(tmp_path))
    assert entry.verdict == "refused"
    assert entry.conditions == ("tilted", "missing slices", "enhanced multi-frame")
    entry = only(index(tmp_path, strict=False))
    assert entry.verdict == "ok"
    np.testing.assert_allclose(entry.geometry.affine, scan.geometry.affine, atol=1e-9)


def test_stacks_that_a_file_declares_are_volumes_of_their_own(tmp_path):
    first, later = make.volume((5, 12, 14), seed=1), make.volume((5, 12, 14), seed=2)
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    make.enhanced(tmp_path / "a.dcm", first, later, order=order)
    entries = index(tmp_path)
    assert [entry.verdict for entry in entries] == ["ok", "ok"]
    assert [entry.conditions for entry in entries] == [("uniform", "enhanced multi-frame")] * 2
    assert entries[0].name != entries[1].name
    assert len({entry.reason for entry in entries}) == 2
    for entry, scan in zip(entries, (first, later), strict=True):
        np.testing.assert_array_equal(read_series(entry).hu(), scan.hu())


def test_one_stack_that_is_numbered_as_several_is_one_volume(tmp_path):
    scan = make.volume((6, 12, 14))
    path = make.enhanced(tmp_path / "a.dcm", scan)
    dataset = pydicom.dcmread(path)
    for k, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        groups.FrameContentSequence[0].StackID = str(k // 3)
    dataset.save_as(path)
    assert only(index(tmp_path)).shape_zyx[0] == 6


def test_files_of_one_series_are_one_volume(tmp_path):
    scan = make.volume((6, 12, 14))
    make.enhanced(tmp_path / "a.dcm", scan, order=[0, 1, 2], SOPInstanceUID="1.2.3.1")
    make.enhanced(tmp_path / "b.dcm", scan, order=[3, 4, 5], SOPInstanceUID="1.2.3.2")
    entry = only(index(tmp_path))
    assert (entry.verdict, entry.files, entry.shape_zyx[0]) == ("ok", 2, 6)
    np.testing.assert_array_equal(read_series(entry).hu(), scan.hu())


def test_localizer_frames_are_told_from_slices(tmp_path):
    path = make.enhanced(tmp_path / "a.dcm", make.volume((6, 12, 14)))
    dataset = pydicom.dcmread(path)
    projection = pydicom.Dataset()
    projection.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    dataset.PerFrameFunctionalGroupsSequence[0].CTImageFrameTypeSequence = [projection]
    dataset.save_as(path)
    entries = {entry.kind: entry for entry in index(tmp_path)}
    assert entries["ct"].shape_zyx[0] == 5
    assert entries["localizer"].conditions == ("enhanced multi-frame", "localizer")


DAMAGED = {
    "frames without functional groups": (
        lambda path: make.edit(path, PerFrameFunctionalGroupsSequence=None),
        ("refused", ("enhanced multi-frame", "no geometry"), "without saying where each lies"),
    ),
    "fewer descriptions than frames": (
        lambda path: make.edit(
            path,
            PerFrameFunctionalGroupsSequence=list(
                pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
            )[1:],
        ),
        ("failed", ("enhanced multi-frame", "damaged"), "describes 5 frames and says that it"),
    ),
    "pixels cut short": (
        lambda path: make.truncate(path, lose_bytes=100),
        ("failed", ("enhanced multi-frame", "truncated"), "1916 of 2016 bytes"),
    ),
    "no orientation": (
        lambda path: make.edit(path, SharedFunctionalGroupsSequence=None),
        ("refused", ("enhanced multi-frame", "no geometry"), "no usable ImageOrientationPatient"),
    ),
    "empty items without end": (
        lambda path: make.edit(
            path,
            PerFrameFunctionalGroupsSequence=[pydicom.Dataset() for _ in range(5000)],
        ),
        ("refused", ("enhanced multi-frame", "too large"), "more than 64 items for each"),
    ),
    "the class of single slices": (
        lambda path: make.edit(
            path, SOPClassUID="1.2.840.10008.5.1.4.1.1.2", PerFrameFunctionalGroupsSequence=None
        ),
        ("refused", ("enhanced multi-frame", "no geometry"), "without saying where each lies"),
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_wrong_with_a_multi_frame_file_is_named(case, strict, tmp_path):
    damage, (verdict, conditions, reason) = DAMAGED[case]
    damage(make.enhanced(tmp_path / "a.dcm", make.volume((6, 12, 14))))
    entry = only(index(tmp_path, strict=strict))
    assert (entry.kind, entry.verdict, entry.conditions) == ("ct", verdict, conditions)
    assert reason in entry.reason


def test_a_file_of_more_frames_than_any_scan_is_refused(tmp_path, monkeypatch):
    make.enhanced(tmp_path / "a.dcm", make.volume((6, 12, 14)))
    monkeypatch.setattr(dicom_frames, "_MOST_FRAMES", 5)
    entry = only(index(tmp_path))
    assert (entry.verdict, entry.conditions) == ("refused", ("enhanced multi-frame", "too large"))


def test_items_that_pieces_of_a_file_divide_are_counted(tmp_path, monkeypatch):
    path = make.enhanced(tmp_path / "a.dcm", make.volume((6, 12, 14)))
    (header,) = read_headers([Found(str(path), "a.dcm", path.stat().st_size)])
    whole = dicom_frames._items_in(header, 10**6)
    monkeypatch.setattr(dicom_frames, "_PIECE", 5)
    assert dicom_frames._items_in(header, 10**6) == whole > 6


def test_text_that_is_no_unit_is_not_shown(tmp_path):
    path = make.enhanced(tmp_path / "a.dcm", make.volume((4, 12, 14)))
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PixelValueTransformationSequence[0].RescaleType = "Doe, Jane"
    dataset.save_as(path)
    entry = only(index(tmp_path))
    assert (entry.verdict, entry.conditions) == ("refused", ("enhanced multi-frame", "not in hu"))
    assert "Doe" not in entry.reason.title()


def test_functional_groups_are_read_without_a_warning(tmp_path, recwarn):
    path = make.enhanced(tmp_path / "a.dcm", make.volume((4, 12, 14)))
    dataset = pydicom.dcmread(path)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.FrameContentSequence[0].StackID = "longer than a short text"
    dataset.save_as(path)
    recwarn.clear()
    assert only(index(tmp_path)).verdict == "ok"
    assert [str(warning.message) for warning in recwarn] == []


def test_a_report_refers_to_the_file_once(tmp_path):
    make.enhanced(tmp_path / "a.dcm", make.volume((4, 12, 14)))
    entry = only(index(tmp_path))
    uid = entry.stored.headers[0].sop_instance_uid
    assert [image.SOPInstanceUID for image in read_evidence(entry, {uid})] == [uid]


def test_original_frames_have_names_of_their_own(tmp_path):
    scan = make.volume((6, 12, 14))
    make.enhanced(tmp_path / "a.dcm", scan, order=[0, 1, 3, 4, 5])
    volume = read_series(only(index(tmp_path, strict=False)))
    assert volume.is_resliced
    assert len({at.name for at in volume.slices}) == 5
