"""DICOM evidence: what a report on a series must know of its images, read from their headers."""

from __future__ import annotations

import re
from collections.abc import Collection

from fastmed.errors import SeriesError
from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_quiet import quietly
from fastmed.readers.reread import opened
from fastmed.readers.series import Series, one_line

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# By these an archive knows where a report belongs. Names and birth dates stay behind.
_KEPT = (
    *("PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
    *("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime"),
    *("ContentDate", "ContentTime"),
)
_EMPTY = ("PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName")
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def read_evidence(series: Series, sop_instance_uids: Collection[str]) -> list:
    """Reads what a report needs of the named images of a DICOM series, by rising z.

    sop_instance_uids: where empty, the middle image stands for the series.

    Returns pydicom datasets of UIDs, PatientID, accession number, and dates; names and birth date
    are empty, what is no sound value is too. Raises SeriesError for a scan that is no DICOM, for an
    image that cannot be read or lacks a UID.
    """
    if series.format != "dicom":
        raise SeriesError(f"{series.source} is no DICOM, so that it has no images to refer to")
    with opened(series) as entry:
        headers = entry.stored.headers
        by_uid = {header.sop_instance_uid: header for header in headers}  # frames share theirs
        wanted = [h for uid, h in by_uid.items() if uid in sop_instance_uids]
        return [_evidence(header) for header in wanted or [headers[len(headers) // 2]]]


def _evidence(header: Header):
    import pydicom

    with quietly():
        try:
            source = pydicom.dcmread(
                header.path,
                stop_before_pixels=True,
                specific_tags=["SpecificCharacterSet", *_UIDS, *_KEPT],
                force=True,
            )
            return _without_names(source, header.relative)
        except SeriesError:
            raise
        except Exception as error:  # pydicom raises whatever its parsers meet in damaged bytes
            reason = one_line(error, header.path, header.relative)
            raise SeriesError(f"{header.relative}: {reason}") from error


def _without_names(source, relative: str):
    from pydicom.dataset import Dataset

    kept = Dataset()
    for keyword in _UIDS:
        uid = str(source.get(keyword, ""))
        if not _UID.fullmatch(uid) or len(uid) > 64:
            raise SeriesError(f"{relative} has no {keyword}")
        setattr(kept, keyword, uid)
    for keyword in _EMPTY:
        setattr(kept, keyword, "")
    for keyword in _KEPT:
        try:
            setattr(kept, keyword, _sound(keyword, str(source.get(keyword, "") or "")))
        except ValueError:
            setattr(kept, keyword, "")
    return kept


def _sound(keyword: str, text: str) -> str:
    """The text, where it is what its keyword says. Raises ValueError where it is not."""
    from pydicom.valuerep import DA, TM

    if text and keyword.endswith(("Date", "Time")):
        (DA if keyword.endswith("Date") else TM)(text)
    return text
