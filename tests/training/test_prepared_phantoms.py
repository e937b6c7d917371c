"""Nodule phantoms as Lung-PET-CT-Dx is published are prepared without a word, where they are."""

import csv

import numpy as np

from fastmed import phantom_nodules
from fastmed.geometry import Geometry
from fastmed.training.prepare_lung_pet_ct_dx import prepare_lung_pet_ct_dx

GRID = Geometry.from_spacing((102, 96, 126), (3.0, 2.7, 2.7), (-168.0, -122.0, -160.0))
CORNERS = ("x1", "y1", "z1", "x2", "y2", "z2")


def boxes(path) -> np.ndarray:
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"]]
    assert {row["patient"] for row in rows} == {"Lung_Dx-B0005"}
    return np.array(sorted([float(row[name]) for name in CORNERS] for row in rows))


def test_the_boxes_of_prepared_slices_are_those_that_were_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_nodules, "_square_grid", lambda seed: GRID)
    phantom_nodules.write_nodules(tmp_path / "p", 1, 5, form="dicom")
    prepare_lung_pet_ct_dx(
        tmp_path / "p/dicom", tmp_path / "p/annotations", tmp_path / "out", quiet=True
    )
    with open(tmp_path / "out/problems.csv", newline="") as file:
        assert list(csv.DictReader(file)) == []
    drawn, found = boxes(tmp_path / "p/boxes.csv"), boxes(tmp_path / "out/boxes.csv")
    assert drawn.shape == found.shape
    # A slice shows what fills half of its voxels; the first and last may show too little for a box.
    limit = np.tile([1.0, 1.0, 1.5], 2) * np.tile(GRID.spacing_mm_zyx[::-1], 2)
    assert (np.abs(drawn - found) <= limit).all()
