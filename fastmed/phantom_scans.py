"""Phantoms as files: what `fastmed phantom` writes, its DICOM series and an archive with flaws."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastmed import phantom_archive, phantom_nodules, phantom_sets
from fastmed.errors import UsageError
from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.phantom import abdomen
from fastmed.volume import Volume
from fastmed.writers.atomic import write_atomically
from fastmed.writers.dicom_ct import write_dicom_ct
from fastmed.writers.nifti import write_labels

KINDS = ("abdomen", "archive", *phantom_sets.WRITERS, "nodules")
POSITIVE_SHARE = 0.1  # of the chests, unless the caller names another


@dataclass(frozen=True)
class _Scan:
    """One series to write: its folder, its grid, and the slices that get lost or cut short."""

    folder: str
    geometry: Geometry
    seed: int
    lost: tuple[int, ...] = ()
    truncated: tuple[int, ...] = ()
    localizer: bool = False


def write_phantoms(
    kind: str,
    output: str | Path,
    *,
    count: int = 1,
    seed: int = 0,
    positive_share: float | None = None,
    form: str | None = None,
    into: str | Path | None = None,
    size: str | None = None,
) -> list[Path]:
    """Writes synthetic CT with its truth below `output`; returns the paths that it made.

    kind: "abdomen" writes `count` upright DICOM series to scans/, each in a folder of its own, and
        the liver of each on the same grid to truth/<folder>.nii.gz; "archive" adds to them what
        real archives hold: a tilted series, one with missing slices, localizers, a truncated file,
        a text file; with a `size`, everything that archives hold, and what must be found of it,
        see `phantom_archive.write_archive`.
        Training sets: "liver" writes `count` abdomens to image/ and label/ as NIfTI; "chest" scans/
        and labels.csv, where 1 is a mass in a lung; "lungs" 8 slices each of `count` chests and
        "lesions" `count` slices with a lesion to image/ and label/ as 8-bit PNG, masks 0 and 255;
        "nodules" chests with lung nodules and their boxes, see `phantom_nodules.write_nodules`.
    seed: of the first scan; the next ones count up. The same seed gives the same bytes.
    positive_share: share of positive scans, 0 to 1; of "chest" alone, 0.1 by default.
    form, into: of "nodules" alone: "nifti" (the default) or "dicom", and a scan whose lungs take
        the nodules.
    size: of "archive" alone: "small" (scans of 40 x 128 x 128) or "tiny" (12 x 32 x 32).

    Raises UsageError for an unknown kind or format, a count below 1, a share that is none, a
    setting that the kind does not take, or an output folder that is not empty.
    """
    output = Path(output)
    if kind not in KINDS:
        raise UsageError(f"phantom {kind}: expected one of {', '.join(KINDS)}")
    if count < 1:
        raise UsageError(f"--count {count}: expected at least 1")
    if seed < 0:
        raise UsageError(f"--seed {seed}: expected 0 or more")
    if positive_share is not None and kind != "chest":
        raise UsageError(f"--positive-share {positive_share}: phantom {kind} has none; chest does")
    if positive_share is not None and not 0 <= positive_share <= 1:
        raise UsageError(f"--positive-share {positive_share}: expected 0 to 1")
    for flag, value in (("--format", form), ("--into", into)):
        if value is not None and kind != "nodules":
            raise UsageError(f"{flag} {value}: phantom {kind} does not take it; nodules does")
    if size is not None and kind != "archive":
        raise UsageError(f"--size {size}: phantom {kind} does not take it; archive does")
    if form is not None and form not in phantom_nodules.FORMATS:
        formats = ", ".join(phantom_nodules.FORMATS)
        raise UsageError(f"--format {form}: expected one of {formats}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output {output}: not an empty folder; name a new one")
    if kind == "chest":
        share = POSITIVE_SHARE if positive_share is None else positive_share
        return phantom_sets.write_chest(output, count, seed, share)
    if size is not None:
        return phantom_archive.write_archive(output, count, seed, size)
    if kind == "nodules":
        return phantom_nodules.write_nodules(output, count, seed, form or "nifti", into)
    if kind in phantom_sets.WRITERS:
        return phantom_sets.WRITERS[kind](output, count, seed)
    return _write_scans(kind, output, count, seed)


def _write_scans(kind: str, output: Path, count: int, seed: int) -> list[Path]:
    planned = list(_uprights(count, seed))
    if kind == "archive":
        planned += _flawed(seed + count)
    for scan in planned:
        _write(scan, output)
    if kind == "archive":
        note = b"This archive is synthetic: phantoms made by fastmed. No person is in it.\n"
        write_atomically(output / "scans" / "README.txt", [note])
    return [output / "scans", output / "truth"]


def _uprights(count: int, seed: int) -> Iterator[_Scan]:
    for number in range(count):
        rng = np.random.default_rng([seed + number, 2])
        spacing_z, spacing = rng.choice([2.0, 2.5, 3.0]), round(float(rng.uniform(1.4, 1.6)), 4)
        depth = int(rng.uniform(170, 220) / spacing_z)
        shape = (depth, 256, 288)
        origin = (-0.5 * spacing * 287, -0.5 * spacing * 255, -0.8 * depth * spacing_z)
        geometry = Geometry.from_spacing(shape, (spacing_z, spacing, spacing), origin)
        yield _Scan(f"abdomen-{number + 1:03d}", geometry, seed + number, localizer=number == 0)


def _flawed(seed: int) -> Iterator[_Scan]:
    yield _Scan("tilted", _tilted(seed), seed)
    upright = next(_uprights(1, seed + 1))
    middle = upright.geometry.shape_zyx[0] // 2
    yield replace(upright, folder="missing-slices", lost=(middle, middle + 1), localizer=False)
    upright = next(_uprights(1, seed + 2))
    yield replace(upright, folder="truncated", truncated=(middle,), localizer=False)


def _tilted(seed: int) -> Geometry:
    """A gantry tilted by 15 degrees: slices stacked along the table, rows leaning back."""
    angle = np.radians(15)
    down = 1.5 * np.array([0, np.cos(angle), -np.sin(angle)])
    steps = [(0, 0, 3.0), down, (1.5, 0, 0)]
    first = -0.5 * 255 * down + (-0.5 * 1.5 * 287, 0, -170)
    return Geometry.from_axes((64, 256, 288), first, steps)


def _write(scan: _Scan, output: Path) -> None:
    volume, truth = abdomen(scan.geometry, scan.seed)
    folder = output / "scans" / scan.folder
    named = replace(volume, name=scan.folder, source=scan.folder)
    paths = write_dicom_ct(named, folder, description=scan.folder, localizer=scan.localizer)
    for index in scan.lost:
        os.unlink(paths[index])
    for index in scan.truncated:
        os.truncate(paths[index], paths[index].stat().st_size // 2)
    write_labels(_named(truth, named), output / "truth" / f"{scan.folder}.nii.gz")


def _named(truth: Findings, volume: Volume) -> Findings:
    return replace(truth, series=volume.name, source=volume.source)
