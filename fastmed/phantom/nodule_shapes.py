"""Nodules one by one: lobed bodies of three kinds, drawn into HU, and the box that holds each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from fastmed.geometry import Geometry

_FINE = 3  # samples of a voxel along each axis: shares of voxels, boxes to a sixth of a voxel


@dataclass(frozen=True, eq=False)
class Nodule:
    """One nodule that was drawn.

    kind: solid, part-solid, ground-glass or tiny.
    box_lps_mm: (x1, y1, z1, x2, y2, z2), the smallest upright box in LPS mm around what of it lies
        in the lung; of a soft border, where half of the nodule's density is reached.
    diameter_mm: the mean of the box's sides.
    first_zyx, inside: the voxels [d, h, w] bool of which at least half lies in it, and where that
        array begins in the scan.
    """

    kind: str
    box_lps_mm: tuple[float, float, float, float, float, float]
    first_zyx: tuple[int, int, int]
    inside: np.ndarray

    @property
    def diameter_mm(self) -> float:
        return float(np.mean(np.subtract(self.box_lps_mm[3:], self.box_lps_mm[:3])))

    @property
    def centre_lps_mm(self) -> np.ndarray:
        return np.add(self.box_lps_mm[:3], self.box_lps_mm[3:]) / 2


@dataclass(frozen=True, eq=False)
class Lump:
    """A body about a point, seen from which every ray leaves it once: an ellipsoid with lobes.

    It is `scale_mm` times a body whose border lies at 1 + sum(amplitudes * cos(waves @ n + phases))
    along the unit vector n, in axes that `shape` [3, 3] turns and stretches.
    """

    scale_mm: float
    shape: np.ndarray
    waves: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray

    def depth_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """How many mm inside the body points lie, given as offsets in mm; about 1 mm per mm."""
        a, b, c = (row[0] * x + row[1] * y + row[2] * z for row in self.shape / self.scale_mm)
        away = np.sqrt(a * a + b * b + c * c) + np.float32(1e-6)
        border = np.ones_like(away)
        for wave, phase, amplitude in zip(self.waves, self.phases, self.amplitudes, strict=True):
            border += amplitude * np.cos((wave[0] * a + wave[1] * b + wave[2] * c) / away + phase)
        return (border - away) * np.float32(self.scale_mm)


def draw_lump(rng: np.random.Generator, diameter_mm: float, lobes: float = 0.08) -> Lump:
    """Draws a body whose upright box has sides of `diameter_mm` in the mean.

    lobes: deviation of the border, as a share of the radius.
    """
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    shape = (turn * rng.uniform(0.82, 1.2, 3)[:, None]).astype(np.float32)
    count = 5
    waves = (rng.standard_normal((count, 3)) * 2.2).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    amplitudes = (lobes * rng.uniform(0.3, 1, count)).astype(np.float32)
    unit = Lump(1.0, shape, waves, phases, amplitudes)
    at = np.linspace(-2.2, 2.2, 45, dtype=np.float32)
    inside = unit.depth_mm(at[None, None, :], at[None, :, None], at[:, None, None]) > 0
    sides = [
        np.ptp(np.flatnonzero(inside.any(axis=others))) + 1 for others in ((1, 2), (0, 2), (0, 1))
    ]
    return Lump(diameter_mm / (np.mean(sides) * (at[1] - at[0])), shape, waves, phases, amplitudes)


@dataclass(frozen=True, eq=False)
class Patch:
    """A part of a scan on a lattice three times as fine, about a point.

    box: the voxels, as slices; x, y, z: offsets of the fine samples from the point, LPS mm.
    """

    box: tuple[slice, slice, slice]
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    centre: np.ndarray
    geometry: Geometry

    def shares(self, fine: np.ndarray) -> np.ndarray:
        """Means over each voxel's fine samples."""
        d, h, w = (n // _FINE for n in fine.shape)
        return fine.reshape(d, _FINE, h, _FINE, w, _FINE).mean(axis=(1, 3, 5))

    def refined(self, values: np.ndarray) -> np.ndarray:
        """A whole scan's values at the fine samples, interpolated."""
        part = torch.from_numpy(np.ascontiguousarray(values[self.box]))[None, None]
        fine = torch.nn.functional.interpolate(part, scale_factor=_FINE, mode="trilinear")
        return fine[0, 0].numpy()

    def bounds_lps_mm(self, inside: np.ndarray) -> np.ndarray:
        """Low and high corner [2, 3] (x, y, z) of the fine samples inside, in LPS mm."""
        half = np.abs(self.geometry.steps_lps_mm).sum(axis=0) / (2 * _FINE)
        bounds = []
        for axis, offsets in enumerate((self.x, self.y, self.z)):
            along = np.broadcast_to(offsets, inside.shape)[inside] + self.centre[axis]
            bounds.append((along.min() - half[axis], along.max() + half[axis]))
        return np.array(bounds, dtype=np.float64).T


def cut_patch(geometry: Geometry, centre: np.ndarray, reach_mm: float) -> Patch:
    """Cuts the part of a scan that lies within `reach_mm` of a point (x, y, z in LPS mm)."""
    index, spacing = geometry.to_index(centre), np.array(geometry.spacing_mm_zyx)
    shape = np.array(geometry.shape_zyx)
    low = np.clip(np.floor(index - reach_mm / spacing), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(index + reach_mm / spacing) + 1, low + 1, shape).astype(int)
    away = [
        ((a + (np.arange((b - a) * _FINE) + 0.5) / _FINE - 0.5) - middle)
        .astype(np.float32)
        .reshape([-1 if axis == k else 1 for axis in range(3)])
        for k, (a, b, middle) in enumerate(zip(low, high, index, strict=True))
    ]
    steps = geometry.steps_lps_mm.astype(np.float32)
    x, y, z = (
        sum((away[k] * steps[k, axis] for k in range(3) if steps[k, axis]), np.float32(0))
        for axis in range(3)
    )
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return Patch(box, x, y, z, np.asarray(centre, dtype=np.float64), geometry)


def draw_nodule(
    rng: np.random.Generator,
    geometry: Geometry,
    hu: np.ndarray,
    lungs: np.ndarray,
    kind: str,
    centre: np.ndarray,
    diameter_mm: float,
    solid_hu: float,
    blur_mm: float = 0.0,
) -> tuple[Nodule, Patch, np.ndarray] | None:
    """Draws one nodule into hu [D, H, W] float32, in place; what is denser shines through.

    lungs: [D, H, W] float32, how many mm inside the lungs voxels lie; a nodule ends at the pleura.
    solid_hu: HU of its solid part; ground glass lies 260 to 430 HU above the lung around it.
    blur_mm: deviation of a blur in the slice, for scans that are blurred already.

    Returns the nodule, its patch, and how much of each voxel it fills, 0..1; None where no voxel
    is left of it, and hu as it was.
    """
    patch = cut_patch(geometry, centre, 0.75 * diameter_mm + 3)
    lump = draw_lump(rng, diameter_mm, 0.05 if kind == "tiny" else 0.1)
    soft_mm = {"solid": 0.4, "tiny": 0.4, "part-solid": 1.6, "ground-glass": 1.8}[kind]
    depth = lump.depth_mm(patch.x, patch.y, patch.z)
    within = patch.refined(lungs)
    true = np.minimum(depth, within) > 0
    inside = patch.shares(true.astype(np.float32)) >= 0.5
    if not inside.any():
        return None
    depth = np.minimum(depth, within + 1)  # under the pleura too, or a dark seam would part them
    around = np.minimum(hu[patch.box], -500)
    value: np.ndarray | float = solid_hu
    if kind in ("part-solid", "ground-glass"):
        grain = ndimage.gaussian_filter(rng.standard_normal(around.shape), 1.2)
        value = around + rng.uniform(260, 430) * (1 + 0.12 * grain / grain.std())
    part = patch.shares(np.clip(depth / soft_mm + 0.5, 0, 1))
    layers = [(part, value)]
    if kind == "part-solid":
        core = draw_lump(rng, diameter_mm * rng.uniform(0.4, 0.65), 0.12)
        shift = rng.uniform(-0.12, 0.12, 3) * diameter_mm
        offsets = (
            a - np.float32(b) for a, b in zip((patch.x, patch.y, patch.z), shift, strict=True)
        )
        solid = np.minimum(core.depth_mm(*offsets), depth)
        layers.append((patch.shares(np.clip(solid / 0.8 + 0.5, 0, 1)), solid_hu))
    target = hu[patch.box]
    for layer, worth in layers:
        if blur_mm:
            _, *sigma = (blur_mm / s for s in geometry.spacing_mm_zyx)
            layer = ndimage.gaussian_filter(layer, (0, *sigma), truncate=3)
        np.maximum(target, target + layer * (worth - target), out=target)
    bounds = patch.bounds_lps_mm(true)
    nodule = Nodule(
        kind,
        tuple(float(v) for v in bounds.reshape(-1)),
        tuple(s.start for s in patch.box),
        inside,
    )
    return nodule, patch, part
