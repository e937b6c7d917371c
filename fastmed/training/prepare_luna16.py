"""LUNA16: annotations.csv and MetaImage scans become boxes.csv, a row per nodule."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from fastmed.geometry import Geometry
from fastmed.readers.index import index
from fastmed.readers.luna16 import Nodule, read_luna16
from fastmed.readers.walk import walk
from fastmed.training.cases import VOLUME_SUFFIXES, without_suffix
from fastmed.training.prepare import BOX_COLUMNS, Report, check_folders, write_table

LABEL = "nodule"


def prepare_luna16(
    scans: str | os.PathLike,
    annotations: str | os.PathLike,
    output: str | os.PathLike,
    *,
    quiet: bool = False,
) -> Report:
    """Writes boxes.csv (cubes around the nodules, LPS mm) and problems.csv; scans stay in place.

    scans: the folder with subset0, subset1, ...; a scan's name is its seriesuid, whatever folder
        it lies in. annotations: annotations.csv.

    A scan that no row names is one without nodules. Named as problems are rows of unknown scans,
    nodules whose centre is outside of their scan, two scans of one name, and what cannot be read;
    label maps, such as the lung masks of the same names, are skipped.

    Returns the figures and problems. Raises DataError where the table has bad lines, UsageError
    for wrong arguments, FastmedError where the disk refuses.
    """
    scans, annotations, output = Path(scans), Path(annotations), Path(output)
    check_folders(output, scans=scans, annotations=annotations)
    from fastmed.inference.display import tracked

    report = Report()
    nodules: dict[str, list[Nodule]] = defaultdict(list)
    for nodule in read_luna16(annotations):
        nodules[nodule.series_uid].append(nodule)
    report.count("annotations", sum(map(len, nodules.values())))
    found, refused = {}, set()
    for file in tracked(walk(scans, exclude=output), "scans", quiet):
        name = without_suffix(os.path.basename(file.relative), VOLUME_SUFFIXES)
        if name is None or name.startswith("."):
            continue
        (entry, *_) = index(file.path)
        if entry.kind == "label map":
            report.count("label maps skipped")
        elif entry.verdict != "ok":
            report.refuse(file.relative, entry.reason)
            report.count("scans refused")
            refused.add(name)
        elif name in found:
            report.refuse(file.relative, f"{found[name][0].relative} has the same name; left out")
        else:
            found[name] = (file, entry.geometry)
    rows = []
    for name, (file, geometry) in sorted(found.items()):
        rows += _rows(file, geometry, nodules.pop(name, []), output, report)
    for name, lost in nodules.items():
        why = "its scan is refused" if name in refused else "no scan has this name"
        report.refuse(annotations.name, f"series {name[:64]}, {len(lost)} annotations: {why}")
        report.count("annotations without a scan", len(lost))
    write_table(output / "boxes.csv", BOX_COLUMNS, rows)
    report.write_problems(output / "problems.csv")
    report.show(quiet)
    return report


def _rows(file, geometry: Geometry, nodules: list[Nodule], output: Path, report: Report):
    name = without_suffix(os.path.basename(file.relative), VOLUME_SUFFIXES)
    path = os.path.relpath(file.path, output.resolve()).replace(os.sep, "/")
    inside = [nodule for nodule in nodules if _is_inside(nodule, geometry)]
    for nodule in nodules:
        if nodule not in inside:
            at = ", ".join(f"{c:g}" for c in nodule.centre_lps_mm)
            report.refuse(file.relative, f"the nodule at ({at}) mm is outside of its scan")
    report.count("scans")
    report.count("boxes", len(inside))
    if not nodules:
        report.count("scans without findings")
        return [(path, name, *("",) * 7)]
    return [(path, name, LABEL, *nodule.box_lps_mm) for nodule in inside]


def _is_inside(nodule: Nodule, geometry: Geometry) -> bool:
    index = geometry.to_index(nodule.centre_lps_mm)
    return bool(((index >= -0.5) & (index <= np.array(geometry.shape_zyx) - 0.5)).all())
