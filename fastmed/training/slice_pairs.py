"""Slice pairs: annotation files and CT slices of a data set, paired by SOPInstanceUID alone."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fastmed.readers.annotations import ImageAnnotation
from fastmed.readers.dicom_header import Header, read_header
from fastmed.readers.dicom_kind import kind_of
from fastmed.readers.voc import parse_voc
from fastmed.readers.walk import Found
from fastmed.training.prepare import Report

_UID = re.compile(r"(?=.*[0-9])[0-9.]{1,64}")
_READ_BYTES = (1 << 20) + 1  # parse_voc refuses what is longer
_DICOM = (".dcm", ".dicom", ".ima")

XML_FOUND, XML_REFUSED = "annotation files", "annotation files refused"
XML_COPIES = "annotation files that are copies of others"


@dataclass(frozen=True)
class Drawn:
    """The annotation of one slice.

    relative, path: its file. patient: the folder that it lies in, "" at the top.
    annotation: None where it was refused, which is named already.
    """

    relative: str
    path: str
    patient: str
    annotation: ImageAnnotation | None


@dataclass(frozen=True)
class CtFile:
    """One CT slice's file and UID."""

    relative: str
    path: str
    file_bytes: int
    uid: str


@dataclass
class CtFiles:
    """The CT slices of a tree.

    series: SeriesInstanceUID -> its files, each UID once. series_of: SOPInstanceUID -> series.
    skipped: SOPInstanceUID -> what it is instead of a CT slice.
    doubtful: series that hold two unlike files of one UID, and the reason.
    """

    series: dict[str, list[CtFile]] = field(default_factory=lambda: defaultdict(list))
    series_of: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)


def find_annotations(
    files: Iterable[Found], classes: Mapping[str, str], report: Report
) -> dict[str, Drawn]:
    """Reads every XML file named by a SOPInstanceUID; what is wrong with one is named in `report`.

    Returns annotations by SOPInstanceUID, refused ones among them.
    """
    drawn: dict[str, Drawn] = {}
    digests: dict[str, bytes] = {}
    for found in files:
        folder, name = os.path.split(found.relative)
        uid, suffix = os.path.splitext(name)
        if found.problem:
            report.refuse(found.relative, found.problem)
        if found.problem or suffix.lower() != ".xml" or name.startswith("._"):
            continue
        report.count(XML_FOUND)
        if not _UID.fullmatch(uid):
            refuse_annotation(report, found.relative, "its name is no SOPInstanceUID")
            continue
        try:
            with open(found.path, "rb") as file:
                content = file.read(_READ_BYTES)
        except OSError as error:
            refuse_annotation(report, found.relative, error.strerror or str(error))
            drawn.setdefault(uid, Drawn(found.relative, found.path, "", None))
            continue
        digest = hashlib.sha256(content).digest()
        if uid in digests and digests[uid] == digest:
            report.count(XML_COPIES)
            report.note(found.relative, f"the same as {drawn[uid].relative}; left out")
            continue
        if uid in drawn:
            first = drawn[uid]
            if first.annotation is not None:
                refuse_annotation(report, first.relative, f"{found.relative} has another content")
            refuse_annotation(report, found.relative, f"{first.relative} has another content")
            drawn[uid] = Drawn(first.relative, first.path, "", None)
            continue
        try:
            annotation = parse_voc(content, classes=classes)
        except ValueError as error:
            refuse_annotation(report, found.relative, str(error))
            annotation = None
        digests[uid] = digest
        drawn[uid] = Drawn(found.relative, found.path, os.path.basename(folder), annotation)
    return drawn


def find_slices(files: Iterable[Found], report: Report) -> CtFiles:
    """Reads every DICOM header and groups the CT slices by series; damage is named in `report`."""
    ct = CtFiles()
    others: dict[str, list[tuple[str, str]]] = defaultdict(list)
    no_dicom: list[str] = []
    where: dict[str, CtFile] = {}
    skipped: Counter[str] = Counter()
    for found in files:
        header = _header(found, no_dicom, report)
        if header is None:
            continue
        kind, reason = kind_of(header)
        uid, series = header.sop_instance_uid, header.series_uid
        if kind == "ct" and not (_UID.fullmatch(uid) and _UID.fullmatch(series)):
            report.refuse(found.relative, "no usable SOPInstanceUID or SeriesInstanceUID")
        elif kind == "ct":
            file = CtFile(found.relative, found.path, found.file_bytes, uid)
            if uid not in where:
                where[uid] = file
                ct.series_of[uid] = series
                ct.series[series].append(file)
                report.count("CT slices")
            elif filecmp.cmp(file.path, where[uid].path, shallow=False):
                report.note(found.relative, f"the same as {where[uid].relative}; left out")
            else:
                first = where[uid].relative
                reason = f"its SOPInstanceUID is that of {first}, its content another"
                report.refuse(found.relative, reason)
                for doubtful in (series, ct.series_of[uid]):
                    ct.doubtful[doubtful] = f"{first} and {found.relative} have one SOPInstanceUID"
        else:
            skipped[header.modality or "?" if kind == "other modality" else kind] += 1
            others[series].append((found.relative, reason))
            ct.skipped[uid] = reason
            if kind == "enhanced ct":
                report.refuse(found.relative, reason)
    report.count("CT series", len(ct.series))
    for kind, number in sorted(skipped.items()):
        report.count(f"skipped, no CT slice: {kind}", number)
    if no_dicom:
        report.count("files that are no DICOM", len(no_dicom))
    _name_strangers(ct, others, no_dicom, report)
    return ct


def _header(found: Found, no_dicom: list[str], report: Report) -> Header | None:
    try:
        if found.problem:
            raise ValueError(found.problem)
        header = read_header(found.path, found.relative, found.file_bytes)
    except OSError as error:
        report.refuse(found.relative, error.strerror or str(error))
        return None
    except ValueError as error:
        report.refuse(found.relative, str(error))
        return None
    name = os.path.basename(found.relative).lower()
    if header is None and name.endswith(_DICOM) and not name.startswith("._"):
        what = "it holds no DICOM" if found.file_bytes else "it is empty (0 bytes)"
        report.refuse(found.relative, f"named as a DICOM file, but {what}; copy it again")
    elif header is None:
        no_dicom.append(found.relative)
    return header


def _name_strangers(
    ct: CtFiles, others: dict[str, list[tuple[str, str]]], no_dicom: list[str], report: Report
) -> None:
    """Names what stands among CT slices and is none, and single slices: damage can look like it."""
    folders = {os.path.dirname(file.relative) for files in ct.series.values() for file in files}
    for relative in no_dicom:
        if os.path.dirname(relative) in folders:
            report.note(relative, "no DICOM, in a folder of CT slices; left out")
    for series in others.keys() & ct.series.keys():
        for relative, reason in others[series]:
            report.note(relative, f"{reason}, in a series of CT slices; left out")
    for files in ct.series.values():
        if len(files) == 1:
            report.note(files[0].relative, "the only slice of its series")


def refuse_annotation(report: Report, file: str, problem: str) -> None:
    """Names an annotation file that was left out, and counts it."""
    report.count(XML_REFUSED)
    report.refuse(file, problem)
