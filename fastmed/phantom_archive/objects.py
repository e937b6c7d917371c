"""DICOM objects other than CT slices: multi-frame CT, segmentations, reports, pictures, MR."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from fastmed.phantom_archive.case import Case
from fastmed.phantom_archive.editing import edit, edit_all, pixels
from fastmed.phantom_archive.truth import Expected
from fastmed.writers.dicom_uid import uid_from

_STORAGE = "1.2.840.10008.5.1.4.1.1."
ENHANCED_CT = f"{_STORAGE}2.1"
_SECONDARY_CAPTURE = f"{_STORAGE}7"
_MR = f"{_STORAGE}4"
_DOSE_REPORT = f"{_STORAGE}88.67"
_EVERY_SLICE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                "RescaleSlope", "RescaleIntercept", "RescaleType", "SliceLocation")  # fmt: skip
_OF_AN_IMAGE = ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
                "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
                "ImageType")  # fmt: skip


def enhanced(case: Case) -> list[Expected]:
    """One Enhanced CT file: pixel measures and orientation shared, a position for each frame."""
    scan = case.scan()
    _enhanced_file(case.write(scan))
    return [
        case.row(
            "ct",
            "uniform; enhanced multi-frame",
            "ok",
            source="enhanced.dcm",
            liver_ml=scan.liver_ml,
        )
    ]


def enhanced_with_missing_frames(case: Case) -> list[Expected]:
    paths = case.write(case.scan())
    middle = len(paths) // 2
    paths[middle].unlink()
    _enhanced_file(paths[:middle] + paths[middle + 1 :])
    conditions = "missing slices; enhanced multi-frame"
    return [case.row("ct", conditions, "refused", "ok", source="enhanced.dcm")]


def _enhanced_file(paths: list[Path]) -> None:
    """Turns the files of a series into one multi-frame file, and removes them."""
    import pydicom
    from pydicom.dataset import Dataset

    slices = [pydicom.dcmread(path) for path in paths]
    made = pydicom.dcmread(paths[0])
    for word in _EVERY_SLICE:
        if word in made:
            delattr(made, word)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    made.SOPInstanceUID = uid_from(f"{slices[0].SOPInstanceUID} enhanced")
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    made.PixelPresentation, made.VolumetricProperties = "MONOCHROME", "VOLUME"
    made.VolumeBasedCalculationTechnique, made.ContentQualification = "NONE", "RESEARCH"
    made.InstanceNumber, made.NumberOfFrames = "1", str(len(slices))
    made.AcquisitionDateTime, made.PresentationLUTShape = "20000101000000", "IDENTITY"
    made.BurnedInAnnotation, made.LossyImageCompression = "NO", "00"

    organisation = Dataset()
    organisation.DimensionOrganizationUID = uid_from(f"{made.SOPInstanceUID} dimension")
    made.DimensionOrganizationSequence = [organisation]
    pointer = Dataset()
    pointer.DimensionOrganizationUID = organisation.DimensionOrganizationUID
    pointer.DimensionIndexPointer = 0x00200032  # ImagePositionPatient
    pointer.FunctionalGroupPointer = 0x00209113  # PlanePositionSequence
    made.DimensionIndexSequence = [pointer]

    made.SharedFunctionalGroupsSequence = [_shared_groups(slices[0])]
    frames = [_frame_groups(k, one) for k, one in enumerate(slices)]
    made.PerFrameFunctionalGroupsSequence = frames
    made.PixelData = b"".join(one.PixelData for one in slices)
    made["PixelData"].VR = "OW"
    for path in paths:
        path.unlink()
    made.save_as(paths[0].with_name("enhanced.dcm"), enforce_file_format=True)


def _shared_groups(first):
    from pydicom.dataset import Dataset

    def item(**values):
        made = Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    kind = {"PixelPresentation": "MONOCHROME", "VolumetricProperties": "VOLUME"}
    rescale = {word: first[word].value for word in _EVERY_SLICE if word.startswith("Rescale")}
    return item(
        PixelMeasuresSequence=[
            item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
        ],
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
        PixelValueTransformationSequence=[item(**rescale)],
        CTImageFrameTypeSequence=[
            item(
                FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
                VolumeBasedCalculationTechnique="NONE",
                **kind,
            )
        ],
    )


def _frame_groups(k: int, one):
    from pydicom.dataset import Dataset

    made, content, position = Dataset(), Dataset(), Dataset()
    content.FrameAcquisitionNumber, content.DimensionIndexValues = 1, k + 1
    content.StackID, content.InStackPositionNumber = "1", k + 1
    position.ImagePositionPatient = one.ImagePositionPatient
    made.FrameContentSequence, made.PlanePositionSequence = [content], [position]
    return made


def segmentation(case: Case) -> list[Expected]:
    """A series, and beside it a DICOM SEG of its soft tissue."""
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    scan = case.scan()
    paths = case.write(scan)
    source = [pydicom.dcmread(path) for path in paths]
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="soft tissue",
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.SoftTissue,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="threshold", family=codes.DCM.ArtificialIntelligence, version="1"
        ),
    )
    series_uid = uid_from(f"{source[0].SeriesInstanceUID} segmentation")
    made = hd.seg.Segmentation(
        source_images=source,
        pixel_array=(scan.volume.voxels > 1000).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=series_uid,
        series_number=2,
        sop_instance_uid=uid_from(f"{series_uid} 1"),
        instance_number=1,
        manufacturer="fastmed",
        manufacturer_model_name="phantom",
        software_versions="1",
        device_serial_number="1",
    )
    _without_clock(made)
    made.save_as(case.folder / "segmentation.dcm", enforce_file_format=True)
    return [
        case.row("ct", "uniform", "ok", files=len(paths), liver_ml=scan.liver_ml),
        case.row("label map", "label map", "skipped", source="segmentation.dcm"),
    ]


def _without_clock(dataset) -> None:
    """Replaces what a library draws or reads from the clock, so that the same bytes come out."""
    for event in ("Content", "InstanceCreation", "Series"):
        for keyword, value in ((f"{event}Date", "20000101"), (f"{event}Time", "000000")):
            if keyword in dataset:
                setattr(dataset, keyword, value)
    if "ContributingEquipmentSequence" in dataset:
        del dataset.ContributingEquipmentSequence
    uid = uid_from(f"{dataset.SOPInstanceUID} dimension")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def localizer(case: Case) -> list[Expected]:
    """A localizer in a folder of its own, without the scan that it was made for."""
    for path in case.write(case.scan(), localizer=True)[:-1]:
        path.unlink()
    return [case.row("localizer", "localizer", "skipped", source="localizer.dcm")]


def derived_projections(case: Case) -> list[Expected]:
    """Maximum intensity projections through slabs of five slices, as a series of its own."""
    paths = case.write(case.scan())
    stack = np.stack([pixels(path) for path in paths])
    for k, path in enumerate(paths):
        slab = stack[max(k - 2, 0) : k + 3].max(axis=0)
        kind = ["DERIVED", "SECONDARY", "AXIAL", "MIP"]
        edit(path, PixelData=slab.tobytes(), ImageType=kind)
    return [case.row("derived", "derived", "skipped", files=len(paths))]


def secondary_capture(case: Case) -> list[Expected]:
    """A picture of a screen: three colours, no position in the patient."""
    path = _one_file(case, "capture.dcm")
    rows, columns = case.shape_zyx[1:]
    grey = np.clip(pixels(path)[..., None] // 8, 0, 255)
    edit(
        path,
        SOPClassUID=_SECONDARY_CAPTURE,
        Modality="OT",
        ConversionType="WSD",
        ImageType=["DERIVED", "SECONDARY"],
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        PixelData=np.broadcast_to(grey, (rows, columns, 3)).astype(np.uint8).tobytes(),
        **dict.fromkeys(_EVERY_SLICE),
    )
    return [case.row("screen capture", "secondary capture", "skipped", source=path.name)]


def dose_report(case: Case) -> list[Expected]:
    """A radiation dose report of one accumulated value."""
    from pydicom.dataset import Dataset

    def code(value: str, scheme: str, meaning: str):
        made = Dataset()
        made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
        return made

    measured = Dataset()
    measured.MeasurementUnitsCodeSequence = [code("mGy.cm", "UCUM", "mGy.cm")]
    measured.NumericValue = f"{case.rng.uniform(200, 900):.1f}"
    content = Dataset()
    content.RelationshipType, content.ValueType = "CONTAINS", "NUM"
    name = code("113813", "DCM", "CT Dose Length Product Total")
    content.ConceptNameCodeSequence, content.MeasuredValueSequence = [name], [measured]

    path = _one_file(case, "dose.dcm")
    edit(
        path,
        SOPClassUID=_DOSE_REPORT,
        Modality="SR",
        ValueType="CONTAINER",
        ContinuityOfContent="SEPARATE",
        CompletionFlag="COMPLETE",
        VerificationFlag="UNVERIFIED",
        ConceptNameCodeSequence=[code("113701", "DCM", "X-Ray Radiation Dose Report")],
        ContentSequence=[content],
        **dict.fromkeys((*_EVERY_SLICE, *_OF_AN_IMAGE)),
    )
    return [case.row("dose report", "dose report", "skipped", source=path.name)]


def magnetic_resonance(case: Case) -> list[Expected]:
    paths = case.write(case.scan())
    gone = dict.fromkeys(word for word in _EVERY_SLICE if word.startswith("Rescale"))
    edit_all(paths, SOPClassUID=_MR, Modality="MR", **gone)
    return [case.row("other modality", "other modality", "skipped", files=len(paths))]


def _one_file(case: Case, name: str) -> Path:
    """One slice of a series, to be made into something else."""
    first, *others = case.write(case.scan())
    for path in others:
        path.unlink()
    return Path(shutil.move(first, first.with_name(name)))
