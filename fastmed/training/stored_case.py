"""StoredCase: one case decoded for training, its voxels as stored and its labels as classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from fastmed.errors import DataError, SeriesError
from fastmed.geometry import Geometry
from fastmed.preprocessing.grid import fill_hu, grid_geometry
from fastmed.spec import Spec
from fastmed.training.box_truth import boxes_on_grid, slices_on_grid
from fastmed.training.cases import Case, pair_problems, read_image, read_label
from fastmed.training.label_values import LabelValues
from fastmed.volume import Volume

LABEL_MARGIN_MM = 20.0  # what crop = "label" keeps around the labels
POINTS = 4096  # voxels of each class that are kept as centres for patches

Crop = str | tuple[int, int]


@dataclass(frozen=True, eq=False)
class StoredCase:
    """One case, ready for training; its arrays may be mapped from the cache.

    voxels: [D, H, W] as stored: uint8, int16, uint16 or int32, or float32.
    labels: [D, H, W] classes, uint8 (int16 above 256 classes); None without a label map.
    geometry: where the voxels are: the scan's own, or of the piece that was cropped from it.
    slope, intercept: HU = slope * stored + intercept.
    grid: the network's grid over the whole scan, as inference lays it.
    matrix: [3, 4] from an index of `grid` to an index of `voxels`.
    fill: HU of what the grid holds outside the scan; None repeats the scan's edge.
    region: (first, end) of the grid's voxels that patches may lie in, along z, y, x.
    points: int32 [N, 4], class and voxel (z, y, x) of examples of each class but background.
    boxes: a detection's truth in voxels of `grid`, float32 [n, 7]: x1, y1, z1, x2, y2, z2, class;
        in 2D [n, 6]: slice, x1, y1, x2, y2, class. None where there is no truth.
    slices: of a detection in 2D, the slices of `grid` that somebody looked at.
    spacing_is_known: as in Volume.
    folder: its entry of the cache; None where it lives in memory alone.
    """

    case: Case
    voxels: np.ndarray
    labels: np.ndarray | None
    geometry: Geometry
    slope: float
    intercept: float
    grid: Geometry
    matrix: np.ndarray
    fill: float | None
    region: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    points: np.ndarray
    boxes: np.ndarray | None = None
    slices: tuple[int, ...] = ()
    spacing_is_known: bool = True
    folder: Path | None = None

    def volume(self) -> Volume:
        """The scan (or the cropped piece of it) as inference takes it."""
        return Volume(
            self.voxels,
            self.geometry,
            self.slope,
            self.intercept,
            name=self.case.name,
            source=self.case.name,
            spacing_is_known=self.spacing_is_known,
        )

    def __reduce__(self):
        # Another process maps the same files: the voxels do not travel.
        if self.folder is not None:
            from fastmed.training.cache import open_entry

            return open_entry, (self.folder, self.case)
        return _rebuilt, (dict(vars(self)),)


def _rebuilt(fields: dict) -> StoredCase:
    return StoredCase(**fields)


def prepare(
    case: Case, spec: Spec, values: Mapping[str, tuple[int, ...]], crop: Crop = "scan"
) -> StoredCase:
    """Reads a case and keeps what training can use of it.

    crop: "scan" keeps all; "label" the labels' extent and LABEL_MARGIN_MM around it; (first, last)
        the slices from first to last, counted from 0, both included. Patches lie within that; the
        voxels around it are kept as far as a turned patch reaches.

    Raises DataError that names the case: unreadable, two grids, slices that it does not have.
    """
    volume = read_image(case, spec)
    labels = None
    if case.label is not None:
        stored, geometry = read_label(case, spec)
        if problems := pair_problems(case.name, volume.geometry, stored.shape, geometry):
            raise DataError.listing(f"{case.name} cannot be used", problems)
        labels = LabelValues.of(spec, values).to_classes(stored)
    grid = network_grid(case, volume, spec)
    matrix = volume.geometry.matrix_from(grid)
    region = tuple((0, n) for n in grid.shape_zyx)
    first, end = (0, 0, 0), volume.voxels.shape
    if crop != "scan":
        kept = _kept_voxels(case, crop, volume.voxels.shape, labels)
        if kept is not None:
            region = _region(kept, volume.geometry, grid, crop, spec)
            first, end = _reached(region, matrix, spec, volume.voxels.shape)
    boxes = None if case.boxes is None else boxes_on_grid(case, volume.geometry, grid)
    slices = slices_on_grid(case, volume.geometry, grid)
    piece = tuple(slice(a, b) for a, b in zip(first, end, strict=True))
    matrix[:, 3] -= first
    voxels = _compact(volume.voxels[piece])
    labels = None if labels is None else np.ascontiguousarray(labels[piece])
    return StoredCase(
        case=case,
        voxels=voxels,
        labels=labels,
        geometry=volume.geometry.crop(first, voxels.shape),
        slope=volume.slope,
        intercept=volume.intercept,
        grid=grid,
        matrix=matrix,
        fill=fill_hu(volume, spec),
        region=region,
        points=_points(labels),
        boxes=boxes,
        slices=slices,
        spacing_is_known=volume.spacing_is_known,
    )


def network_grid(case: Case, volume: Volume, spec: Spec) -> Geometry:
    """The network's grid over the whole scan; raises DataError where its region is not there."""
    try:
        return grid_geometry(volume, spec)
    except SeriesError as error:
        raise DataError(f"{case.name}: {error}") from error


def _kept_voxels(case: Case, crop: Crop, shape, labels: np.ndarray | None):
    """(first, end) of the voxels that a crop names, along each axis; None for all of them."""
    if crop == "label":
        if labels is None or not labels.any():
            return None
        planes = [np.flatnonzero(labels.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        return [(int(plane[0]), int(plane[-1]) + 1) for plane in planes]
    first, last = crop
    if not 0 <= first <= last < shape[0]:
        raise DataError(
            f"{case.name}: crop [{first}, {last}] leaves the scan, which has the slices 0 to "
            f'{shape[0] - 1}; name slices that every scan has, or crop by "label"'
        )
    return [(first, last + 1), (0, shape[1]), (0, shape[2])]


def _corners(bounds) -> np.ndarray:
    """[8, 3] corners of voxels first .. end - 1, their whole extent, as indices."""
    return np.array(list(product(*((a - 0.5, b - 0.5) for a, b in bounds))))


def _region(kept, scan: Geometry, grid: Geometry, crop: Crop, spec: Spec):
    """The kept voxels' extent in the grid, at least a tile wide where the grid is."""
    at = grid.to_index(scan.to_world(_corners(kept)))
    margin = LABEL_MARGIN_MM / np.array(grid.spacing_mm_zyx) if crop == "label" else np.zeros(3)
    first = np.ceil(at.min(axis=0) - margin - 1e-6).astype(int)
    end = np.floor(at.max(axis=0) + margin + 1e-6).astype(int) + 1
    region = []
    for axis, (a, b) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
        n = grid.shape_zyx[axis]
        a, b = max(min(a, n - 1), 0), min(max(b, 1), n)
        tile = min(spec.tile_zyx[axis] if spec.tile_zyx else n, n)
        if b - a < tile:
            a = min(max((a + b - tile) // 2, 0), n - tile)
            b = a + tile
        region.append((a, b))
    return tuple(region)


def _reached(region, matrix: np.ndarray, spec: Spec, shape):
    """First and end of the voxels that patches in the region reach, turned ones included."""
    tile = spec.tile_zyx or tuple(b - a for a, b in region)
    grown = [(a - n // 4 - 8, b + n // 4 + 8) for (a, b), n in zip(region, tile, strict=True)]
    at = _corners(grown) @ matrix[:, :3].T + matrix[:, 3]
    first = np.clip(np.floor(at.min(axis=0)).astype(int) - 1, 0, np.subtract(shape, 1))
    end = np.clip(np.ceil(at.max(axis=0)).astype(int) + 2, first + 1, shape)
    return tuple(first.tolist()), tuple(end.tolist())


def _compact(voxels: np.ndarray) -> np.ndarray:
    """The same values in the smallest of the types that are cached; other floats as float32."""
    if voxels.dtype.kind == "b":
        return voxels.astype(np.uint8)
    low, high = voxels.min(), voxels.max()
    whole = voxels.dtype.kind in "iu" or bool(np.array_equal(voxels, np.rint(voxels)))
    types = (np.uint8,) if voxels.dtype == np.uint8 else (np.int16, np.uint16, np.int32)
    for dtype in types if whole else ():
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            # Above 2**24 float32 is as exact as the scan's own float32, int32 is too.
            return np.ascontiguousarray(voxels, dtype=dtype)
    return np.ascontiguousarray(voxels, dtype=np.float32)


def _points(labels: np.ndarray | None) -> np.ndarray:
    """Up to POINTS voxels of each class, drawn by a fixed seed."""
    if labels is None:
        return np.zeros((0, 4), np.int32)
    at = np.flatnonzero(labels)
    classes = labels.ravel()[at]
    rng = np.random.default_rng(0)
    rows = []
    for value in np.unique(classes):
        own = at[classes == value]
        if len(own) > POINTS:
            own = own[rng.choice(len(own), POINTS, replace=False)]
        places = np.stack(np.unravel_index(own, labels.shape), axis=1)
        rows.append(np.column_stack([np.full(len(own), value), places]))
    return np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), np.int32)
