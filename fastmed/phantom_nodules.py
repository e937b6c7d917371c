"""Nodule phantoms as files: volumes beside tables of boxes, or DICOM beside VOC XML."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from fastmed.geometry import Geometry
from fastmed.phantom.nodules import NoduleScan, nodule_chest
from fastmed.writers.atomic import write_atomically
from fastmed.writers.nifti import write_volume

LABEL = "nodule"
_WITHOUT = 10  # every tenth scan has no nodule
_LUNA_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
_BOX_COLUMNS = ("path", "patient", "label", "x1", "y1", "z1", "x2", "y2", "z2")


def write_nodules(output: Path, count: int, seed: int) -> list[Path]:
    """Writes scans/nodules-<seed>.nii.gz and the truth beside them as tables.

    boxes.csv: path, patient, label, x1, y1, z1, x2, y2, z2 in LPS mm, one row per nodule; a scan
    without has one row with the rest empty. annotations.csv and seriesuids.csv: the same nodules
    as LUNA16 lists them, centre and diameter in mm; annotations_excluded.csv: those below 3 mm.
    Every tenth scan has no nodule, the others 1 to 5.
    """
    scans = (_made(number) for number in range(seed, seed + count))
    return _write_set(output, scans)


def _write_set(output: Path, scans) -> list[Path]:
    boxes, annotations, excluded, series = [_BOX_COLUMNS], [_LUNA_COLUMNS], [_LUNA_COLUMNS], []
    for made in scans:
        name = made.volume.name
        path = f"scans/{name}.nii.gz"
        write_volume(made.volume, output / path)
        patient = f"patient-{name.rsplit('-', 1)[-1]}"
        for nodule in made.nodules:
            boxes.append((path, patient, LABEL, *(f"{v:.3f}" for v in nodule.box_lps_mm)))
        if not made.nodules:
            boxes.append((path, patient, *[""] * 7))
        for table, found in ((annotations, made.nodules), (excluded, made.tiny)):
            table += [_luna_row(name, nodule) for nodule in found]
        series.append((name,))
    tables = {
        "boxes.csv": boxes,
        "annotations.csv": annotations,
        "annotations_excluded.csv": excluded,
        "seriesuids.csv": series,
    }
    for name, rows in tables.items():
        write_atomically(output / name, [_csv(rows)])
    return [output / "scans", *(output / name for name in tables)]


def _luna_row(name: str, nodule) -> tuple:
    return (name, *(f"{v:.3f}" for v in (*nodule.centre_lps_mm, nodule.diameter_mm)))


def _csv(rows) -> bytes:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue().encode()


def _made(seed: int) -> NoduleScan:
    rng = np.random.default_rng([seed, 10])
    count = 0 if seed % _WITHOUT == _WITHOUT - 1 else int(rng.integers(1, 6))
    return nodule_chest(_grid(seed), seed, count=count)


def _grid(seed: int) -> Geometry:
    rng = np.random.default_rng([seed, 11])
    spacing = round(float(rng.uniform(1.45, 1.5)), 4)
    spacing_z = float(rng.choice((1.75, 2.0)))
    shape = (round(304 / spacing_z), 176, 224)
    origin = (-spacing * 111.5, -spacing * 87.5 + 5, -160 + rng.uniform(-3, 3))
    return Geometry.from_spacing(shape, (spacing_z, spacing, spacing), origin)
