"""Series: CT scans as files, upright, tilted or uneven, and two scans that share one series."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastmed.geometry import Geometry
from fastmed.phantom_archive.case import Case, Scan
from fastmed.phantom_archive.editing import attribute, edit_all, join, move, pixels
from fastmed.phantom_archive.encoding import encode
from fastmed.phantom_archive.truth import Expected


def uniform(case: Case) -> list[Expected]:
    scan = case.scan()
    return [_good(case, scan, case.write(scan))]


def tilted(case: Case) -> list[Expected]:
    angle = float(case.rng.choice([-1, 1]) * case.rng.uniform(5, 20))
    scan = case.scan(tilt_degrees=angle)
    return [_good(case, scan, case.write(scan), conditions="uniform; tilted")]


def encoded(syntax: str) -> Callable[[Case], list[Expected]]:
    """Makes the way that writes a sound series in a transfer syntax."""

    def way(case: Case) -> list[Expected]:
        scan = case.scan()
        paths = case.write(scan)
        for path in paths:
            encode(path, syntax)
        return [_good(case, scan, paths)]

    return way


def single_slice(case: Case) -> list[Expected]:
    *others, last = case.write(case.scan())
    for path in others:
        path.unlink()
    return [case.row("ct", "single slice", "refused", source=last.name)]


def without_extension(case: Case) -> list[Expected]:
    """Names as media have them: IM000017, in no order."""
    scan = case.scan()
    paths = case.write(scan)
    for path, number in zip(paths, case.rng.permutation(len(paths)), strict=True):
        path.rename(path.with_name(f"IM{number:06d}"))
    return [_good(case, scan, paths)]


def over_folders(case: Case) -> list[Expected]:
    scan = case.scan()
    paths = case.write(scan)
    for k, path in enumerate(paths):
        folder = case.folder / f"disc-{k % 3 + 1}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    return [_good(case, scan, paths)]


def two_in_a_folder(case: Case) -> list[Expected]:
    rows = []
    for part in ("a", "b"):
        scan = case.scan(part)
        rows.append(_good(case, scan, case.write(scan, part)))
    return rows


def with_localizer(case: Case) -> list[Expected]:
    scan = case.scan()
    *paths, _ = case.write(scan, localizer=True)
    return [
        _good(case, scan, paths),
        case.row("localizer", "localizer", "skipped", source="localizer.dcm"),
    ]


def uneven(case: Case) -> list[Expected]:
    """Gaps of three lengths in turn, as protocols that change on the way down have them."""
    depth = case.shape_zyx[0]
    gaps = np.resize([0.5, 0.5, 0.8, 1.3], depth - 1) * case.rng.uniform(0.9, 1.0)
    return _at(case, np.concatenate([[0.0], np.cumsum(gaps)]), "uneven")


def tilted_and_uneven(case: Case) -> list[Expected]:
    depth = case.shape_zyx[0]
    gaps = np.where(np.arange(depth - 1) < depth // 3, 0.5, 1.3) * case.rng.uniform(0.9, 1.0)
    places = np.concatenate([[0.0], np.cumsum(gaps)])
    return _at(case, places, "uneven; tilted", tilt_degrees=float(case.rng.uniform(8, 20)))


def _at(case: Case, places: np.ndarray, conditions: str, **options) -> list[Expected]:
    """A series whose slices lie at fractions of its grid's steps."""
    scan = case.scan(z_index=places, **options)
    paths = case.write(scan)
    step = scan.volume.geometry.steps_lps_mm[0]
    for k, path in enumerate(paths):
        move(path, (places[k] - k) * step)
    return [case.row("ct", conditions, "refused", "ok", files=len(paths))]


def mixed_shapes(case: Case) -> list[Expected]:
    """The lower half of the stack with half of the rows."""
    paths = case.write(case.scan())
    half = len(paths) // 2
    rows = case.shape_zyx[1] // 2
    for path in paths[:half]:
        edit_all([path], Rows=rows, PixelData=pixels(path)[:rows].tobytes())
    return [_split(case, "mixed shapes", len(paths))]


def mixed_spacings(case: Case) -> list[Expected]:
    paths = case.write(case.scan())
    pixel = float(attribute(paths[0], "PixelSpacing")[0])
    edit_all(paths[: len(paths) // 2], PixelSpacing=[round(1.25 * pixel, 4)] * 2)
    return [_split(case, "mixed spacings", len(paths))]


def mixed_orientations(case: Case) -> list[Expected]:
    """A coronal reformat in the same series as the axial slices, of the same size."""
    scan = case.scan()
    paths = case.write(scan)
    grid = scan.volume.geometry
    depth, rows, _ = grid.shape_zyx
    _, step_y, step_x = grid.steps_lps_mm
    pixel = grid.spacing_mm_zyx[1]
    first = grid.to_world((depth - 1, rows // 4, 0))
    steps = [step_y * rows / 2 / depth, (0.0, 0.0, -pixel), step_x]
    coronal = case.scan("coronal", grid=Geometry.from_axes(grid.shape_zyx, first, steps))
    others = case.write(coronal, "coronal")
    join(others, to=paths[0])
    return [_split(case, "mixed orientations", len(paths) + len(others))]


def acquisitions_at_the_same_positions(case: Case) -> list[Expected]:
    """Before and after contrast, in one series: each position twice."""
    return _two_passes(case, 0.0, "several acquisitions", AcquisitionNumber=2)


def acquisitions_interleaved(case: Case) -> list[Expected]:
    return _two_passes(case, 0.3, "several acquisitions", AcquisitionNumber=2)


def overlapping_reconstructions(case: Case) -> list[Expected]:
    """A sharp and a soft kernel half a step apart: the positions alone look like one stack."""
    return _two_passes(case, 0.5, "overlapping reconstructions", ConvolutionKernel="B70f")


def reconstructions_at_the_same_positions(case: Case) -> list[Expected]:
    return _two_passes(case, 0.0, "overlapping reconstructions", ConvolutionKernel="B70f")


def _two_passes(case: Case, apart: float, conditions: str, **attributes) -> list[Expected]:
    """Two stacks in one series, `apart` of a step; the second one has other attributes."""
    scan = case.scan()
    grid = scan.volume.geometry
    paths = case.write(scan, "first")
    edit_all(paths, ConvolutionKernel="B30f")
    lifted = Geometry.from_axes(grid.shape_zyx, grid.to_world((apart, 0, 0)), grid.steps_lps_mm)
    others = case.write(case.scan("second", grid=lifted), "second")
    join(others, to=paths[0], **({"ConvolutionKernel": "B30f"} | attributes))
    return [_split(case, conditions, len(paths) + len(others))]


def _good(case: Case, scan: Scan, paths, conditions: str = "uniform") -> Expected:
    return case.row("ct", conditions, "ok", files=len(paths), liver_ml=scan.liver_ml)


def _split(case: Case, conditions: str, files: int) -> Expected:
    return case.row("ct", conditions, "refused", "ok", volumes=2, files=files)
