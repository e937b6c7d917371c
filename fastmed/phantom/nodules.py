"""Lung nodules with known boxes, in synthetic chests and in the lungs of a scan that is given."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from fastmed.geometry import Geometry
from fastmed.phantom.fields import Tube, scanner_noise
from fastmed.phantom.nodule_distractors import (
    Taken,
    add_distractors,
    feed,
    find_place,
    is_free,
)
from fastmed.phantom.nodule_shapes import Nodule, draw_nodule
from fastmed.phantom.opacities import Scene
from fastmed.phantom.thorax import healthy_body
from fastmed.volume import Volume

KINDS = ("solid", "part-solid", "ground-glass")
_LEAST_MM = {"solid": 4.2, "part-solid": 7.0, "ground-glass": 6.5}
_MOST_MM = 19.5
_FED = 0.5  # share of the dense nodules that vessels lead into
_GAP_MM = 5.0  # between two nodules
_VESSEL_HU = -500.0  # what is denser inside a real lung


@dataclass(frozen=True, eq=False)
class NoduleScan:
    """One scan with nodules.

    volume: HU; nodules: of 4 to 20 mm; tiny: below 3 mm, which nobody is asked to find.
    lungs: [D, H, W] bool; both lungs with their vessels and nodules.
    """

    volume: Volume
    nodules: tuple[Nodule, ...]
    tiny: tuple[Nodule, ...]
    lungs: np.ndarray


def nodule_chest(geometry: Geometry, seed: int, *, count: int) -> NoduleScan:
    """Makes one synthetic CT of the chest with `count` nodules of 4 to 20 mm.

    Of each kind there are as many: solid, part-solid (from 7 mm on), ground glass (from 6.5 mm).
    Some stand alone, some lean on a vessel or on the pleura, and vessels lead into half of the
    dense ones. As dense and as wide are vessels, where they cross too, rods, lentils, plates,
    plaques on the pleura, cysts, widened bronchi and scars, in every scan alike; what tells a
    nodule is a body round in all three directions, full, and wider than what leads into it. Where
    no room is left there are fewer.

    geometry: an upright grid in LPS mm, the patient's axis through x = y = 0, diaphragm near
        z = -90, tips of the lungs near z = 120.
    seed: anatomy, nodules, noise; the global random state stays untouched.
    """
    anatomy, wanted, wrong, noise = (np.random.default_rng([seed, 9, k]) for k in range(4))
    body = healthy_body(anatomy, geometry, thinnest_mm=0.9)
    voxel_mm = float(np.mean(geometry.spacing_mm_zyx[1:]))
    scene = Scene(geometry, body.lungs, body.cavity, body.left > 0, body.hu, voxel_mm)
    taken: Taken = []
    planned = []
    for _ in range(count):
        kind = str(wanted.choice(KINDS))
        diameter = _diameter(wanted, kind)
        centre = _place(wanted, scene, body.vessels, body.tubes, diameter, taken)
        if centre is not None:
            planned.append((kind, centre, diameter))
            taken.append((centre, diameter / 2))
    specks = []
    for _ in range(wanted.integers(0, 4)):
        centre = find_place(wanted, scene, lambda at: scene.lungs[at] > 4)
        if centre is not None and is_free(taken, centre[None], 12):
            specks.append(centre)
            taken.append((centre, 1.5))
    add_distractors(wrong, scene, taken)
    for kind, centre, diameter in planned:
        if kind != "ground-glass" and wanted.random() < _FED:
            feed(wanted, scene, taken, centre, diameter / 2)
    lungs = scene.lungs
    nodules = []
    for kind, centre, diameter in planned:
        drawn = draw_nodule(
            wanted, geometry, scene.hu, lungs, kind, centre, diameter, wanted.uniform(-20, 90)
        )
        if drawn is not None:
            nodules.append(drawn[0])
    tiny = []
    for centre in specks:
        drawn = draw_nodule(
            wanted, geometry, scene.hu, lungs, "tiny", centre, wanted.uniform(2, 2.8), 40.0
        )
        if drawn is not None:
            tiny.append(drawn[0])
    hu = scene.hu
    blur = [0.0, *(noise.uniform(0.6, 0.9) / s for s in geometry.spacing_mm_zyx[1:])]
    hu = ndimage.gaussian_filter(hu, blur, truncate=2)
    hu += scanner_noise(noise, geometry.shape_zyx, noise.uniform(14, 32))
    np.rint(hu, out=hu)
    voxels = np.clip(hu, -1024, 3071, out=hu).astype(np.int16)
    name = f"nodules-{seed:05d}"
    volume = Volume(voxels, geometry, name=name, source=name)
    return NoduleScan(volume, tuple(nodules), tuple(tiny), lungs > 0)


def insert(volume: Volume, lungs: np.ndarray, seed: int, *, count: int) -> NoduleScan:
    """Puts `count` nodules of 4 to 20 mm into the lungs of a scan, and changes nothing else in it.

    They mix with the tissue by the share of each voxel that they fill, blurred as the scan is;
    what is denser, vessels above all, shines through, and they bear noise as the lung around has.
    None is below twice the mean spacing.

    volume: a CT; lungs: [D, H, W] bool on its grid, with their vessels. seed: of places, shapes and
        noise; the global random state stays untouched.

    Raises ValueError where `lungs` has another shape, or the spacing leaves no room for 20 mm.
    """
    geometry = volume.geometry
    if lungs.shape != geometry.shape_zyx:
        raise ValueError(f"lungs have shape {lungs.shape}, the volume {geometry.shape_zyx}")
    coarse_mm = 2 * float(np.mean(geometry.spacing_mm_zyx))
    if coarse_mm >= _MOST_MM:
        raise ValueError(f"spacing {geometry.spacing_mm_zyx} mm: too coarse for nodules")
    rng = np.random.default_rng([seed, 12])
    hu = volume.hu()
    deep = ndimage.distance_transform_edt(lungs, geometry.spacing_mm_zyx).astype(np.float32)
    voxel_mm = float(np.mean(geometry.spacing_mm_zyx[1:]))
    # Up to the pleura the nearest voxel outside is half a voxel too far; outside, all is outside.
    deep = np.where(lungs, deep - voxel_mm / 2, -voxel_mm).astype(np.float32)
    is_air = ~(lungs & (hu > _VESSEL_HU))
    vessels = -ndimage.distance_transform_edt(is_air, geometry.spacing_mm_zyx)
    noise_hu = _noise_hu(hu, deep)
    scene = Scene(geometry, deep, deep, np.zeros_like(lungs), hu, voxel_mm)
    taken: Taken = []
    nodules = []
    for _ in range(count):
        kind = str(rng.choice(KINDS))
        diameter = max(_diameter(rng, kind), coarse_mm)
        centre = _place(rng, scene, vessels, [], diameter, taken)
        if centre is None:
            continue
        drawn = draw_nodule(
            rng, geometry, hu, deep, kind, centre, diameter, rng.uniform(-20, 90), 0.6 * voxel_mm
        )
        if drawn is None:
            continue
        nodule, patch, part = drawn
        # Where the lung is replaced so is its noise.
        hu[patch.box] += part * scanner_noise(rng, part.shape, noise_hu)
        taken.append((centre, diameter / 2))
        nodules.append(nodule)
    stored = np.rint((hu - volume.intercept) / volume.slope)
    if np.issubdtype(volume.voxels.dtype, np.integer):
        limits = np.iinfo(volume.voxels.dtype)
        stored = np.clip(stored, limits.min, limits.max)
    voxels = np.where(hu != volume.hu(), stored, volume.voxels).astype(volume.voxels.dtype)
    name = f"{volume.name}-nodules-{seed:05d}"
    made = replace(volume, voxels=voxels, name=name, source=name)
    return NoduleScan(made, tuple(nodules), (), lungs)


def _noise_hu(hu: np.ndarray, deep_mm: np.ndarray) -> float:
    """Deviation of the noise: of what is finer than a voxel, in the emptiest part of the lungs."""
    fine = hu - ndimage.gaussian_filter(hu, (0, 1, 1))
    values = fine[(deep_mm > 3) & (hu < _VESSEL_HU - 200)]
    return 1.48 * float(np.median(np.abs(values))) if len(values) else 0.0


def _diameter(rng: np.random.Generator, kind: str) -> float:
    """Small ones are the more frequent: log-uniform from the least diameter of the kind on."""
    low, high = np.log(_LEAST_MM[kind]), np.log(_MOST_MM)
    return float(np.exp(rng.uniform(low, high)))


def _place(
    rng: np.random.Generator,
    scene: Scene,
    vessels: np.ndarray,
    tubes: list[Tube],
    diameter_mm: float,
    taken: Taken,
) -> np.ndarray | None:
    """A centre (x, y, z in LPS mm) in free lung, at a vessel or at the wall; None without room."""
    radius = diameter_mm / 2
    where = rng.choice(("free", "vessel", "pleura"), p=(0.25, 0.45, 0.3))
    for _ in range(40):
        centre = None
        if where == "vessel" and tubes:
            centre = _beside_a_vessel(rng, scene, tubes, radius)
        elif where == "vessel":
            centre = find_place(
                rng,
                scene,
                lambda at: scene.lungs[at] > radius + 1 and -radius < vessels[at] < -0.4 * radius,
            )
        elif where == "pleura":
            # Half of it and more stands out of the chest wall; the middle of the chest is no wall.
            centre = find_place(
                rng,
                scene,
                lambda at: (
                    0.45 * radius < scene.lungs[at] < 0.9 * radius
                    and scene.cavity[at] < scene.lungs[at] + 1
                ),
            )
        if centre is None:
            centre = find_place(
                rng,
                scene,
                lambda at: scene.lungs[at] > radius + 1 and vessels[at] < -min(radius, 3.0),
            )
        if centre is not None and is_free(taken, centre[None], radius + _GAP_MM):
            return centre
    return None


def _beside_a_vessel(rng, scene: Scene, tubes: list[Tube], radius: float) -> np.ndarray | None:
    """A point whose sphere leans on a vessel of at most 0.6 of its radius."""
    last = np.array(scene.lungs.shape) - 1
    for tube in (tubes[k] for k in rng.integers(0, len(tubes), 400)):
        if tube.start_radius > 0.6 * radius:
            continue
        axis = tube.end - tube.start
        side = np.cross(axis, rng.standard_normal(3))
        away = rng.uniform(0.3, 0.9) * radius + 0.5 * tube.start_radius
        centre = tube.start + rng.uniform(0.2, 0.8) * axis + side / np.linalg.norm(side) * away
        index = np.rint(scene.geometry.to_index(centre)).astype(int)
        if (index < 0).any() or (index > last).any():
            continue
        if scene.lungs[tuple(index)] > radius + 1:
            return centre
    return None
