"""Layouts: which cases lie in a data folder, whichever of the known ways it is laid out in."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from fastmed.errors import DataError, UsageError
from fastmed.spec import Spec
from fastmed.training import box_tables
from fastmed.training.cases import SUBSETS, Case, suffixes, without_suffix

LAYOUTS = (
    """\
  image/ + label/        equal names: image/a.nii.gz and label/a.nii.gz; also image/a/a.nii.gz and
                         label/a/a.nii.gz; image/a/ may be a folder of DICOM files
  imagesTr/ + labelsTr/  equal names, or images with the ending _0000
  <case>/ct.*            and <case>/labels.*; <case>/ct/ may be a folder of DICOM files
  labels.csv             columns path, patient, label; or --data names the CSV file itself
  train.txt, val.txt, test.txt
                         a line per image: image TAB mask
of a detection
"""
    + box_tables.LAYOUTS
)
_TABLE = "labels.csv"
_PATIENTS = "patients.csv"
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def discover(data: str | Path, spec: Spec, *, patient_pattern: str | None = None) -> list[Case]:
    """Finds the cases of a data set, sorted by name.

    data: a folder in one of LAYOUTS, or a CSV file. Where a list (labels.csv, train.txt) lies
        beside image folders, the list counts.
    patient_pattern: a regular expression whose first group is the patient in a case's name, such
        as "(.+)-[0-9]+" for slices named patient-7.png.

    Images and labels are paired by name alone. The patient is taken from the CSV's column, else
    from a `patients.csv` (name, patient) in the folder, else by `patient_pattern`, else from a
    DICOM folder's PatientID, else it is the case's name.

    Raises UsageError where the layout is none or several of the known, DataError that names every
    missing mask, mask without image, pair of files with one name and unreadable line.
    """
    data = Path(data)
    if not data.exists():
        raise UsageError(f"--data {data}: no such file or folder")
    problems: list[str] = []
    cases = _cases(data, spec, problems)
    _name_copies(cases, problems)
    if problems:
        raise DataError.listing(f"{data}: {len(problems)} problems", problems)
    if not cases:
        raise DataError(f"{data}: no cases found; known layouts are\n{LAYOUTS}")
    folder = data.parent if data.is_file() else data
    return sorted(_with_patients(cases, folder, patient_pattern), key=lambda case: case.name)


def _cases(data: Path, spec: Spec, problems: list[str]) -> list[Case]:
    if spec.task == "detection":
        return _named(box_tables.listed_cases(data, spec, problems), spec)
    if data.is_file():
        if data.suffix.lower() != ".csv":
            raise UsageError(f"--data {data}: expected a folder or a CSV file")
        return _from_table(data, spec, problems)
    has = {
        "labels.csv": (data / _TABLE).is_file(),
        "train.txt": any((data / f"{subset}.txt").is_file() for subset in SUBSETS),
        "image/ + label/": (data / "image").is_dir(),
        "imagesTr/ + labelsTr/": (data / "imagesTr").is_dir(),
        "<case>/ct.* + labels.*": any(_scan_of(folder, spec) for folder in _folders(data)),
    }
    lists = [layout for layout in ("labels.csv", "train.txt") if has[layout]]
    found = lists or [layout for layout, is_there in has.items() if is_there]
    if len(found) != 1:
        what = f"fits several layouts ({', '.join(found)})" if found else "fits no known layout"
        raise UsageError(f"--data {data}: {what}; known are\n{LAYOUTS}")
    layout = found[0]
    if spec.task == "classification" and layout != "labels.csv":
        raise UsageError(f"--data {data}: a classification takes labels.csv, found {layout}")
    if layout == "labels.csv":
        return _from_table(data / _TABLE, spec, problems)
    if layout == "train.txt":
        return _from_lines(data, spec, problems)
    if layout == "image/ + label/":
        images = _files(data / "image", spec, problems, scans=True)
        return _paired(images, _files(data / "label", spec, problems), "label/", problems)
    if layout == "imagesTr/ + labelsTr/":
        images = _files(data / "imagesTr", spec, problems, scans=True)
        labels = _files(data / "labelsTr", spec, problems)
        return _paired(_first_channels(images, labels, problems), labels, "labelsTr/", problems)
    return _from_case_folders(data, spec, problems)


def _folders(data: Path) -> list[Path]:
    return [path for path in _listed(data) if path.is_dir()]


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder by name, without hidden files."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(folder: Path, spec: Spec, problems: list[str], *, scans: bool = False) -> dict:
    """Case name -> file (or, of scans, DICOM folder) in image/ or label/."""
    found: dict[str, Path] = {}
    for path in _listed(folder):
        name, target = path.name, path
        if path.is_dir():
            inside = _listed(path)
            own = [p for p in inside if without_suffix(p.name, suffixes(spec)) == path.name]
            if len(own) > 1:
                problems.append(f"{_two(own)}: two files of one name")
                continue
            is_dicom = scans and spec.modality == "ct" and any(p.is_file() for p in inside)
            if not own and not is_dicom:
                problems.append(f"{folder.name}/{name}: a folder without {name}.*")
                continue
            target = own[0] if own else path
        else:
            name = without_suffix(path.name, suffixes(spec))
            if name is None:
                continue
        if name in found:
            problems.append(f"{_two([found[name], target])}: two files of one name")
        found[name] = target
    return found


def _two(paths: list[Path]) -> str:
    return " and ".join(f"{path.parent.name}/{path.name}" for path in paths)


def _first_channels(images: dict, labels: dict, problems: list[str]) -> dict:
    """The images by the names of their labels: nnU-Net adds _0000 for its first channel."""
    renamed = {}
    for name, path in images.items():
        channel = None if name in labels else _CHANNEL.fullmatch(name)
        if channel and channel[2] != "0000":
            problems.append(f"{path.name}: a second channel; fastmed takes images of one")
            continue
        plain = channel[1] if channel else name
        if plain in renamed:
            problems.append(f"{_two([renamed[plain], path])}: two files of one name")
        renamed[plain] = path
    return renamed


def _paired(images: dict, labels: dict, where: str, problems: list[str]) -> list[Case]:
    for name in sorted(images.keys() - labels.keys()):
        problems.append(f"{name}: no mask of this name in {where}")
    for name in sorted(labels.keys() - images.keys()):
        problems.append(f"{name}: a mask in {where} without an image of this name")
    return [Case(name, "", images[name], labels[name]) for name in images.keys() & labels.keys()]


def _scan_of(folder: Path, spec: Spec) -> list[Path]:
    """What is called ct in a case's folder."""
    inside = _listed(folder)
    files = [p for p in inside if p.is_file() and without_suffix(p.name, suffixes(spec)) == "ct"]
    return files + [p for p in inside if p.is_dir() and p.name == "ct"]


def _from_case_folders(data: Path, spec: Spec, problems: list[str]) -> list[Case]:
    cases = []
    for folder in _folders(data):
        scans = _scan_of(folder, spec)
        masks = [p for p in _listed(folder) if without_suffix(p.name, suffixes(spec)) == "labels"]
        for found, name in ((scans, "ct"), (masks, "labels")):
            if len(found) != 1:
                number = "two files" if found else "no file"
                problems.append(f"{folder.name}: {number} of the name {name}.*")
        if len(scans) == len(masks) == 1:
            cases.append(Case(folder.name, "", scans[0], masks[0]))
    return cases


def _from_table(table: Path, spec: Spec, problems: list[str]) -> list[Case]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = [(column or "").strip().lower() for column in reader.fieldnames or []]
        if missing := {"path", "label"} - set(columns):
            raise DataError(f"{table}: no column {', '.join(sorted(missing))}; found {columns}")
        reader.fieldnames = columns
        rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]
    entries = []
    for line, row in enumerate(rows, start=2):
        where = f"{table.name} line {line}"
        image = table.parent / row["path"]
        if not row["path"] or not image.exists():
            problems.append(f"{where}: no such file: {row['path'] or '(empty)'}")
            continue
        subset = row.get("subset", "")
        if subset not in ("", *SUBSETS):
            problems.append(f"{where}: subset {subset!r}: expected train, val or test")
        case = Case("", row.get("patient", ""), image, subset=subset)
        if spec.task == "classification":
            target = _target(row["label"], spec)
            if target is None:
                problems.append(f"{where}: label {row['label']!r}: expected {_classes(spec)}")
            entries.append((row["path"], replace(case, target=target)))
        else:
            label = table.parent / row["label"] if row["label"] else None
            if label is not None and not label.is_file():
                problems.append(f"{where}: no such mask: {row['label']}")
            entries.append((row["path"], replace(case, label=label)))
    return _named(entries, spec)


def _target(text: str, spec: Spec) -> int | None:
    names = [spec.negative, *(label.name for label in spec.labels)]
    if text in names:
        return names.index(text)
    return int(text) if text.isdecimal() and int(text) < len(names) else None


def _classes(spec: Spec) -> str:
    names = [spec.negative, *(label.name for label in spec.labels)]
    return ", ".join(f"{value} or {name}" for value, name in enumerate(names))


def _from_lines(data: Path, spec: Spec, problems: list[str]) -> list[Case]:
    entries = []
    for subset in SUBSETS:
        path = data / f"{subset}.txt"
        lines = path.read_text("utf-8-sig").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            image, tab, mask = line.partition("\t")
            image, mask = image.strip(), mask.strip()
            files = [data / image] + ([data / mask] if tab else [])
            absent = [str(file.relative_to(data)) for file in files if not file.exists()]
            if absent or (tab and not mask):
                named = ", ".join(absent) or "no mask after the TAB"
                problems.append(f"{path.name} line {number}: no such file: {named}")
                continue
            case = Case("", "", files[0], files[1] if tab else None, subset=subset)
            entries.append((image, case))
    return _named(entries, spec)


def _named(entries: list[tuple[str, Case]], spec: Spec) -> list[Case]:
    """Names listed cases by their files, by their whole paths where two files have one name."""
    known = suffixes(spec)
    short = [without_suffix(Path(text).name, known) or Path(text).name for text, _ in entries]
    count = Counter(short)
    return [
        replace(case, name=name if count[name] == 1 else _path_name(text, known))
        for name, (text, case) in zip(short, entries, strict=True)
    ]


def _path_name(text: str, known: tuple[str, ...]) -> str:
    path = Path(text).as_posix()
    return (without_suffix(path, known) or path).strip("/").replace("/", "__")


def _name_copies(cases: list[Case], problems: list[str]) -> None:
    images = Counter(case.image.resolve() for case in cases)
    problems += [
        f"{path}: the same image is listed {n} times" for path, n in images.items() if n > 1
    ]
    names = Counter(case.name for case in cases if images[case.image.resolve()] == 1)
    problems += [f"{name}: {n} images of this name" for name, n in names.items() if n > 1]


def _with_patients(cases: list[Case], folder: Path, pattern: str | None) -> list[Case]:
    table = _patients(folder / _PATIENTS)
    named, problems = [], []
    for case in cases:
        patient = case.patient or table.get(case.name, "")
        if not patient and table:
            problems.append(f"{case.name}: not in {_PATIENTS}")
        elif not patient and pattern:
            found = re.fullmatch(pattern, case.name)
            patient = found[1] if found else ""
            if not found:
                problems.append(f"{case.name}: the patient pattern {pattern!r} does not fit")
        elif not patient and case.image.is_dir():
            patient = _patient_id(case.image)
        named.append(replace(case, patient=patient or case.name))
    if problems:
        raise DataError.listing(f"{folder}: patients are unknown", problems)
    return named


def _patients(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"name", "patient"} <= rows[0].keys():
        raise DataError(f"{path}: expected the columns name, patient")
    return {row["name"].strip(): row["patient"].strip() for row in rows}


def _patient_id(folder: Path) -> str:
    """PatientID of the first DICOM file in a folder, "" where none says."""
    import pydicom

    for path in (path for path in _listed(folder) if path.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
        except (pydicom.errors.InvalidDicomError, OSError):
            continue
        return str(header.get("PatientID", "") or "").strip()
    return ""
