"""Predictions and truths as small label maps, and what fastmed infer writes, to be evaluated."""

from __future__ import annotations

import numpy as np

import fastmed
from fastmed.findings import Findings, measure_masks
from fastmed.geometry import Geometry
from fastmed.spec import Label
from fastmed.volume import Volume
from fastmed.writers.nifti import write_labels
from fastmed.writers.tables import write_findings_json

SHAPE = (8, 10, 12)
GRID = Geometry.from_spacing(SHAPE, (4.0, 2.0, 1.0), (10.0, 20.0, -30.0))
TRUTH = np.zeros(SHAPE, np.uint8)
TRUTH[2:6, 2:6, 2:8] = 1
PREDICTION = np.zeros(SHAPE, np.uint8)
PREDICTION[2:6, 2:6, 4:10] = 1  # of 6 columns 4 are right: Dice 2/3, IoU 1/2


def write(path, labels, geometry=GRID):
    """A label map on its own."""
    write_labels(Findings("s", "s", "m", geometry, labels, ()), path)
    return path


def infer_result(folder, name, labels, geometry=GRID, names=("liver",), source=""):
    """What `fastmed infer` writes for one scan."""
    classes = tuple(Label(k, label) for k, label in enumerate(names, 1))
    masks = measure_masks(Volume(labels.astype(np.int16), geometry), labels, classes)
    findings = Findings(name, source or name, "m", geometry, labels, classes, masks)
    write_labels(findings, folder / "series" / name / "labels.nii.gz")
    write_findings_json(findings, folder / "series" / name / "findings.json")


def evaluate(predictions, truth, **options):
    return fastmed.evaluate(predictions, truth, task="segmentation", quiet=True, **options)


def one_pair(folder):
    """The folder of one prediction and the folder of its truth."""
    write(folder / "p" / "a.nii.gz", PREDICTION)
    write(folder / "t" / "a.nii.gz", TRUTH)
    return folder / "p", folder / "t"
