"""findings.sr.dcm, read back by highdicom: the figures, the outlines, no name, the same bytes."""

from dataclasses import replace
from datetime import date

import numpy as np
import pydicom
import pytest
import scans as make
from highdicom.sr import srread

from fastmed.findings import Box
from fastmed.readers.dicom_evidence import read_evidence
from fastmed.readers.index import index, read_series
from fastmed.spec import Label
from fastmed.writers.dicom_sr import images_with_boxes, write_sr

WORLD = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
CLASSES = (Label(1, "nodule", snomed_ct="27925004"), Label(2, "Höhle"))


@pytest.fixture
def scan(tmp_path):
    """A series of 9 slices and its volume."""
    paths = make.series(tmp_path / "in", patient="DOE^JANE")
    make.edit_all(paths, PatientBirthDate="19500101", PatientID="MRN 77", AccessionNumber="A1")
    (entry,) = index(tmp_path / "in")
    return entry, read_series(entry)


@pytest.fixture
def detection(scan, make_findings):
    entry, volume = scan
    uids = [at.sop_instance_uid for at in volume.slices]
    boxes = (
        Box("nodule", 0.9375, WORLD, 8.25, (2, 4), uids[3], (3.0, 4.25, 6.5, 7.0)),
        Box("Höhle", 1 / 3, WORLD, 4 / 3, (7, 7), uids[7], (-2.0, 4.0, 20.0, 7.0)),
    )
    return make_findings(
        volume.geometry, series=entry.name, source=entry.source, model="nodule-ssd3d",
        labels=None, masks=(), classes=CLASSES, boxes=boxes,
    )  # fmt: skip


@pytest.fixture
def write(scan, tmp_path):
    """Writes the report on a scan's findings and returns its path."""
    entry, volume = scan

    def write(findings, name="findings.sr.dcm"):
        evidence = read_evidence(entry, images_with_boxes(findings, volume))
        write_sr(findings, volume, evidence, tmp_path / name)
        return tmp_path / name

    return write


def test_each_box_is_a_measurement_group_with_type_size_and_certainty(detection, write):
    groups = srread(write(detection)).content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["nodule 1", "Höhle 2"]
    assert len({group.tracking_uid for group in groups}) == 2
    said = [
        {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements()}
        for group in groups
    ]
    assert said[0] == {"Diameter": (8.25, "mm"), "Certainty of Finding": (93.75, "%")}
    assert said[1]["Diameter"][0] == pytest.approx(4 / 3, rel=1e-8)
    assert said[1]["Certainty of Finding"][0] == pytest.approx(100 / 3, rel=1e-8)
    types = [(group.finding_type.value, group.finding_type.scheme_designator) for group in groups]
    assert types == [("27925004", "SCT"), ("label-2", "99FASTMED")]
    assert {group.finding_category.value for group in groups} == {"49755003"}


def test_outlines_lie_on_the_slices_of_the_box_the_key_slice_first(detection, write, scan):
    _, volume = scan
    uids = [at.sop_instance_uid for at in volume.slices]
    first, second = srread(write(detection)).content.get_volumetric_roi_measurement_groups()

    def images(group):
        return [
            region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for region in group.roi
        ]

    assert images(first) == [uids[3], uids[2], uids[4]]
    assert images(second) == [uids[7]]
    corners = [[3.5, 4.75], [7.0, 4.75], [7.0, 7.5], [3.5, 7.5], [3.5, 4.75]]
    assert all(np.allclose(region.value, corners) for region in first.roi)
    height, width = volume.geometry.shape_zyx[1:]
    (clipped,) = second.roi
    assert clipped.value.min() >= 0
    assert (clipped.value.max(axis=0) <= (width, height)).all()


def test_outlines_on_a_multi_frame_image_name_their_frames(make_findings, tmp_path):
    make.enhanced(tmp_path / "in" / "a.dcm", make.volume(), order=[8, 7, 6, 5, 4, 3, 2, 1, 0])
    (entry,) = index(tmp_path / "in")
    volume = read_series(entry)
    uid = volume.slices[0].sop_instance_uid
    box = Box("nodule", 0.9375, WORLD, 8.25, (2, 4), uid, (3.0, 4.25, 6.5, 7.0))
    findings = make_findings(
        volume.geometry, series=entry.name, source=entry.source, model="nodule-ssd3d",
        labels=None, masks=(), classes=CLASSES, boxes=(box,),
    )  # fmt: skip
    write_sr(findings, volume, read_evidence(entry, {uid}), tmp_path / "a.sr.dcm")
    (group,) = srread(tmp_path / "a.sr.dcm").content.get_volumetric_roi_measurement_groups()
    images = [region.ContentSequence[0].ReferencedSOPSequence[0] for region in group.roi]
    assert {image.ReferencedSOPInstanceUID for image in images} == {uid}
    assert [image.ReferencedFrameNumber for image in images] == [6, 7, 5]  # the middle one first


def test_the_report_belongs_to_the_study_and_names_nobody(detection, write, scan):
    entry, _ = scan
    path = write(detection)
    image = pydicom.dcmread(entry.stored.headers[0].path)
    report = pydicom.dcmread(path)
    for keyword in ("StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate"):
        assert report[keyword].value == image[keyword].value, keyword
    assert report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert report.SeriesInstanceUID != image.SeriesInstanceUID
    assert report.PatientName == report.PatientBirthDate == ""
    content = path.read_bytes()
    assert b"DOE" not in content
    assert b"19500101" not in content


def test_a_scan_without_findings_counts_none(detection, write):
    document = srread(write(replace(detection, boxes=())))
    (group,) = document.content.get_image_measurement_groups()
    (count,) = group.get_measurements()
    assert (count.name.meaning, count.value) == ("Number of findings", 0)
    assert len(document.get_evidence()) == 1


def test_the_same_findings_give_the_same_bytes_and_others_another_uid(detection, write):
    first, again = write(detection, "a.dcm"), write(detection, "b.dcm")
    assert first.read_bytes() == again.read_bytes()
    assert f"{date.today():%Y%m%d}".encode() not in first.read_bytes()
    surer = replace(detection.boxes[0], score=0.95)
    changed = write(replace(detection, boxes=(surer, detection.boxes[1])), "c.dcm")
    assert pydicom.dcmread(changed).SOPInstanceUID != pydicom.dcmread(first).SOPInstanceUID


def test_an_image_that_the_evidence_lacks_is_named(detection, scan, tmp_path):
    entry, volume = scan
    with pytest.raises(ValueError, match="not among the evidence"):
        write_sr(detection, volume, read_evidence(entry, ()), tmp_path / "a.dcm")
