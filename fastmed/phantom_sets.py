"""Phantoms as training sets: scans or grey images beside their truth, laid out for training."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastmed.geometry import Geometry
from fastmed.phantom import chest, chest_slices, lesion_slice, textured_abdomen
from fastmed.phantom.slices import GreySlice
from fastmed.writers.atomic import write_atomically
from fastmed.writers.nifti import write_labels, write_volume


def write_liver(output: Path, count: int, seed: int) -> list[Path]:
    """Writes image/liver-<seed>.nii.gz and label/liver-<seed>.nii.gz, the liver as 1."""
    for number in range(seed, seed + count):
        volume, truth = textured_abdomen(_abdomen_grid(number), number)
        write_volume(volume, output / "image" / f"liver-{number:05d}.nii.gz")
        write_labels(truth, output / "label" / f"liver-{number:05d}.nii.gz")
    return [output / "image", output / "label"]


def write_chest(output: Path, count: int, seed: int, positive_share: float) -> list[Path]:
    """Writes scans/chest-<seed>.nii.gz and labels.csv of path, patient, label.

    Label 1 is a mass in a lung. The positives lie evenly among the scans: of any first n,
    positive_share * n rounded down are positive.
    """
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "patient", "label"))
    for place in range(count):
        number = seed + place
        label = _positives(place + 1, positive_share) - _positives(place, positive_share)
        made = chest(_chest_grid(number), number, lesion=bool(label))
        path = f"scans/chest-{number:05d}.nii.gz"
        write_volume(made.volume, output / path)
        rows.writerow((path, f"patient-{number:05d}", label))
    write_atomically(output / "labels.csv", [table.getvalue().encode()])
    return [output / "scans", output / "labels.csv"]


def write_lungs(output: Path, count: int, seed: int) -> list[Path]:
    """Writes slices of `count` chests as image/chest-<seed>-<slice>.png, lungs in label/ as 255."""
    for number in range(seed, seed + count):
        for index, made in enumerate(chest_slices(number)):
            _write_pair(output, f"chest-{number:05d}-{index:02d}.png", made)
    return [output / "image", output / "label"]


def write_lesions(output: Path, count: int, seed: int) -> list[Path]:
    """Writes image/lesion-<seed>.png and label/lesion-<seed>.png, the lesion as 255."""
    for number in range(seed, seed + count):
        _write_pair(output, f"lesion-{number:05d}.png", lesion_slice(number))
    return [output / "image", output / "label"]


WRITERS: dict[str, Callable[..., list[Path]]] = {
    "liver": write_liver,
    "chest": write_chest,
    "lungs": write_lungs,
    "lesions": write_lesions,
}


def _positives(first: int, share: float) -> int:
    return int(first * share + 1e-9)


def _abdomen_grid(seed: int) -> Geometry:
    rng = np.random.default_rng([seed, 7])
    spacing_z, spacing = rng.choice([2.5, 3.0]), round(float(rng.uniform(2.2, 2.5)), 4)
    depth = round(float(rng.uniform(180, 205)) / spacing_z)
    top = rng.uniform(25, 45)
    shape = (depth, 160, 176)
    origin = (-spacing * 87.5, -spacing * 79.5, top - depth * spacing_z)
    return Geometry.from_spacing(shape, (spacing_z, spacing, spacing), origin)


def _chest_grid(seed: int) -> Geometry:
    rng = np.random.default_rng([seed, 8])
    spacing = round(float(rng.uniform(2.4, 2.7)), 4)
    shape = (round(270 / spacing), 120, 152)
    origin = (-spacing * 75.5, -spacing * 59.5 + 10, rng.uniform(-145, -130))
    return Geometry.from_spacing(shape, (spacing,) * 3, origin)


def _write_pair(output: Path, name: str, made: GreySlice) -> None:
    write_atomically(output / "image" / name, [_png(made.image)])
    write_atomically(output / "label" / name, [_png(made.mask)])


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
