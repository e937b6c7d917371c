"""Scan factories for tests: any kind of sane or damaged CT series, written from small arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmed.geometry import Geometry
from fastmed.volume import Volume
from fastmed.writers.dicom_ct import write_dicom_ct

SHAPE = (9, 12, 14)


def volume(
    shape_zyx=SHAPE,
    spacing_mm_zyx=(2.0, 0.75, 0.75),
    origin_lps_mm=(-20.0, -30.0, -110.0),
    tilt_degrees: float = 0.0,
    seed: int = 0,
    dtype=np.int16,
    slope: float = 1.0,
    intercept: float = -1024.0,
) -> Volume:
    """A CT of random tissue with a rim of air; tilted slices lean along the patient's y axis."""
    rng = np.random.default_rng(seed)
    stored = rng.integers(900, 1200, shape_zyx)
    stored[:, :2] = 24
    z, y, x = spacing_mm_zyx
    lean = np.radians(tilt_degrees)
    steps = [(0, 0, z / np.cos(lean)), (0, y * np.cos(lean), -y * np.sin(lean)), (x, 0, 0)]
    geometry = Geometry.from_axes(shape_zyx, origin_lps_mm, steps)
    return Volume(stored.astype(dtype), geometry, slope, intercept, name=f"test-{seed}")


def series(folder, scan: Volume | None = None, **options) -> list[Path]:
    """Writes a CT series and returns its files by rising z."""
    return write_dicom_ct(scan or volume(), folder, **options)


def edit(path, **attributes) -> None:
    """Sets attributes of a DICOM file by keyword; None removes one."""
    import pydicom

    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
            if dataset[keyword].VR == "US or SS":
                dataset[keyword].VR = "SS" if dataset.PixelRepresentation else "US"
    if "SOPInstanceUID" in attributes:
        dataset.file_meta.MediaStorageSOPInstanceUID = attributes["SOPInstanceUID"] or "1.2.3"
    if "SOPClassUID" in attributes:
        dataset.file_meta.MediaStorageSOPClassUID = attributes["SOPClassUID"]
    dataset.save_as(path, enforce_file_format=True)


def edit_all(paths, **attributes) -> None:
    """Sets the same attributes in several DICOM files."""
    for path in paths:
        edit(path, **attributes)


def move(path, *, by_lps_mm) -> None:
    """Shifts the ImagePositionPatient of one slice."""
    import pydicom

    position = pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient
    edit(
        path,
        ImagePositionPatient=[round(p + d, 6) for p, d in zip(position, by_lps_mm, strict=True)],
    )


def truncate(path, *, lose_bytes: int) -> None:
    """Cuts the end of a file off."""
    path = Path(path)
    path.write_bytes(path.read_bytes()[:-lose_bytes])


def transcode(path, transfer_syntax: str) -> None:
    """Rewrites a DICOM file in another transfer syntax, compressing it where that asks for it."""
    import pydicom
    from pydicom.uid import UID

    dataset, syntax = pydicom.dcmread(path), UID(transfer_syntax)
    if transfer_syntax in _IMAGECODECS:
        _compress(dataset, transfer_syntax)
        dataset.save_as(path)
        return
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
        return
    for _ in dataset.iterall():  # decodes each value, so that it is written in the new byte order
        pass
    if not syntax.is_little_endian:
        dataset.PixelData = dataset.pixel_array.byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    with open(path, "wb") as file:
        pydicom.dcmwrite(
            file,
            dataset,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            enforce_file_format=True,
        )


_IMAGECODECS = {  # what pydicom does not write: (encoder of imagecodecs, its arguments)
    "1.2.840.10008.1.2.4.50": ("jpeg8", {"level": 100}),
    "1.2.840.10008.1.2.4.57": ("ljpeg", {"bitspersample": 16}),
    "1.2.840.10008.1.2.4.70": ("ljpeg", {"bitspersample": 16}),
    "1.2.840.10008.1.2.4.201": ("htj2k", {}),
}


def _compress(dataset, transfer_syntax: str) -> None:
    import imagecodecs
    import pydicom

    name, options = _IMAGECODECS[transfer_syntax]
    pixels = dataset.pixel_array
    if name != "htj2k":  # it alone knows a sign
        pixels = pixels.view(f"u{pixels.itemsize}")
    stream = getattr(imagecodecs, f"{name}_encode")(pixels, **options)
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.PixelData = pydicom.encaps.encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def second(files, folder, *, by_lps_mm=(0.0, 0.0, 0.0), values: int = 0, **attributes) -> list:
    """Copies slices of a series into `folder` under new UIDs: another acquisition of it, say.

    by_lps_mm: shifts their positions; values: is added to the stored pixels.
    """
    import pydicom

    folder, copies = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for k, file in enumerate(files):
        copies.append(folder / f"second-{k + 1:04d}.dcm")
        dataset = pydicom.dcmread(file)
        pixels = dataset.pixel_array + np.asarray(values, dataset.pixel_array.dtype)
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(copies[-1])
        edit(copies[-1], SOPInstanceUID=f"{dataset.SOPInstanceUID[:50]}.2.{k}", **attributes)
        move(copies[-1], by_lps_mm=by_lps_mm)
    return copies


def enhanced(
    path, *scans: Volume, legacy: bool = False, order=None, transfer_syntax: str = "", **attributes
) -> Path:
    """Writes Volumes as one multi-frame CT, each a stack of its own, and returns its path.

    order: of the frames, as indices into those of all scans; legacy: as a converted series;
    attributes: of the file, by keyword.
    """
    import pydicom
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    path = Path(path)
    singles = [
        (number, pydicom.dcmread(file))
        for number, scan in enumerate(scans, 1)
        for file in write_dicom_ct(scan, path.parent / f"{path.name}-{number}")
    ]
    for number in range(1, len(scans) + 1):
        for file in (path.parent / f"{path.name}-{number}").iterdir():
            file.unlink()
        (path.parent / f"{path.name}-{number}").rmdir()
    singles = [singles[k] for k in order] if order is not None else singles

    def macro(groups: Dataset, sequence: str, **values) -> None:
        item = Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        setattr(groups, sequence, Sequence([item]))

    frames = []
    for number, single in singles:
        groups = Dataset()
        macro(groups, "PlanePositionSequence", ImagePositionPatient=single.ImagePositionPatient)
        macro(groups, "FrameContentSequence", StackID=str(number), FrameAcquisitionNumber=1)
        frames.append(groups)
    dataset = singles[0][1]
    shared = Dataset()
    macro(
        shared, "PlaneOrientationSequence", ImageOrientationPatient=dataset.ImageOrientationPatient
    )
    macro(
        shared,
        "PixelMeasuresSequence",
        PixelSpacing=dataset.PixelSpacing,
        SliceThickness=dataset.SliceThickness,
    )
    macro(shared, "CTImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    macro(
        shared,
        "PixelValueTransformationSequence",
        RescaleSlope=dataset.RescaleSlope,
        RescaleIntercept=dataset.RescaleIntercept,
        RescaleType="HU",
    )
    pixels = [single.PixelData[: 2 * dataset.Rows * dataset.Columns] for _, single in singles]
    for keyword in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
        *("RescaleSlope", "RescaleIntercept", "RescaleType", "AcquisitionNumber"),
    ):
        delattr(dataset, keyword)
    dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.2.{2 if legacy else 1}"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.NumberOfFrames = len(frames)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.PixelData = b"".join(pixels)
    dataset.save_as(path, enforce_file_format=True)
    if transfer_syntax:
        transcode(path, transfer_syntax)
    if attributes:
        edit(path, **attributes)
    return path
