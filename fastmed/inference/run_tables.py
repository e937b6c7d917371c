"""The tables of a whole run: what each scan adds to them, and the files made of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastmed.findings import Findings
from fastmed.inference.journal_units import Unit
from fastmed.spec import Spec
from fastmed.volume import Volume
from fastmed.writers.coco import write_coco
from fastmed.writers.dicom_uid import sane_uid
from fastmed.writers.luna import luna_rows, write_luna_marks
from fastmed.writers.slice_boxes import SliceBox, SliceBoxes, boxes_by_slice
from fastmed.writers.tables import findings_dict, findings_rows, plain, write_findings_csv


def table_row(volume: Volume, findings: Findings, spec: Spec) -> dict[str, Any]:
    """What one scan adds to the tables of a run, as plain values without voxels."""
    row = {"findings": findings_dict(findings), "csv": findings_rows(findings)}
    if spec.task == "detection":
        row["slices"] = [
            asdict(at) | {"sop_instance_uid": sane_uid(at.sop_instance_uid)}
            for at in boxes_by_slice(findings, volume)
        ]
        if spec.modality == "ct":
            row["luna"] = luna_rows(findings)
    return plain(row)


def write_run_tables(
    units: Callable[[], Iterator[Unit]], formats: set[str], spec: Spec, target: Path
) -> None:
    """Writes findings.csv, marks.csv and coco.json, as far as the formats ask for them.

    units: returns those of the run, in its order, each time it is called; the done ones count.
    Raises FastmedError where the disk refuses.
    """

    def rows(table: str) -> Iterator[Any]:
        for unit in units():
            if unit.state == "done":
                yield from unit.row.get(table, ())

    if "csv" in formats:
        write_findings_csv(rows("csv"), target / "findings.csv")
    if "luna" in formats:
        write_luna_marks(list(rows("luna")), target / "marks.csv")
    if "coco" in formats:
        slices = [
            (unit.name, _slice(at))
            for unit in units()
            if unit.state == "done"
            for at in unit.row.get("slices", ())
        ]
        description = f"Findings of {spec.name}; for research use, not a medical device."
        write_coco(slices, spec.labels, target / "coco.json", description=description)


def _slice(plain: dict[str, Any]) -> SliceBoxes:
    boxes = tuple(SliceBox(**box | {"box_px": tuple(box["box_px"])}) for box in plain["boxes"])
    return SliceBoxes(**plain | {"boxes": boxes})
