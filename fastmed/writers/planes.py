"""Right-angled planes through what was found, cut straight from the stored voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.volume import Volume

_BODY_SEARCH, _LABEL_SEARCH = 40, 64  # voxels per axis that are looked at, at most
_TALLEST = 1.35  # a long scan is cropped to this multiple of its width, around the centre
_AIR_HU, _BODY_HU = -1024.0, -400.0
_BODY_MARGIN_MM = 8.0


@dataclass(frozen=True, eq=False)
class Plane:
    """One cut. Rows run down and columns to the right, as a radiologist looks at them.

    name: axial, coronal, sagittal, or image.
    gray: [H, W] uint8, the windowed CT. labels: [kH, kW], k label pixels along one pixel.
    letters: the patient's side at the left, right, top and bottom edge, as RLAP; "" of a picture.
    crossing: fractions (right, down) of the size at which the two other planes cut this one; None
        where there are none.
    """

    name: str
    gray: np.ndarray
    labels: np.ndarray
    letters: str
    crossing: tuple[float, float] | None


def field_of_view(
    volume: Volume, findings: Findings, around_lps_mm: np.ndarray | None = None
) -> tuple[Geometry, np.ndarray]:
    """Chooses what a picture shows.

    around_lps_mm: a point [3] that it shows in any case, which is then the centre.

    Returns an upright, right-angled grid around the body, without the air beside it and, of a
    long scan, only the part around the centre; and the centre in LPS mm, where the planes that
    hold the most labelled voxels meet, or that of the scan where nothing was found.
    """
    grid = volume.geometry.grid((min(volume.geometry.spacing_mm_zyx),) * 3)
    size = np.array(grid.shape_zyx)
    centre, low, high = (size - 1) // 2, np.zeros(3, int), size

    step = _steps(volume.voxels, _BODY_SEARCH)
    thin = volume.voxels[:: step[0], :: step[1], :: step[2]]
    body = np.argwhere(thin * np.float32(volume.slope) + np.float32(volume.intercept) > _BODY_HU)
    labelled, label_step = _labelled(findings)
    if len(body):
        at = grid.to_index(volume.geometry.to_world(body * step))
        margin = _BODY_MARGIN_MM / grid.spacing_mm_zyx[0]
        low, high = np.percentile(at, (0.1, 99.9), axis=0) + np.array([[-margin], [margin]])
    if len(labelled):
        at = grid.to_index(findings.geometry.to_world(labelled * label_step))
        reach_mm = max(np.multiply(findings.geometry.spacing_mm_zyx, label_step))
        reach = reach_mm / grid.spacing_mm_zyx[0]
        low = np.minimum(low, at.min(axis=0) - reach)
        high = np.maximum(high, at.max(axis=0) + reach + 1)
        centre = _fullest(at.clip(0, size - 1), 2 * reach)
    elif around_lps_mm is not None:
        at = grid.to_index(around_lps_mm)
        low, high = np.minimum(low, at), np.maximum(high, at + 1)
        centre = np.rint(at).clip(0, size - 1).astype(int)
    low = np.floor(low).clip(0, size - 1).astype(int)
    high = np.ceil(high).clip(low + 1, size).astype(int)

    tallest = min(size[0], round(_TALLEST * max(high[1:] - low[1:])))
    low[0] = np.clip(centre[0] - tallest // 2, 0, size[0] - tallest)
    high[0] = low[0] + tallest
    return grid.crop(low, high - low), grid.to_world(centre)


def cut_planes(
    volume: Volume,
    findings: Findings,
    field: Geometry,
    centre_lps_mm: np.ndarray,
    *,
    pixel_mm: float,
    window_hu: tuple[float, float],
    label_detail: int,
) -> tuple[Plane, Plane, Plane]:
    """Cuts the axial, coronal and sagittal plane of `field` through the centre.

    pixel_mm: side of a pixel, the same in all planes. label_detail: label pixels along its side.
    """
    grid = field.grid((pixel_mm,) * 3)
    depth, height, width = grid.shape_zyx
    centre = np.rint(grid.to_index(centre_lps_mm)).clip(0, np.array(grid.shape_zyx) - 1)
    z, y, x = (int(n) for n in centre)
    top = depth - 1

    def cut(name, origin, size, down, right, letters, crossing):
        across = np.cross(down, right)

        def plane_geometry(detail: int) -> Geometry:
            steps = np.array([across, down, right]) @ grid.steps_lps_mm / detail
            start = grid.to_world(origin) - (steps[1] + steps[2]) * (detail - 1) / 2
            return Geometry.from_axes((1, size[0] * detail, size[1] * detail), start, steps)

        gray = _sample_window(volume, plane_geometry(1), window_hu)
        labels = _sample_labels(findings, plane_geometry(label_detail))
        fractions = tuple((at + 0.5) / n for at, n in zip(crossing, size[::-1], strict=True))
        return Plane(name, gray, labels, letters, fractions)

    return (
        cut("axial", (z, 0, 0), (height, width), (0, 1, 0), (0, 0, 1), "RLAP", (x, y)),
        cut("coronal", (top, y, 0), (depth, width), (-1, 0, 0), (0, 0, 1), "RLHF", (x, top - z)),
        cut("sagittal", (top, 0, x), (depth, height), (-1, 0, 0), (0, 1, 0), "APHF", (y, top - z)),
    )


def cut_around(
    volume: Volume,
    directions: np.ndarray,
    centre_lps_mm,
    *,
    side_px: int,
    pixel_mm: float,
    window_hu,
) -> tuple[np.ndarray, Geometry]:
    """Cuts a square around a point, from near.

    directions: [3, 3] LPS unit vectors across it, down and to the right.

    Returns [side_px, side_px] uint8 and where its pixels are; beyond the scan the edge repeats.
    """
    steps = np.asarray(directions) * pixel_mm
    start = np.asarray(centre_lps_mm) - (steps[1] + steps[2]) * (side_px - 1) / 2
    square = Geometry.from_axes((1, side_px, side_px), start, steps)
    return _sample_window(volume, square, window_hu), square


def cut_image(
    volume: Volume,
    findings: Findings,
    *,
    pixel_mm: float,
    window_hu: tuple[float, float],
    label_detail: int,
) -> Plane:
    """Cuts the whole of a grey image, as it is stored; pixel_mm is in pixels of the image."""
    image = volume.geometry
    rows, columns = (max(1, round(n / pixel_mm)) for n in image.shape_zyx[1:])
    gray = _sample_window(volume, image.resized((1, rows, columns)), window_hu)
    size = (1, rows * label_detail, columns * label_detail)
    return Plane("image", gray, _sample_labels(findings, image.resized(size)), "", None)


def _steps(voxels: np.ndarray, search_size: int) -> list[int]:
    return [math.ceil(n / search_size) for n in voxels.shape]


def _labelled(findings: Findings) -> tuple[np.ndarray, list[int]]:
    """Indices of labelled voxels of a thinned-out label map, and the steps to multiply them by."""
    if not any(mask.voxels for mask in findings.masks):
        return np.empty((0, 3)), [1, 1, 1]
    step = _steps(findings.labels, _LABEL_SEARCH)
    found = np.argwhere(findings.labels[:: step[0], :: step[1], :: step[2]])
    return (found, step) if len(found) else (np.argwhere(findings.labels), [1, 1, 1])


def _fullest(at: np.ndarray, bin_width: float) -> np.ndarray:
    """The index along each axis around which most of the points [N, 3] lie.

    Bins span several voxels, or the rhythm of two grids would show as full and empty planes.
    """
    fullest = []
    for along in at.T:
        bins = np.floor(along / bin_width).astype(int)
        fullest.append(np.rint(np.median(along[bins == np.bincount(bins).argmax()])))
    return np.array(fullest, dtype=int)


def _sample_window(volume: Volume, plane: Geometry, window_hu: tuple[float, float]) -> np.ndarray:
    import torch

    from fastmed.ops import window_resample

    shades = window_resample(
        torch.from_numpy(np.ascontiguousarray(volume.voxels)),
        torch.from_numpy(volume.geometry.matrix_from(plane)),
        plane.shape_zyx,
        scale=volume.slope,
        shift=volume.intercept,
        window=window_hu,
        fill=_AIR_HU if volume.geometry.is_sheared else None,
    )
    return np.rint(np.nan_to_num(shades[0].numpy()) * 255).astype(np.uint8)


def _sample_labels(findings: Findings, plane: Geometry) -> np.ndarray:
    import torch

    from fastmed.ops import window_resample

    if findings.labels is None:
        return np.zeros(plane.shape_zyx[1:], dtype=np.uint8)
    labels = torch.from_numpy(np.ascontiguousarray(findings.labels))
    matrix = torch.from_numpy(findings.geometry.matrix_from(plane))
    size = plane.shape_zyx
    return window_resample(labels, matrix, size, fill=0, mode="nearest", dtype=labels.dtype)[
        0
    ].numpy()
