"""Edits of DICOM files on disk, from which the damages of a series are put together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def edit(path: Path, **attributes) -> None:
    """Sets attributes of a DICOM file by keyword; None removes one."""
    import pydicom

    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(path, enforce_file_format=True)


def edit_all(paths: Iterable[Path], **attributes) -> None:
    for path in paths:
        edit(path, **attributes)


def attribute(path: Path, keyword: str):
    import pydicom

    return pydicom.dcmread(path, specific_tags=[keyword], stop_before_pixels=True)[keyword].value


def move(path: Path, by_lps_mm) -> None:
    """Shifts the position of a slice."""
    position = attribute(path, "ImagePositionPatient")
    edit(
        path,
        ImagePositionPatient=[
            round(float(p + d), 4) for p, d in zip(position, by_lps_mm, strict=True)
        ],
    )


def join(paths: Iterable[Path], to: Path, **attributes) -> None:
    """Moves slices into the series of another one: study, series and frame of reference."""
    words = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    edit_all(paths, **{word: attribute(to, word) for word in words}, **attributes)


def pixels(path: Path) -> np.ndarray:
    """The stored values of an uncompressed slice."""
    import pydicom

    return pydicom.dcmread(path).pixel_array


def new_uid(path: Path) -> str:
    """Another UID that follows from the one that a slice has."""
    from fastmed.writers.dicom_uid import uid_from

    return uid_from(f"{attribute(path, 'SOPInstanceUID')} again")


def cut_short(path: Path, share: float) -> None:
    """Cuts off the end of a file; `share` of it remains."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
