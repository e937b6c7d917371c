"""Lung-PET-CT-Dx: its DICOM tree and VOC XML files become one paired set under UID names."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmed.boxes import boxes_to_lps
from fastmed.errors import SeriesError, UsageError
from fastmed.readers.annotations import LabelledBox
from fastmed.readers.dicom import series_of
from fastmed.readers.dicom_header import Header, read_header
from fastmed.readers.index import read_series
from fastmed.readers.walk import walk
from fastmed.slice_boxes import join_slices
from fastmed.training.class_map import class_map
from fastmed.training.placed_files import COPIED, KEPT, LINKED, place
from fastmed.training.prepare import (
    BOX_COLUMNS,
    SLICE_COLUMNS,
    Report,
    check_folders,
    write_table,
)
from fastmed.training.slice_pairs import (
    XML_REFUSED,
    CtFile,
    CtFiles,
    Drawn,
    find_annotations,
    find_slices,
    refuse_annotation,
)
from fastmed.training.slice_pictures import LUNG_WINDOW_HU, PICTURES, grey_slice, write_picture
from fastmed.volume import Volume
from fastmed.writers.contact_sheet import MAX_TILES, Tile, write_contact_sheet

CLASSES = ("A", "B", "E", "G")  # adenocarcinoma, small cell, large cell, squamous cell carcinoma
XML_USED = "annotation files used"
SERIES_COLUMNS = (
    "series", "patient", "source", "slices", "annotated", "refused", "boxes", "findings",
)  # fmt: skip
_TILES_OF_A_SERIES = 6


@dataclass
class _Tables:
    """Rows of the CSV files and tiles of the contact sheet, as they come up."""

    boxes: list[tuple]
    slices: list[tuple]
    series: list[tuple]
    tiles: list[Tile]


@dataclass(frozen=True, eq=False)
class _Set:
    """One annotated series: its scan, and the good annotations by z index of their slice."""

    uid: str
    patient: str
    source: str
    volume: Volume
    drawn: dict[int, Drawn]
    refused: frozenset[int]


def prepare_lung_pet_ct_dx(
    dicom: str | os.PathLike,
    annotations: str | os.PathLike,
    output: str | os.PathLike,
    *,
    classes: str = "nodule=all",
    copy: bool = False,
    images: str | None = None,
    window_hu: tuple[float, float] = LUNG_WINDOW_HU,
    quiet: bool = False,
) -> Report:
    """Pairs CT slices and XML files by SOPInstanceUID and writes them as data to train on.

    dicom: the DICOM tree (patient/study/series, or any other); annotations: the folders of XML
        files named by SOPInstanceUID. Where files lie decides nothing; originals stay as they are.
    output: gets scans/<SeriesInstanceUID>/<SOPInstanceUID>.dcm, whole series, and
        annotations/<SOPInstanceUID>.xml as hard links (copy=True: as copies), boxes.csv,
        slices.csv, series.csv, problems.csv and contact.png. A second call keeps what is there.
    classes: which of the classes A, B, E, G count as which label: "nodule=all",
        "adenocarcinoma=A,small-cell=B,large-cell=E,squamous=G".
    images: "png" or "bmp" also writes images/<SOPInstanceUID>.png of every annotated slice, 8 bits
        of grey, black and white at window_hu.

    Returns the figures and problems: the report of what was left out and why. Raises UsageError
    for wrong arguments, FastmedError where a disk refuses.
    """
    dicom, annotations, output = Path(dicom), Path(annotations), Path(output)
    label_by_class = class_map(classes, CLASSES)
    if images is not None and images not in PICTURES:
        raise UsageError(f"--images {images!r}: expected {' or '.join(PICTURES)}")
    if not window_hu[0] < window_hu[1]:
        raise UsageError(f"--window {window_hu[0]:g} {window_hu[1]:g}: expected LO below HI")
    check_folders(output, dicom=dicom, annotations=annotations)
    from fastmed.inference.display import tracked

    report = Report()
    files = tracked(walk(annotations, exclude=output), "reading annotations", quiet)
    drawn = find_annotations(files, label_by_class, report)
    files = tracked(walk(dicom, exclude=output), "reading headers", quiet)
    ct = find_slices(files, report)
    by_series = _paired(drawn, ct, report)
    names = list(dict.fromkeys(label_by_class.values()))
    tables = _Tables([], [], [], [])
    for number, uid in enumerate(tracked(sorted(by_series), "series", quiet)):
        one = _read(uid, ct, by_series[uid], report)
        if one is None:
            continue
        _place(one, ct.series[uid], output, copy, report)
        _add_rows(one, names, tables, report)
        if number % -(-len(by_series) // MAX_TILES) == 0:
            count = max(1, min(_TILES_OF_A_SERIES, MAX_TILES // len(by_series)))
            tables.tiles += _tiles(one, names, count, window_hu)
        for z, of_slice in one.drawn.items() if images else ():
            picture = output / "images" / f"{Path(of_slice.relative).stem}.{images}"
            write_picture(grey_slice(one.volume, z, window_hu), picture)
    write_table(output / "boxes.csv", BOX_COLUMNS, tables.boxes)
    write_table(output / "slices.csv", (*SLICE_COLUMNS, "sop_instance_uid"), tables.slices)
    write_table(output / "series.csv", SERIES_COLUMNS, tables.series)
    report.write_problems(output / "problems.csv")
    write_contact_sheet(tables.tiles, names, output / "contact.png")
    report.show(quiet)
    return report


def _paired(drawn: dict[str, Drawn], ct: CtFiles, report: Report) -> dict[str, dict[str, Drawn]]:
    """Series -> SOPInstanceUID -> annotation, refused ones too; names those without a slice."""
    report.count(XML_USED, 0)
    report.count(XML_REFUSED, 0)
    by_series: dict[str, dict[str, Drawn]] = defaultdict(dict)
    for uid, one in drawn.items():
        if uid in ct.series_of:
            by_series[ct.series_of[uid]][uid] = one
        elif one.annotation is not None:
            what = ct.skipped.get(uid, "no CT slice has this SOPInstanceUID")
            refuse_annotation(report, one.relative, what)
    return {
        uid: ones for uid, ones in by_series.items() if any(d.annotation for d in ones.values())
    }


def _read(uid: str, ct: CtFiles, drawn: dict[str, Drawn], report: Report) -> _Set | None:
    """Reads a series as every reader of fastmed does; None where that is refused, and named."""
    files = ct.series[uid]
    source = os.path.commonpath([os.path.dirname(file.relative) for file in files])
    try:
        if uid in ct.doubtful:
            raise SeriesError(ct.doubtful[uid])
        entries = series_of(_headers(files), strict=True)
        if len(entries) != 1:
            raise SeriesError(f"{len(entries)} studies or volumes with one SeriesInstanceUID")
        volume = read_series(entries[0])
        if volume.is_resliced:
            raise SeriesError("its slices do not lie on the planes of the volume")
    except (SeriesError, OSError, ValueError) as error:
        report.count("annotated series refused")
        report.refuse(source or ".", f"series {uid}: {error}")
        for one in drawn.values():
            if one.annotation is not None:
                refuse_annotation(report, one.relative, f"its series {uid} is refused")
        return None
    patient = _patient_id(files[0].path) or uid
    z_of = {s.sop_instance_uid: int(s.z_index) for s in volume.slices}
    good, refused = {}, set()
    for sop, one in sorted(drawn.items(), key=lambda item: z_of[item[0]]):
        if one.annotation is None:
            refused.add(z_of[sop])
            continue
        size, of_slice = (one.annotation.width, one.annotation.height), volume.voxels.shape[:0:-1]
        if size != of_slice:
            words = "it is of an image of {} x {}, its slice has {} x {} pixels"
            refuse_annotation(report, one.relative, words.format(*size, *of_slice))
            refused.add(z_of[sop])
        else:
            good[z_of[sop]] = one
    _name_other_patients(good.values(), patient, report)
    return _Set(uid, patient, source, volume, good, frozenset(refused))


def _headers(files: list[CtFile]) -> list[Header]:
    headers = [read_header(file.path, file.relative, file.file_bytes) for file in files]
    if None in headers:
        raise SeriesError("its files have changed since their headers were read")
    return headers


def _patient_id(path: str) -> str:
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"], force=True)
    return str(header.get("PatientID", "") or "").strip()


def _name_other_patients(drawn, patient: str, report: Report) -> None:
    """Folders of XML files are named A0001 where the PatientID is Lung_Dx-A0001."""
    folders = Counter((os.path.dirname(one.relative), one.patient) for one in drawn)
    for (folder, name), number in folders.items():
        if name and not (patient == name or patient.endswith(f"-{name}")):
            words = f"{number} annotations in the folder {name} are of slices of patient {patient}"
            report.note(folder, words)


def _place(one: _Set, files: list[CtFile], output: Path, copy: bool, report: Report) -> None:
    """Puts the series and its annotations under UID names, and counts how."""
    folder = output / "scans" / one.uid
    _remove_unfinished(folder)
    how: Counter[str] = Counter()
    for file in files:
        how[place(file.path, folder / f"{file.uid}.dcm", copy=copy)] += 1
    for drawn in one.drawn.values():
        target = output / "annotations" / Path(drawn.relative).name
        how[place(drawn.path, target.with_suffix(".xml"), copy=copy)] += 1
    for word in (LINKED, COPIED, KEPT):
        if how[word]:
            report.count(f"files {word}", how[word])
    if not copy and how[COPIED]:
        report.note(
            one.source, f"{how[COPIED]} files copied: the disk of --output cannot link them"
        )
    strangers = {path.name for path in folder.iterdir()} - {f"{file.uid}.dcm" for file in files}
    if strangers:
        report.refuse(
            f"scans/{one.uid}",
            f"holds {len(strangers)} other files, such as {min(strangers)}; remove them, or name a "
            "new --output",
        )


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed run left half-written, which readers could take for a slice."""
    for path in folder.glob(".*.dcm.*.tmp"):
        path.unlink()


def _add_rows(one: _Set, names: list[str], tables: _Tables, report: Report) -> None:
    path = f"scans/{one.uid}"
    uid_of = {int(s.z_index): s.sop_instance_uid for s in one.volume.slices}
    rows = []
    for z, drawn in one.drawn.items():
        boxes = _unlike(drawn, report)
        rows += [(z, box) for box in boxes]
        cells = [(box.label, *box.box_px) for box in boxes] or [("",) * 5]
        tables.slices += [(path, one.patient, z, *found, uid_of[z]) for found in cells]
    joined = _joined(one, rows, names)
    tables.boxes += [(path, one.patient, label, *box) for label, box in joined]
    # Where annotations were refused, "nothing found" would be a guess.
    if not joined and not one.refused:
        tables.boxes.append((path, one.patient, *("",) * 7))
    if one.refused:
        report.note(
            one.source,
            f"series {one.uid}: {len(one.refused)} of {len(one.refused) + len(one.drawn)} "
            "annotations are refused; boxes.csv may lack what they show",
        )
    slices, annotated = len(one.volume.slices), len(one.drawn)
    tables.series.append(
        (one.uid, one.patient, one.source, slices, annotated, len(one.refused), len(rows),
         len(joined))
    )  # fmt: skip
    report.count(XML_USED, annotated)
    report.count("annotated series written")
    report.count("slices without annotation in them", slices - annotated - len(one.refused))
    report.count("boxes on slices", len(rows))
    report.count("boxes in 3D", len(joined))


def _unlike(drawn: Drawn, report: Report) -> list[LabelledBox]:
    """The boxes of one slice, each once."""
    boxes = list(dict.fromkeys(drawn.annotation.boxes))
    if repeated := len(drawn.annotation.boxes) - len(boxes):
        report.note(drawn.relative, f"{repeated} of its boxes are there twice; taken once")
    return boxes


def _joined(one: _Set, rows, names: list[str]) -> list[tuple[str, tuple[float, ...]]]:
    """Label and box in LPS mm of each finding.

    A slice whose annotation was refused counts as absent, so that it does not cut a finding in two.
    """
    if not rows:
        return []
    planes = np.array([z for z, _ in rows])
    known = np.array([z for z in range(len(one.volume.slices)) if z not in one.refused])
    labels = np.array([names.index(box.label) for _, box in rows])
    boxes, group = join_slices(
        np.searchsorted(known, planes), [box.box_px for _, box in rows], labels
    )
    for k in range(len(boxes)):
        inside = planes[group == k]
        boxes[k, [2, 5]] = inside.min() - 0.5, inside.max() + 0.5
    label_of = dict(zip(group.tolist(), labels.tolist(), strict=True))
    world = boxes_to_lps(boxes, one.volume.geometry)
    return [(names[label_of[k]], tuple(map(float, box))) for k, box in enumerate(world)]


def _tiles(one: _Set, names: list[str], count: int, window_hu) -> list[Tile]:
    """Slices with boxes, evenly spread; the patient is not named on them."""
    planes = [z for z, drawn in one.drawn.items() if drawn.annotation.boxes]
    chosen = sorted({int(k) for k in np.linspace(0, len(planes) - 1, count)}) if planes else []
    return [
        Tile(
            grey_slice(one.volume, z, window_hu),
            tuple((names.index(b.label) + 1, b.box_px) for b in one.drawn[z].annotation.boxes),
            f"…{one.uid[-12:]}  slice {z}",
        )
        for z in (planes[k] for k in chosen)
    ]
