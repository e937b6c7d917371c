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
    is_key: whether this is the finding's key slice.
    """

    finding: int
    label: str
    score: float
    box_px: tuple[float, float, float, float]
    is_key: bool = False


@dataclass(frozen=True)
class SliceBoxes:
    """One slice with findings.

    name: of files about it: the SOPInstanceUID, of a frame with -<frame>; without one the slice's
        number in the scan, of a single image its own name.
    file_name: of the image: <SOPInstanceUID>.dcm, else the scan's path.
    frame: its number in a multi-frame file, from 1; 0 of a file that is one image.
    slice: its number in the scan; of unevenly spaced scans that of the nearest plane of the grid.
    """

    name: str
    file_name: str
    sop_instance_uid: str
    slice: int
    width: int
    height: int
    boxes: tuple[SliceBox, ...]
    frame: int = 0


def boxes_by_slice(findings: Findings, volume: Volume) -> list[SliceBoxes]:
    """Returns the slices that a box lies on, by rising z.

    A box has the outline of its key slice on every slice from its first to its last, both counted;
    of unevenly spaced scans these are the original slices within that reach.
    """
    depth, height, width = findings.geometry.shape_zyx
    slices = volume.slices or tuple(SourceSlice("", float(z)) for z in range(depth))
    keys = [_key_slice(box, slices) for box in findings.boxes]
    found = []
    for at in slices:
        boxes = tuple(
            SliceBox(number, box.label, box.score, box.key_box_px, at is key)
            for number, (box, key) in enumerate(zip(findings.boxes, keys, strict=True), 1)
            if box.key_box_px is not None and (at is key or _lies_on(box, at))
        )
        if boxes:
            name, file_name = _names(at, findings.source, depth)
            place = (at.sop_instance_uid, round(at.z_index), width, height)
            found.append(SliceBoxes(name, file_name, *place, boxes, at.frame))
    return found


def _key_slice(box, slices) -> SourceSlice | None:
    """The slice that a box names by UID; of the frames that share one UID, its middle one."""
    uid, middle = box.key_sop_instance_uid, sum(box.slices) / 2
    named = [at for at in slices if uid and at.sop_instance_uid == uid]
    return min(named, key=lambda at: abs(at.z_index - middle), default=None)


def _lies_on(box, at: SourceSlice) -> bool:
    first, last = box.slices
    return first - 0.5 <= at.z_index <= last + 0.5


def _names(at: SourceSlice, source: str, depth: int) -> tuple[str, str]:
    if _UID.fullmatch(at.sop_instance_uid):
        return at.name, f"{at.sop_instance_uid}.dcm"
    if depth == 1 and (stem := PurePath(source).stem):
        return stem, source
    return f"{round(at.z_index):04d}", source
