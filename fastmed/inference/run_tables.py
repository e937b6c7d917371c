"""The tables of a whole run: they gather rows scan by scan, and are written at its end."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fastmed.findings import Findings
from fastmed.spec import Spec
from fastmed.volume import Volume
from fastmed.writers.coco import write_coco
from fastmed.writers.luna import luna_rows, write_luna_marks
from fastmed.writers.slice_boxes import SliceBoxes, boxes_by_slice
from fastmed.writers.tables import findings_rows, write_findings_csv


class RunTables:
    """findings.csv, marks.csv and coco.json of a run, as far as its formats ask for them."""

    def __init__(self, formats: Collection[str]):
        self._formats = formats
        self._findings: list[dict] = []
        self._marks: list[dict] = []
        self._slices: list[tuple[str, SliceBoxes]] = []

    def add(self, volume: Volume, findings: Findings) -> None:
        """Takes the rows of one scan; neither its voxels nor its label map are kept."""
        if "csv" in self._formats:
            self._findings += findings_rows(findings)
        if "luna" in self._formats:
            self._marks += luna_rows(findings)
        if "coco" in self._formats:
            slices = boxes_by_slice(findings, volume)
            self._slices += [(findings.series, at) for at in slices]

    def write(self, target: Path, spec: Spec) -> None:
        """Writes the tables below the run's folder. Raises FastmedError where the disk refuses."""
        if "csv" in self._formats:
            write_findings_csv(self._findings, target / "findings.csv")
        if "luna" in self._formats:
            write_luna_marks(self._marks, target / "marks.csv")
        if "coco" in self._formats:
            description = f"Findings of {spec.name}; for research use, not a medical device."
            path = target / "coco.json"
            write_coco(self._slices, spec.labels, path, description=description)
