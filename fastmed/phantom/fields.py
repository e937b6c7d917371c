"""What every phantom is drawn with: smooth random fields, branching tubes, a scanner's noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from fastmed.geometry import Geometry
from fastmed.ops import window_resample


@dataclass(frozen=True)
class Tube:
    """A straight piece of vessel or airway: its ends (x, y, z) in LPS mm and their radii in mm."""

    start: np.ndarray
    end: np.ndarray
    start_radius: float
    end_radius: float


def smooth_field(rng, geometry: Geometry, amplitude: float, length_mm: float) -> np.ndarray:
    """A smooth random field on an upright grid, [D, H, W] float32 of deviation about `amplitude`.

    Cubic B-splines over random knots every `length_mm` in space, so that neighbouring slices agree
    however far apart they lie.
    """
    places = [
        np.arange(count) * (step / length_mm) + rng.uniform(1, 2)
        for count, step in zip(geometry.shape_zyx, geometry.spacing_mm_zyx, strict=True)
    ]
    knots = rng.standard_normal([int(at[-1]) + 3 for at in places], dtype=np.float32)
    field = knots * (amplitude / 0.34)  # such a field over knots of deviation 1 has about 0.34
    for axis in (2, 1, 0):  # the short axis first, while the array is small
        field = _spline(field, places[axis], axis)
    return field


def _spline(knots: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Cubic B-spline along one axis at places in units of knots, each from its four neighbours."""
    first = at.astype(int) - 1
    column = [-1 if k == axis else 1 for k in range(3)]
    total = None
    for tap in range(4):
        away = np.abs(at - first - tap)
        weight = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, (2 - away) ** 3 / 6)
        part = knots.take(first + tap, axis)
        part *= weight.astype(np.float32).reshape(column)
        total = part if total is None else np.add(total, part, out=total)
    return total


def on_grid(values: np.ndarray, own: Geometry, geometry: Geometry) -> np.ndarray:
    """Interpolates float32 values [D, H, W] on the grid `own` at the voxels of another grid."""
    matrix = torch.from_numpy(own.matrix_from(geometry))
    return window_resample(torch.from_numpy(values), matrix, geometry.shape_zyx).numpy()


def share(depth_mm: np.ndarray, voxel_mm: float) -> np.ndarray:
    """The share, 0..1, of each voxel that lies inside a surface, from the depth of its centre."""
    return np.clip(depth_mm / voxel_mm + 0.5, 0, 1)


def grow(
    rng: np.random.Generator,
    starts: np.ndarray,
    directions: np.ndarray,
    radii_mm: np.ndarray,
    *,
    length_mm: float,
    thinnest_mm: float,
    is_inside: Callable[[np.ndarray], np.ndarray],
) -> list[Tube]:
    """Grows vessel trees from points [N, 3] along directions [N, 3]; a branch ends outside.

    Each piece forks into two thinner, shorter ones, down to `thinnest_mm`; by Murray's law two
    equal children have 0.79 of their parent's radius. is_inside takes points [N, 3], LPS mm.
    """
    tubes: list[Tube] = []
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    while len(starts):
        count = len(starts)
        ends = starts + directions * (length_mm * rng.uniform(0.8, 1.2, (count, 1)))
        thinner = radii_mm * rng.uniform(0.72, 0.84, count)
        tubes += [Tube(*each) for each in zip(starts, ends, radii_mm, thinner, strict=True)]
        side = np.cross(directions, rng.standard_normal((count, 3)))
        side *= rng.uniform(0.35, 0.8, (count, 1)) / np.linalg.norm(side, axis=1, keepdims=True)
        children = directions + np.stack([side, -side])
        children += 0.15 * rng.standard_normal((2, count, 3))
        children /= np.linalg.norm(children, axis=2, keepdims=True)
        on = np.flatnonzero((thinner >= thinnest_mm) & is_inside(ends))
        starts = np.concatenate([ends[on]] * 2)
        radii_mm = np.concatenate([thinner[on]] * 2)
        directions = children[:, on].reshape(-1, 3)
        length_mm *= 0.84
    return tubes


def add_tubes(depth_mm: np.ndarray, geometry: Geometry, tubes: list[Tube]) -> None:
    """Raises depth_mm [D, H, W] on an upright grid, in place, to the depth inside each tube."""
    spacing = np.array(geometry.spacing_mm_zyx)[::-1]
    origin = geometry.origin_lps_mm
    shape = np.array(geometry.shape_zyx)[::-1]
    for tube in tubes:
        reach = max(tube.start_radius, tube.end_radius) + spacing
        ends = np.stack([tube.start, tube.end])
        low = np.maximum(np.ceil((ends.min(axis=0) - reach - origin) / spacing), 0).astype(int)
        high = np.floor((ends.max(axis=0) + reach - origin) / spacing).astype(int) + 1
        high = np.minimum(high, shape)
        if (low >= high).any():
            continue
        x, y, z = (
            (origin[k] + spacing[k] * np.arange(low[k], high[k]) - tube.start[k]).astype(np.float32)
            for k in range(3)
        )
        x, y, z = x[None, None, :], y[None, :, None], z[:, None, None]
        axis = (tube.end - tube.start).astype(np.float32)
        square = float(axis @ axis) + 1e-6
        along = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / square, 0, 1)
        away = np.sqrt(
            (x - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2 + (z - along * axis[2]) ** 2
        )
        inside = tube.start_radius + (tube.end_radius - tube.start_radius) * along - away
        box = depth_mm[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
        np.maximum(box, inside, out=box)


def scanner_noise(rng: np.random.Generator, shape_zyx, noise_hu: float) -> np.ndarray:
    """Noise of a reconstructed CT, [D, H, W] float32 HU: grain, streaks across, a little along z.

    Filtered back projection leaves grain of a few pixels with little in the low frequencies, and
    more of it along the broad axis of the body.
    """
    depth, height, width = shape_zyx
    white = rng.standard_normal((depth + 1, height + 6, width + 6), dtype=np.float32)
    white = white[1:] + 0.6 * white[:-1]
    fine = _boxes(white, 1)  # a box of 2 x 2
    coarse = _boxes(fine, 2)  # and of 4 x 4 about the same centre
    grain = fine[:, 1 : 1 + height, 1 : 1 + width] - 0.5 * coarse[:, :height, :width]
    grain *= noise_hu / grain.std()
    streaks = ndimage.gaussian_filter1d(rng.standard_normal((depth, height)), 0.7, axis=1)
    grain += (0.25 * noise_hu * streaks / streaks.std()).astype(np.float32)[:, :, None]
    return grain


def _boxes(values: np.ndarray, step: int) -> np.ndarray:
    values = values[:, step:] + values[:, :-step]
    return (values[:, :, step:] + values[:, :, :-step]) * np.float32(0.25)
