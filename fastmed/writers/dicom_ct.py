"""A Volume as a DICOM CT series, one file per slice: phantoms and test scans for any reader."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from fastmed.volume import Volume
from fastmed.writers.atomic import write_atomically
from fastmed.writers.dicom_uid import digest, uid_from

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


def write_dicom_ct(
    volume: Volume,
    folder: str | os.PathLike,
    *,
    series_uid: str = "",
    patient: str = "PHANTOM^FASTMED",
    description: str = "phantom",
    localizer: bool = False,
) -> list[Path]:
    """Writes `volume` as CT Image Storage, explicit little endian: 0001.dcm, 0002.dcm, ...

    volume: int16 or uint16 voxels; its slope and intercept become the rescale, its geometry the
        positions and orientation of each slice. A tilted gantry is a sheared z axis.
    series_uid: else one that follows from the volume's name and geometry, as all other UIDs do.
    patient: a name that cannot be taken for a person's; it is written as it stands.
    localizer: also writes localizer.dcm, a coronal projection in the same series.

    Returns the paths by rising z. The same volume gives the same bytes. Raises TypeError for
    voxels of another type, ValueError where rows and columns are not at right angles, FastmedError
    where the disk refuses.
    """
    if volume.voxels.dtype not in (np.int16, np.uint16):
        raise TypeError(f"voxels are {volume.voxels.dtype}: expected int16 or uint16")
    if abs(volume.geometry.directions[1] @ volume.geometry.directions[2]) > 1e-4:
        raise ValueError("rows and columns are not at right angles: DICOM cannot hold that")
    identity = f"{volume.name}\n{volume.geometry.shape_zyx}\n{volume.geometry.affine.tolist()}"
    dataset = _series_dataset(volume, identity, series_uid, patient, description)
    folder, paths = Path(folder), []
    for k, plane in enumerate(volume.voxels):
        _place(dataset, f"{identity}\n{k}", volume.geometry.to_world((k, 0, 0)), k + 1)
        path = folder / f"{k + 1:04d}.dcm"
        write_atomically(path, [_encoded(dataset, plane)])
        paths.append(path)
    if localizer:
        path = folder / "localizer.dcm"
        write_atomically(path, [_localizer(dataset, volume, identity)])
        paths.append(path)
    return paths


def _series_dataset(volume: Volume, identity: str, series_uid: str, patient: str, description: str):
    from pydicom.dataset import Dataset, FileMetaDataset

    _, step_y, step_x = volume.geometry.spacing_mm_zyx
    _, down, along = volume.geometry.directions
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = _CT_IMAGE_STORAGE
    ds.file_meta.TransferSyntaxUID = _EXPLICIT_LITTLE_ENDIAN
    ds.file_meta.ImplementationClassUID = uid_from("fastmed")
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = _CT_IMAGE_STORAGE
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20000101", "000000", ""
    ds.ContentDate, ds.ContentTime = "20000101", "000000"
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", "fastmed", "phantom"
    ds.ReferringPhysicianName, ds.StudyDescription = "", "synthetic, no person"
    ds.SeriesDescription = description
    ds.PatientName, ds.PatientID = patient, f"PHANTOM-{digest(identity)[:12]}"
    ds.PatientBirthDate, ds.PatientSex = "", ""
    ds.KVP = ""
    ds.SliceThickness = _ds(abs(float(volume.geometry.steps_lps_mm[0] @ volume.geometry.normal)))
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = uid_from(f"{identity}\nstudy")
    ds.SeriesInstanceUID = series_uid or uid_from(f"{identity}\nseries")
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber = "1", "1", "1"
    ds.FrameOfReferenceUID = uid_from(f"{identity}\nframe of reference")
    ds.PositionReferenceIndicator = ""
    ds.ImageOrientationPatient = [_ds(c) for c in (*along, *down)]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = volume.geometry.shape_zyx[1:]
    ds.PixelSpacing = [_ds(step_y), _ds(step_x)]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(volume.voxels.dtype == np.int16)
    ds.RescaleIntercept, ds.RescaleSlope = _ds(volume.intercept), _ds(volume.slope)
    ds.RescaleType = "HU"
    return ds


def _place(dataset, identity: str, position_lps_mm: np.ndarray, number: int) -> None:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid_from(identity)
    dataset.InstanceNumber = str(number)
    dataset.ImagePositionPatient = [_ds(p) for p in position_lps_mm]


def _encoded(dataset, plane: np.ndarray) -> bytes:
    """The bytes of one DICOM file with `plane` [H, W] as its pixels."""
    stored = np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = stored + b"\0" * (len(stored) % 2)
    dataset["PixelData"].VR = "OW"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _localizer(dataset, volume: Volume, identity: str) -> bytes:
    """A coronal projection through the middle of the scan, head up, one row per slice."""
    middle = (volume.geometry.shape_zyx[0] - 1, (volume.geometry.shape_zyx[1] - 1) / 2, 0)
    step_z, _, step_x = volume.geometry.spacing_mm_zyx
    up, _, along = volume.geometry.directions
    _place(dataset, f"{identity}\nlocalizer", volume.geometry.to_world(middle), 0)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.ImageOrientationPatient = [_ds(c) for c in (*along, *-up)]
    dataset.PixelSpacing = [_ds(step_z), _ds(step_x)]
    projection = volume.voxels.mean(axis=1, dtype=np.float32)[::-1]
    dataset.Rows, dataset.Columns = projection.shape
    return _encoded(dataset, np.rint(projection).astype(volume.voxels.dtype))


def _ds(value: float):
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)
