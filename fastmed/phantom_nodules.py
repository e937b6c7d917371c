"""Nodule phantoms as files: volumes beside tables of boxes, or DICOM beside VOC XML."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastmed.errors import UsageError
from fastmed.geometry import Geometry
from fastmed.phantom.fields import on_grid
from fastmed.phantom.nodules import NoduleScan, insert, nodule_chest
from fastmed.preprocessing.lungs import lung_mask
from fastmed.readers.index import read
from fastmed.volume import Volume
from fastmed.writers.atomic import write_atomically
from fastmed.writers.dicom_ct import write_dicom_ct
from fastmed.writers.nifti import write_volume
from fastmed.writers.slice_boxes import SliceBox, SliceBoxes
from fastmed.writers.voc import write_voc

LABEL = "nodule"
FORMATS = ("nifti", "dicom")
_WITHOUT = 10  # every tenth scan has no nodule
_TYPES = "ABEG"  # adenocarcinoma, small cell, large cell, squamous: as Lung-PET-CT-Dx names them
_LUNA_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
_BOX_COLUMNS = ("path", "patient", "label", "x1", "y1", "z1", "x2", "y2", "z2")

# Writes one scan below a folder; returns its path from there, its series and its patient.
_Save = Callable[[NoduleScan, int, Path], tuple[str, str, str]]


def write_nodules(
    output: Path, count: int, seed: int, form: str = "nifti", into: str | Path | None = None
) -> list[Path]:
    """Writes `count` scans with 1 to 5 nodules, every tenth without, and the truth beside them.

    form: "nifti" writes scans/nodules-<seed>.nii.gz; "dicom" writes what Lung-PET-CT-Dx publishes:
        dicom/<patient>/<study>/<series>/*.dcm, and annotations/<patient>/<SOPInstanceUID>.xml, VOC
        XML of every slice on which two pixels and more of a nodule show, each way.
    into: a chest CT whose lungs take the nodules, in place of synthetic chests.

    boxes.csv: path, patient, label, x1, y1, z1, x2, y2, z2 in LPS mm, one row per nodule; a scan
    without has one row with the rest empty. annotations.csv and seriesuids.csv: the same nodules
    as LUNA16 lists them, centre and diameter in mm; annotations_excluded.csv: those below 3 mm.

    Raises UsageError where `into` is not one scan, SeriesError where it shows no lungs.
    """
    seeds = range(seed, seed + count)
    if into is not None:
        scans = _made_into(into, seeds)
    else:
        grid = _square_grid if form == "dicom" else _grid
        scans = ((number, _made(number, grid(number))) for number in seeds)
    if form == "dicom":
        return _write_set(output, scans, _save_dicom, ("dicom", "annotations"))
    return _write_set(output, scans, _save_nifti, ("scans",))


def _write_set(
    output: Path,
    scans: Iterable[tuple[int, NoduleScan]],
    save: _Save,
    folders: tuple[str, ...],
) -> list[Path]:
    boxes, annotations, excluded, series = [_BOX_COLUMNS], [_LUNA_COLUMNS], [_LUNA_COLUMNS], []
    for seed, made in scans:
        path, uid, patient = save(made, seed, output)
        for nodule in made.nodules:
            boxes.append((path, patient, LABEL, *(f"{v:.3f}" for v in nodule.box_lps_mm)))
        if not made.nodules:
            boxes.append((path, patient, *[""] * 7))
        for table, found in ((annotations, made.nodules), (excluded, made.tiny)):
            for nodule in found:
                figures = (*nodule.centre_lps_mm, nodule.diameter_mm)
                table.append((uid, *(f"{v:.3f}" for v in figures)))
        series.append((uid,))
    tables = {
        "boxes.csv": boxes,
        "annotations.csv": annotations,
        "annotations_excluded.csv": excluded,
        "seriesuids.csv": series,
    }
    for name, rows in tables.items():
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(rows)
        write_atomically(output / name, [table.getvalue().encode()])
    return [output / name for name in (*folders, *tables)]


def _save_nifti(made: NoduleScan, seed: int, output: Path) -> tuple[str, str, str]:
    path = f"scans/{made.volume.name}.nii.gz"
    write_volume(made.volume, output / path)
    return path, made.volume.name, f"patient-{seed:05d}"


def _save_dicom(made: NoduleScan, seed: int, output: Path) -> tuple[str, str, str]:
    import pydicom

    letter = _TYPES[seed % len(_TYPES)]
    patient = f"Lung_Dx-{letter}{seed:04d}"
    path = f"dicom/{patient}/01-01-2000-phantom/1.000000-nodules"
    files = write_dicom_ct(made.volume, output / path, patient=patient, description="nodules")
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    _, height, width = made.volume.geometry.shape_zyx
    for index, boxes in sorted(_boxes_by_slice(made, letter).items()):
        uid = str(headers[index].SOPInstanceUID)
        slice_boxes = SliceBoxes(uid, f"{uid}.dcm", uid, index, width, height, tuple(boxes))
        folder = output / "annotations" / f"{letter}{seed:04d}"
        write_voc(slice_boxes, folder / f"{uid}.xml", folder=folder.name, with_scores=False)
    (output / "annotations").mkdir(exist_ok=True)
    return path, str(headers[0].SeriesInstanceUID), patient


def _boxes_by_slice(made: NoduleScan, label: str) -> dict[int, list[SliceBox]]:
    """What of the nodules shows on each slice, by the slice's number."""
    boxes: dict[int, list[SliceBox]] = {}
    for number, nodule in enumerate(made.nodules, 1):
        first_z, first_y, first_x = nodule.first_zyx
        for k, plane in enumerate(nodule.inside):
            rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
            if not len(rows) or rows[0] == rows[-1] or columns[0] == columns[-1]:
                continue
            box = (
                first_x + columns[0] - 0.5,
                first_y + rows[0] - 0.5,
                first_x + columns[-1] + 0.5,
                first_y + rows[-1] + 0.5,
            )
            boxes.setdefault(first_z + k, []).append(SliceBox(number, label, 1.0, box))
    return boxes


def _made(seed: int, geometry: Geometry) -> NoduleScan:
    return nodule_chest(geometry, seed, count=_wanted(seed))


def _made_into(scan: str | Path, seeds: range) -> Iterable[tuple[int, NoduleScan]]:
    volumes = read(scan)
    if len(volumes) != 1:
        raise UsageError(f"--into {scan}: {len(volumes)} CT scans there; name one")
    volume = _in_int16(volumes[0])
    coarse, own = lung_mask(volume)
    lungs = on_grid(coarse.astype(np.float32), own, volume.geometry) > 0.5
    for seed in seeds:
        yield seed, insert(volume, lungs, seed, count=_wanted(seed))


def _in_int16(volume: Volume) -> Volume:
    """The scan as the writers take it: whole HU where it was stored as anything else."""
    if volume.voxels.dtype == np.int16:
        return volume
    voxels = np.clip(np.rint(volume.hu()), -1024, 3071).astype(np.int16)
    return replace(volume, voxels=voxels, slope=1.0, intercept=0.0)


def _wanted(seed: int) -> int:
    rng = np.random.default_rng([seed, 10])
    return 0 if seed % _WITHOUT == _WITHOUT - 1 else int(rng.integers(1, 6))


def _grid(seed: int) -> Geometry:
    rng = np.random.default_rng([seed, 11])
    spacing = round(float(rng.uniform(1.45, 1.5)), 4)
    spacing_z = float(rng.choice((1.75, 2.0)))
    return _centred((round(304 / spacing_z), 176, 224), spacing_z, spacing, rng.uniform(-3, 3))


def _square_grid(seed: int) -> Geometry:
    rng = np.random.default_rng([seed, 11])
    spacing = round(float(rng.uniform(1.35, 1.45)), 4)
    return _centred((122, 256, 256), 2.5, spacing, rng.uniform(-3, 3))


def _centred(shape, spacing_z: float, spacing: float, up_mm: float) -> Geometry:
    _, height, width = shape
    origin = (-spacing * (width - 1) / 2, -spacing * (height - 1) / 2 + 5, -160 + up_mm)
    return Geometry.from_spacing(shape, (spacing_z, spacing, spacing), origin)
