"""The boxes of a scan slice by slice, as pictures and annotation formats of 2 dimensions want."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from fastmed.findings import Findings
from fastmed.volume import SourceSlice, Volume

_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class SliceBox:
    """One finding on one slice.

    finding: its number in Findings.boxes, from 1; the same on all slices that it lies on.
    box_px: (x1, y1, x2, y2) in pixels of the slice; integers are pixel centres.
    """

    finding: int
    label: str
    score: float
    box_px: tuple[float, float, float, float]


@dataclass(frozen=True)
class SliceBoxes:
    """One slice with findings.

    name: of files about it: the SOPInstanceUID; without one the slice's number in the scan, of
        a single image its own name.
    file_name: of the image: <SOPInstanceUID>.dcm, else the scan's path.
    slice: its number in the scan; of unevenly spaced scans that of the nearest plane of the grid.
    """

    name: str
    file_name: str
    sop_instance_uid: str
    slice: int
    width: int
    height: int
    boxes: tuple[SliceBox, ...]


def boxes_by_slice(findings: Findings, volume: Volume) -> list[SliceBoxes]:
    """Returns the slices that a box lies on, by rising z.

    A box has the outline of its key slice on every slice from its first to its last, both counted;
    of unevenly spaced scans these are the original slices within that reach.
    """
    depth, height, width = findings.geometry.shape_zyx
    slices = volume.slices or tuple(SourceSlice("", float(z)) for z in range(depth))
    found = []
    for at in slices:
        boxes = tuple(
            SliceBox(number, box.label, box.score, box.key_box_px)
            for number, box in enumerate(findings.boxes, 1)
            if box.key_box_px is not None and _lies_on(box, at)
        )
        if boxes:
            name, file_name = _names(at, findings.source, depth)
            place = (at.sop_instance_uid, round(at.z_index), width, height)
            found.append(SliceBoxes(name, file_name, *place, boxes))
    return found


def _lies_on(box, at: SourceSlice) -> bool:
    first, last = box.slices
    is_key = at.sop_instance_uid != "" and at.sop_instance_uid == box.key_sop_instance_uid
    return is_key or first - 0.5 <= at.z_index <= last + 0.5


def _names(at: SourceSlice, source: str, depth: int) -> tuple[str, str]:
    if _UID.fullmatch(at.sop_instance_uid):
        return at.sop_instance_uid, f"{at.sop_instance_uid}.dcm"
    if depth == 1 and (stem := PurePath(source).stem):
        return stem, source
    return f"{round(at.z_index):04d}", source
