"""findings.sr.dcm: the boxes of a scan as a DICOM measurement report (TID 1500)."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from datetime import date, time

import numpy as np

import fastmed
from fastmed.findings import Box, Findings
from fastmed.volume import Volume
from fastmed.writers.atomic import write_atomically
from fastmed.writers.dicom_uid import uid_from
from fastmed.writers.slice_boxes import SliceBoxes, boxes_by_slice
from fastmed.writers.tables import findings_dict

_SERIES_NUMBER = 9001  # behind the series that a scanner numbers
_OWN_CODES = "99FASTMED"
_DATES = ("Content", "Acquisition", "Series", "Study")


def write_sr(
    findings: Findings, volume: Volume, evidence: Sequence, path: str | os.PathLike
) -> None:
    """Writes a Comprehensive 3D SR with one measurement group (TID 1411) per box.

    A group holds the finding's label as its type (the label's SNOMED CT code, else a private one),
    a tracking identifier such as "nodule 1", its outline on each slice that it lies on, the key
    slice first, its diameter in mm and its certainty in per cent (DCM 111012). A scan without boxes
    has one group that counts 0 findings.

    evidence: pydicom datasets of all images that a box lies on, as
        `readers.dicom_evidence.read_evidence` returns them; the report is of their study and
        patient. Its dates are those of the first image, its UIDs follow from what it says, so that
        the same input gives the same bytes.

    Raises ValueError where an image is missing from the evidence, FastmedError where the disk
    refuses.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    model = _text(findings.model)
    identity = _identity(findings, evidence)
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=uid_from(f"fastmed\n{findings.model}"), name="fastmed", model_name=model
    )
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device, observer_identifying_attributes=device
    )
    classes = {image.SOPInstanceUID: image.SOPClassUID for image in evidence}
    slices = [at for at in boxes_by_slice(findings, volume) if at.sop_instance_uid]
    if missing := {at.sop_instance_uid for at in slices} - classes.keys():
        raise ValueError(f"images {', '.join(sorted(missing))}: not among the evidence")
    regions = _regions(findings, slices, classes)
    groups = [
        _group(box, number, regions[number], findings, identity)
        for number, box in enumerate(findings.boxes, 1)
    ]
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ComputedTomography,
        imaging_measurements=groups or [_nothing_found(identity)],
    )
    day, hour = _when(evidence[0])
    document = sr.Comprehensive3DSR(
        evidence=evidence,
        content=report,
        series_instance_uid=uid_from(f"{identity}\nseries"),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=uid_from(f"{identity}\ndocument"),
        instance_number=1,
        manufacturer="fastmed",
        manufacturer_model_name=model,
        software_versions=fastmed.__version__,
        series_description=_text(f"{findings.model}: research use"),
        is_complete=True,
        content_date=day,
        content_time=hour,
        specific_character_set="ISO_IR 192",
    )
    document.InstanceCreationDate, document.InstanceCreationTime = day, hour
    for equipment in document.ContributingEquipmentSequence:  # the time of writing is no result
        equipment.pop("ContributionDateTime", None)
    file = io.BytesIO()
    document.save_as(file, enforce_file_format=True)
    write_atomically(path, [file.getvalue()])


def images_with_boxes(findings: Findings, volume: Volume) -> set[str]:
    """Returns the SOPInstanceUIDs of all images that a box lies on."""
    return {at.sop_instance_uid for at in boxes_by_slice(findings, volume)} - {""}


def _group(box: Box, number: int, regions: list, findings: Findings, identity: str):
    from highdicom import sr
    from pydicom.sr.codedict import codes

    percent = 100 * box.score
    measurements = [
        sr.Measurement(codes.SCT.Diameter, _decimal(box.diameter_mm), codes.UCUM.Millimeter),
        sr.Measurement(codes.DCM.CertaintyOfFinding, _decimal(percent), codes.UCUM.Percent),
    ]
    settings = {
        "tracking_identifier": sr.TrackingIdentifier(
            uid=uid_from(f"{identity}\n{number}"), identifier=_text(f"{box.label} {number}")
        ),
        "finding_category": codes.SCT.MorphologicallyAbnormalStructure,
        "finding_type": _type_of(box.label, findings),
        "algorithm_id": sr.AlgorithmIdentification(_text(findings.model), fastmed.__version__),
        "measurements": measurements,
    }
    if not regions:
        return sr.MeasurementsAndQualitativeEvaluations(**settings)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_regions=regions, **settings
    )


def _regions(findings: Findings, slices: list[SliceBoxes], classes: dict) -> dict[int, list]:
    """By the number of a finding: its outline on each of its slices, the key slice first."""
    from highdicom import sr

    regions: dict[int, list] = {number: [] for number in range(1, len(findings.boxes) + 1)}
    for at in slices:
        for box in at.boxes:
            frames = [at.frame] if at.frame else None
            source = sr.SourceImageForRegion(
                classes[at.sop_instance_uid], at.sop_instance_uid, frames
            )
            polyline = sr.GraphicTypeValues.POLYLINE
            region = sr.ImageRegion(polyline, _outline(box.box_px, at), source)
            # First, for viewers that show the first one alone.
            regions[box.finding].insert(0 if box.is_key else len(regions[box.finding]), region)
    return regions


def _outline(box_px, at: SliceBoxes) -> np.ndarray:
    """[5, 2] (column, row) around the box; DICOM's pixels start at their corner, ours at -0.5."""
    x1, y1, x2, y2 = np.add(box_px, 0.5).clip(0, (at.width, at.height) * 2)
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])


def _nothing_found(identity: str):
    from highdicom import sr
    from pydicom.sr.codedict import codes

    count = sr.CodedConcept("findings", _OWN_CODES, "Number of findings")
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid_from(f"{identity}\nscan"), "scan"),
        measurements=[sr.Measurement(count, 0, codes.UCUM.NoUnits)],
    )


def _type_of(label: str, findings: Findings):
    from highdicom import sr

    for known in findings.classes:
        if known.name == label and re.fullmatch(r"[0-9]{6,16}", known.snomed_ct):
            return sr.CodedConcept(known.snomed_ct, "SCT", _text(label))
    value = next((known.value for known in findings.classes if known.name == label), 0)
    return sr.CodedConcept(f"label-{value}", _OWN_CODES, _text(label))


def _identity(findings: Findings, evidence: Sequence) -> str:
    """All that the report says, as text; where the files lie is no part of it."""
    said = findings_dict(findings)
    said = {name: said[name] for name in ("series", "model", "boxes")}
    images = [image.SOPInstanceUID for image in evidence]
    return json.dumps([fastmed.__version__, evidence[0].StudyInstanceUID, images, said])


def _when(image) -> tuple[date, time]:
    """The date and time of an image; 1970 where its header knows none."""
    from pydicom.valuerep import DA, TM

    for name in _DATES:
        if day := image.get(f"{name}Date"):
            return DA(day), TM(image.get(f"{name}Time") or "000000")
    return DA("19700101"), TM("000000")


def _decimal(value: float) -> float:
    """The nearest number that a decimal string of 16 characters holds."""
    return float(f"{value:.9g}")


def _text(text: str) -> str:
    """A text that DICOM's long string takes: 64 printable characters without a backslash."""
    plain = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return plain.encode(errors="replace").decode()[:64].strip() or "unnamed"
