"""A small archive laid out as Lung-PET-CT-Dx: DICOM by patient, study and series, XML beside it."""

from __future__ import annotations

from pathlib import Path

import pydicom
import scans as make

SHAPE = (6, 32, 32)
BOX = (10, 12, 15, 18)  # xmin, ymin, xmax, ymax


def xml(*boxes, name: str = "A", size=(32, 32)) -> bytes:
    """VOC XML of boxes (xmin, ymin, xmax, ymax), as the published files have it."""
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return (
        f'<annotation verified="no"><folder>A0001</folder><filename>1-01</filename>'
        f"<path>x</path><source><database>Unknown</database></source><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size><segmented>0</segmented>{objects}"
        "</annotation>"
    ).encode()


def patient(root: Path, name: str, *, seed: int = 0, shape=SHAPE, **scan) -> list[str]:
    """Writes one series of a patient below root/dicom; returns SOPInstanceUIDs by rising z."""
    folder = root / "dicom" / f"Lung_Dx-{name}" / "study" / "series"
    scan = {"shape_zyx": shape, "seed": seed, "origin_lps_mm": (-20.0, -30.0, -110.0 - seed)} | scan
    paths = make.series(folder, make.volume(**scan))
    make.edit_all(paths, PatientID=f"Lung_Dx-{name}")
    return [str(pydicom.dcmread(path).SOPInstanceUID) for path in paths]


def annotate(root: Path, folder: str, uid: str, content: bytes) -> Path:
    """Writes one XML file below root/annotations."""
    path = root / "annotations" / folder / f"{uid}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
