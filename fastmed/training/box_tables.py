"""Tables of findings: boxes.csv, slices.csv and LUNA16's annotations.csv become cases."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastmed.errors import DataError, UsageError
from fastmed.readers.luna16 import read_luna16
from fastmed.spec import Spec
from fastmed.training.cases import SUBSETS, VOLUME_SUFFIXES, Case, TruthBox, without_suffix

BOXES, SLICES, LUNA16 = "boxes.csv", "slices.csv", "annotations.csv"
LAYOUTS = """\
  boxes.csv              columns path, patient, label, x1, y1, z1, x2, y2, z2 (LPS mm); a row per
                         finding, a row with empty label and coordinates for a scan without any
  slices.csv             (2D) columns path, patient, slice, label, x1, y1, x2, y2 (pixels)
  annotations.csv        LUNA16's: seriesuid, coordX, coordY, coordZ, diameter_mm, beside scans
                         <seriesuid>.mhd or .nii.gz in any sub folder"""
_CORNERS_3D = ("x1", "y1", "z1", "x2", "y2", "z2")
_CORNERS_2D = ("x1", "y1", "x2", "y2")
_BALL = ("coordx", "coordy", "coordz", "diameter_mm")
_COLUMNS = {
    BOXES: ("path", "label", *_CORNERS_3D),
    SLICES: ("path", "slice", "label", *_CORNERS_2D),
    LUNA16: ("seriesuid", *_BALL),
}


class LeftOutWarning(UserWarning):
    """Annotations that no scan of the data set belongs to; training goes on without them."""


@dataclass
class _Listed:
    """What the rows of one scan say together."""

    image: Path
    patient: str
    subset: str
    boxes: list[TruthBox] = field(default_factory=list)
    slices: set[int] = field(default_factory=set)


def listed_cases(data: Path, spec: Spec, problems: list[str]) -> list[tuple[str, Case]]:
    """The cases of a detection with the texts that name them, as its table lists them.

    data: the table, or a folder that holds one: in 3D boxes.csv or else annotations.csv, in 2D
        slices.csv. problems: gets a line for each row that is wrong.

    Raises UsageError where there is no such table, DataError where a column is absent.
    """
    kinds = (SLICES,) if spec.dimensions == 2 else (BOXES, LUNA16)
    if data.is_file():
        rows, columns = _read(data)
        kind = next((kind for kind in kinds if set(_COLUMNS[kind]) <= set(columns)), None)
        table = data
    else:
        kind = next((kind for kind in kinds if (data / kind).is_file()), None)
        table = data / (kind or "")
    if kind is None:
        raise UsageError(
            f"--data {data}: a detection of {spec.dimensions} dimensions takes "
            f"{' or '.join(kinds)}; known are\n{LAYOUTS}"
        )
    rows, columns = _read(table)
    if missing := set(_COLUMNS[kind]) - set(columns):
        raise DataError(f"{table}: no column {', '.join(sorted(missing))}; found {columns}")
    if kind == LUNA16:
        return _luna16(table, spec, problems)
    return _by_path(table, rows, spec, problems)


def _read(table: Path) -> tuple[list[dict[str, str]], list[str]]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if "\t" in file.readline() else ","
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        columns = [(column or "").strip().lower() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        return [{k: (v or "").strip() for k, v in row.items() if k} for row in reader], columns


def _by_path(table: Path, rows, spec: Spec, problems: list[str]) -> list[tuple[str, Case]]:
    scans: dict[str, _Listed] = {}
    for line, row in enumerate(rows, start=2):
        where = f"{table.name} line {line}"
        image = table.parent / row["path"]
        if not row["path"] or not image.exists():
            problems.append(f"{where}: no such file: {row['path'] or '(empty)'}")
            continue
        patient, subset = row.get("patient", ""), row.get("subset", "")
        if subset not in ("", *SUBSETS):
            problems.append(f"{where}: subset {subset!r}: expected train, val or test")
        scan = scans.setdefault(row["path"], _Listed(image, patient, subset))
        for what, before, now in (
            ("patient", scan.patient, patient), ("subset", scan.subset, subset),
        ):  # fmt: skip
            if before != now:
                problems.append(f"{where}: {what} {now!r}, in a row before {before!r}")
        _add(scan, row, where, spec, problems)
    return [(text, _case(scan)) for text, scan in scans.items()]


def _case(scan: _Listed) -> Case:
    return Case(
        "", scan.patient, scan.image, subset=scan.subset, boxes=tuple(scan.boxes),
        slices=tuple(sorted(scan.slices)),
    )  # fmt: skip


def _add(scan: _Listed, row: Mapping[str, str], where: str, spec: Spec, problems) -> None:
    """Adds what one row says to its scan: a box, or that there is none."""
    flat = spec.dimensions == 2
    corners = _CORNERS_2D if flat else _CORNERS_3D
    at = None
    if flat:
        if not row["slice"].isdecimal():
            problems.append(f"{where}: slice {row['slice']!r}: expected a number from 0")
            return
        at = int(row["slice"])
        scan.slices.add(at)
    if not row["label"]:
        if given := [name for name in corners if row[name]]:
            problems.append(f"{where}: {', '.join(given)} without a label")
        return
    label = _label(row["label"], spec)
    if label is None:
        names = ", ".join(f"{each.value} or {each.name}" for each in spec.labels)
        problems.append(f"{where}: label {row['label']!r}: unknown class; expected {names}")
    numbers = _numbers(row, corners, where, problems)
    if numbers is None or label is None or not _is_solid(numbers, corners, where, problems):
        return
    scan.boxes.append(
        TruthBox(label, slice=at, box_px=numbers) if flat else TruthBox(label, numbers)
    )


def _label(text: str, spec: Spec) -> int | None:
    for label in spec.labels:
        if text == label.name or (text.isdecimal() and int(text) == label.value):
            return label.value
    return None


def _numbers(row, columns, where: str, problems: list[str]) -> tuple[float, ...] | None:
    """The row's numbers, None where one is none."""
    numbers = []
    for name in columns:
        try:
            numbers.append(float(row[name]))
        except ValueError:
            problems.append(f"{where}: {name} {row[name]!r}: expected a number")
            return None
        if not math.isfinite(numbers[-1]):
            problems.append(f"{where}: {name} is {row[name]}: expected a finite number")
            return None
    return tuple(numbers)


def _is_solid(box: tuple[float, ...], corners, where: str, problems: list[str]) -> bool:
    half = len(box) // 2
    for low, high, first, last in zip(
        box[:half], box[half:], corners[:half], corners[half:], strict=True
    ):
        if low >= high:
            what = "zero-sized" if low == high else "inverted"
            problems.append(f"{where}: the box is {what}: {first} {low:g}, {last} {high:g}")
            return False
    return True


def _luna16(table: Path, spec: Spec, problems: list[str]) -> list[tuple[str, Case]]:
    """Every scan below the table's folder; those that no row names have no nodule."""
    scans: dict[str, _Listed] = {}
    for path in sorted(table.parent.rglob("*")):
        name = without_suffix(path.name, VOLUME_SUFFIXES)
        folders = path.relative_to(table.parent).parts[:-1]
        # LUNA16's lung masks bear the names of their scans, in seg-lungs-LUNA16/.
        if name is None or any(part.startswith((".", "seg-")) for part in (*folders, path.name)):
            continue
        if name in scans:
            both = " and ".join(str(p.relative_to(table.parent)) for p in (scans[name].image, path))
            problems.append(f"{both}: two files of one name")
        scans[name] = _Listed(path, "", "")
    absent = set()
    for nodule in read_luna16(table):
        if nodule.series_uid in scans:
            box = TruthBox(spec.labels[0].value, nodule.box_lps_mm)
            scans[nodule.series_uid].boxes.append(box)
        else:
            absent.add(nodule.series_uid)
    if absent:
        warnings.warn(
            f"{table}: {len(absent)} series of it have no scan here, such as {min(absent)}; they "
            "are left out",
            LeftOutWarning,
            stacklevel=2,
        )
    return [(str(scan.image.relative_to(table.parent)), _case(scan)) for scan in scans.values()]
