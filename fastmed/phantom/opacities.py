"""What is wrong in a synthetic lung: masses to be found, and what a threshold takes for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmed.geometry import Geometry
from fastmed.phantom.fields import Tube, add_tubes, share, smooth_field

_DEPENDENT_MM = 10.0  # from this y on to the back, lungs are pressed together and masses left out


@dataclass(eq=False)
class Scene:
    """A chest that opacities are added to, in place.

    lungs, cavity: [D, H, W] float32, how many mm inside the lungs and the rib cage a voxel lies.
    is_left: [D, H, W] bool; hu: [D, H, W] float32; voxel_mm: the spacing in the slice.
    """

    geometry: Geometry
    lungs: np.ndarray
    cavity: np.ndarray
    is_left: np.ndarray
    hu: np.ndarray
    voxel_mm: float

    def lay(self, part: np.ndarray, value, box=...) -> None:
        """Mixes `value` HU into a box of the scan, by the share of each voxel that it fills."""
        target = self.hu[box]
        target += part * (value - target)

    def box(self, centre: np.ndarray, reach_mm: float):
        """Slices around a point (x, y, z in mm), and the offsets (x, y, z) of the voxels in it."""
        spacing = np.array(self.geometry.spacing_mm_zyx)
        index = self.geometry.to_index(centre)
        shape = np.array(self.geometry.shape_zyx)
        low = np.clip(np.ceil(index - reach_mm / spacing), 0, shape).astype(int)
        high = np.clip(np.floor(index + reach_mm / spacing) + 1, 0, shape).astype(int)
        slices = tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
        z, y, x = (
            ((np.arange(s.start, s.stop) - index[k]) * spacing[k])
            .astype(np.float32)
            .reshape([-1 if axis == k else 1 for axis in range(3)])
            for k, s in enumerate(slices)
        )
        return slices, (x, y, z)

    def place(self, rng, least_mm, most_mm, in_front_of_mm=np.inf, behind_mm=-np.inf):
        """Draws a point (x, y, z in mm) that deep in a lung; None where there is none."""
        _, y, _ = _axes(self)
        fits = (self.lungs > least_mm) & (self.lungs < most_mm)
        fits &= (y < in_front_of_mm) & (y > behind_mm)
        candidates = np.flatnonzero(fits)
        if not len(candidates):
            return None
        index = np.unravel_index(candidates[rng.integers(len(candidates))], self.lungs.shape)
        return self.geometry.to_world(np.array(index))


def add_lesions(rng: np.random.Generator, scene: Scene, count: int) -> np.ndarray:
    """Adds masses, rounded and lobed, with a halo; returns their mask, bool."""
    mask = np.zeros(scene.hu.shape, dtype=bool)
    lobes = smooth_field(rng, scene.geometry, 1.0, 11)
    for _ in range(count):
        radius = rng.uniform(13, 20)
        centre = scene.place(rng, 0.75 * radius, 200, _DEPENDENT_MM)
        if centre is None:
            centre = scene.place(rng, 5, 200, _DEPENDENT_MM)
        if centre is None:
            continue
        box, (x, y, z) = scene.box(centre, 1.7 * radius)
        stretch = rng.uniform(0.85, 1.2, 3)
        away = np.sqrt((x / stretch[0]) ** 2 + (y / stretch[1]) ** 2 + (z / stretch[2]) ** 2)
        depth = radius - away + 0.13 * radius * lobes[box]
        lungs = scene.lungs[box]
        within = share(lungs, scene.voxel_mm)
        halo = rng.uniform(3, 7)
        scene.lay(0.55 * np.clip(depth / halo + 1, 0, 1) * within, -350.0, box)
        scene.lay(share(depth, 2 * scene.voxel_mm) * within, rng.uniform(10, 70), box)
        mask[box] |= (depth > 0) & (lungs > 0)
    return mask


def add_distractors(rng: np.random.Generator, scene: Scene, consolidations: int) -> None:
    """Adds what is no mass though as dense: each with its own chance, in every chest alike."""
    if rng.random() < 0.85:
        _dependent(rng, scene)
    for _ in range(rng.choice(4, p=(0.02, 0.43, 0.35, 0.2))):
        _plate(rng, scene)
    for _ in range(rng.choice(4, p=(0.02, 0.43, 0.35, 0.2))):
        _clump(rng, scene)
    for _ in range(rng.choice(3, p=(0.5, 0.3, 0.2))):
        _pleura(rng, scene)
    for _ in range(rng.choice(3, p=(0.5, 0.3, 0.2))):
        _node(rng, scene)
    if rng.random() < 0.25:
        _effusion(rng, scene)
    for _ in range(consolidations):
        _consolidation(rng, scene)


def _dependent(rng, scene: Scene) -> None:
    """Lung pressed together at the back: a crescent along the pleura, densest there."""
    z, y, _ = _axes(scene)
    thick = rng.uniform(10, 42)
    # Weight presses down and to the back: depth counts from the rear wall, less towards the top.
    edge = (
        scene.cavity + 0.5 * np.maximum(0, 45 - y) + 0.2 * np.maximum(0, z - rng.uniform(-80, 40))
    )
    edge += smooth_field(rng, scene.geometry, 4, 25)
    part = np.clip((thick - edge) / rng.uniform(4, 12), 0, 1)
    part *= share(scene.lungs - rng.uniform(2, 4), scene.voxel_mm)  # a rim of air keeps it inside
    if rng.random() < 0.4:
        part *= scene.is_left == (rng.random() < 0.5)
    scene.lay(part * rng.uniform(0.7, 1), rng.uniform(-200, 60))


def _consolidation(rng, scene: Scene) -> None:
    """Airless lung at the back: flat, long and broad along the rear wall, as thick as a mass."""
    centre = scene.place(rng, 11, 200, behind_mm=2.5 * _DEPENDENT_MM)
    if centre is None:
        return
    thick = rng.uniform(10, 16)
    across, along = rng.uniform(1.6, 2.5, 2) * thick
    box, (x, y, z) = scene.box(centre, 2.5 * thick)
    depth = thick * (1 - np.sqrt((x / across) ** 2 + (y / thick) ** 2 + (z / along) ** 2))
    part = share(np.minimum(depth, scene.lungs[box]), 2 * scene.voxel_mm)
    scene.lay(part, rng.uniform(10, 70), box)


def _plate(rng, scene: Scene) -> None:
    """A plate of airless lung, long and broad, 5 to 10 mm thick."""
    centre = scene.place(rng, 6, 40)
    if centre is None:
        return
    box, (x, y, z) = scene.box(centre, 50)
    normal = rng.normal((0, 0, 1.5))
    normal /= np.linalg.norm(normal)
    along = x * normal[0] + y * normal[1] + z * normal[2]
    radial = np.sqrt(np.maximum(x**2 + y**2 + z**2 - along**2, 0))
    bowed = along + rng.uniform(-0.006, 0.006) * radial**2
    depth = np.minimum(rng.uniform(2.5, 5) - np.abs(bowed), rng.uniform(24, 46) - radial)
    part = share(np.minimum(depth, scene.lungs[box]), scene.voxel_mm)
    scene.lay(part, rng.uniform(-100, 60), box)


def _clump(rng, scene: Scene) -> None:
    """Wide vessels side by side, as of a malformation or of bronchi full of mucus."""
    centre = scene.place(rng, 10, 60)
    if centre is None:
        return
    course = rng.standard_normal(3)
    course /= np.linalg.norm(course)
    tubes = []
    for _ in range(rng.integers(2, 6)):
        at = centre + rng.normal(0, 11, 3)
        half = (course + 0.25 * rng.standard_normal(3)) * rng.uniform(22, 36)
        bow = at + rng.normal(0, 6, 3)
        radii = rng.uniform(2.5, 5, 3)
        tubes.append(Tube(at - half, bow, radii[0], radii[1]))
        tubes.append(Tube(bow, at + half, radii[1], radii[2]))
    depth = np.full(scene.hu.shape, -9.0, dtype=np.float32)
    add_tubes(depth, scene.geometry, tubes)
    scene.lay(share(np.minimum(depth, scene.lungs), scene.voxel_mm), rng.uniform(10, 80))


def _pleura(rng, scene: Scene) -> None:
    """Thickened pleura: flat, broad, against the chest wall; not part of the lung."""
    centre = scene.place(rng, 0, 4)
    if centre is None:
        return
    box, (x, y, z) = scene.box(centre, 55)
    reach = rng.uniform(25, 50)
    away = np.sqrt(x**2 + y**2 + z**2)
    thick = rng.uniform(5, 14) * np.sqrt(np.clip(1 - (away / reach) ** 2, 0, 1))
    inner = np.minimum(scene.cavity, 99)[box]
    depth = np.minimum(thick - inner, 3 + scene.lungs[box])
    depth = np.where(away < reach, depth, -99)
    scene.lay(share(depth, scene.voxel_mm), rng.uniform(10, 60), box)
    scene.lungs[box] = np.minimum(scene.lungs[box], -depth)


def _node(rng, scene: Scene) -> None:
    """A large node of the mediastinum that bulges into a lung; not part of the lung."""
    centre = scene.place(rng, -14, -5)
    if centre is None or scene.cavity[_nearest(scene, centre)] < 25:
        return
    box, (x, y, z) = scene.box(centre, 24)
    depth = rng.uniform(12, 20) - np.sqrt(x**2 + y**2 + z**2)
    depth = np.minimum(depth, scene.cavity[box])
    scene.lay(share(depth, scene.voxel_mm), rng.uniform(20, 70), box)
    scene.lungs[box] = np.minimum(scene.lungs[box], -depth)


def _effusion(rng, scene: Scene) -> None:
    """Fluid behind a lung, level on top as the patient lies; not part of the lung."""
    _, y, _ = _axes(scene)
    level = rng.uniform(45, 75)
    side = scene.is_left == (rng.random() < 0.5)
    depth = np.minimum(y - level, scene.lungs + 1)
    depth = np.where(side & (scene.lungs > -6), depth, -9)
    scene.lay(share(depth, scene.voxel_mm), rng.uniform(0, 25))
    scene.lungs[...] = np.minimum(scene.lungs, -depth)


def _axes(scene: Scene):
    geometry = scene.geometry
    return (
        (geometry.origin_lps_mm[2 - k] + geometry.spacing_mm_zyx[k] * np.arange(n))
        .astype(np.float32)
        .reshape([-1 if axis == k else 1 for axis in range(3)])
        for k, n in enumerate(geometry.shape_zyx)
    )


def _nearest(scene: Scene, point: np.ndarray) -> tuple[int, ...]:
    return tuple(np.rint(scene.geometry.to_index(point)).astype(int))
