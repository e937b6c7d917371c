"""Abdominal CT that no threshold can segment: organs of the liver's HU, told apart by texture."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from fastmed.findings import Findings, measure_masks
from fastmed.geometry import Geometry
from fastmed.ops import resample_argmax
from fastmed.phantom.abdomen import CLASSES, LIVER, anatomy, z_extent
from fastmed.phantom.fields import (
    Tube,
    add_tubes,
    grow,
    on_grid,
    scanner_noise,
    share,
    smooth_field,
)
from fastmed.volume import Volume

_MODEL_SPACING_MM = 5.0  # the organs are smooth; a quarter of the time that 3 mm takes
_VALUE = {"background": 0, **{label.name: label.value for label in CLASSES}}

# HU that do not follow the liver's, mean and spread; and how far from the liver the others may
# lie when they do not share its HU, which every second one does.
_FIXED_HU = {
    "background": (-1000, 4), "body": (-105, 10), "lung": (-840, 40), "gas": (-950, 20),
    "bone": (450, 100), "marrow": (180, 50), "table": (-350, 150),
}  # fmt: skip
_AROUND_LIVER_HU = {
    "muscle": (-45, 10), "spleen": (-25, 45), "kidney": (-30, 90), "stomach": (-60, 15),
    "bowel": (-50, 20), "heart": (-40, 70), "aorta": (-40, 110), "vena cava": (-40, 60),
}  # fmt: skip

# Texture of each tissue: size in mm and the range of its deviation in HU.
_TEXTURE = {
    "muscle": (7, (8, 18)), "spleen": (13, (4, 14)), "kidney": (11, (14, 30)),
    "stomach": (8, (14, 26)), "bowel": (9, (18, 32)), "heart": (24, (14, 26)),
    "liver": (9, (2, 5)),
}  # fmt: skip


def textured_abdomen(geometry: Geometry, seed: int) -> tuple[Volume, Findings]:
    """Makes one abdomen in which the liver's neighbours share its HU, and the liver's truth.

    The organs are those of `abdomen`. The liver's HU vary from 45 to 130 between phantoms, and
    about half of its neighbours have the same. What tells it apart is what a reader goes by: place
    and shape, a vessel tree in an even parenchyma, the grain of the others (food, folds, chambers,
    cortex) and a plane of fat around it that is thin and often missing. Cysts belong to it.

    geometry: an upright grid in LPS mm, placed as `abdomen` says.
    seed: anatomy, contrast, texture and noise; the global random state stays untouched.

    Returns a Volume (int16 HU) and Findings of LIVER on the same grid.
    """
    rng = np.random.default_rng([seed, 3])
    model_grid, scores = anatomy(rng, *z_extent(geometry), _MODEL_SPACING_MM)
    matrix = torch.from_numpy(model_grid.matrix_from(geometry))
    tissue = resample_argmax(torch.from_numpy(scores), matrix, geometry.shape_zyx).numpy()
    depth_mm = {
        name: on_grid(scores[_VALUE[name]], model_grid, geometry) for name in ("liver", "heart")
    }
    liver = tissue == _VALUE["liver"]
    hu = _organs_hu(rng, tissue, depth_mm, geometry)
    _add_liver_inside(rng, hu, liver, depth_mm["liver"], geometry)
    _add_fat_plane(rng, hu, tissue, depth_mm["liver"], geometry)

    blur = [0.0, *(rng.uniform(0.9, 1.3) / s for s in geometry.spacing_mm_zyx[1:])]
    hu = ndimage.gaussian_filter(hu, blur, truncate=3)
    hu += scanner_noise(rng, geometry.shape_zyx, rng.uniform(9, 20))
    voxels = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)

    name = f"liver-phantom-{seed}"
    volume = Volume(voxels, geometry, name=name, source=name)
    labels = liver.astype(np.uint8)
    masks = measure_masks(volume, labels, (LIVER,))
    return volume, Findings(name, name, "phantom truth", geometry, labels, (LIVER,), masks)


def _organs_hu(rng, tissue: np.ndarray, depth_mm: dict, geometry: Geometry) -> np.ndarray:
    """Gives each tissue its HU and its texture, [D, H, W] float32."""
    liver_hu = rng.uniform(45, 130)
    means = {name: rng.normal(*values) for name, values in _FIXED_HU.items()}
    means["liver"] = liver_hu
    for name, (low, high) in _AROUND_LIVER_HU.items():
        equal = rng.random() < 0.5
        means[name] = liver_hu + (rng.normal(0, 6) if equal else rng.uniform(low, high))
    table = np.zeros(len(_VALUE), dtype=np.float32)
    for name, mean in means.items():
        table[_VALUE[name]] = mean
    hu = table[tissue]

    deviation = np.zeros(len(_VALUE), dtype=np.float32)
    for name, (_, limits) in _TEXTURE.items():
        deviation[_VALUE[name]] = rng.uniform(*limits)
    for length in sorted({length for length, _ in _TEXTURE.values()}):
        these = np.zeros_like(deviation)
        for name, (own_length, _) in _TEXTURE.items():
            if own_length == length:
                these[_VALUE[name]] = deviation[_VALUE[name]]
        hu += smooth_field(rng, geometry, 1.0, length) * these[tissue]

    chambers = rng.choice([-1, 1]) * rng.uniform(12, 45)  # blood against the wall of the heart
    blood = share(depth_mm["heart"] - rng.uniform(9, 13), 3.0)
    hu += np.where(tissue == _VALUE["heart"], chambers * blood, 0).astype(np.float32)
    bubbles = (tissue == _VALUE["bowel"]) & (smooth_field(rng, geometry, 1.0, 12) > 1.7)
    hu[bubbles] = table[_VALUE["gas"]]
    return hu


def _add_liver_inside(rng, hu: np.ndarray, liver: np.ndarray, depth_mm, geometry) -> None:
    """Adds portal and hepatic veins, brighter or darker than the liver, and a few cysts."""
    inside = np.argwhere(liver)
    if not len(inside):
        return
    middle = geometry.to_world(inside.mean(axis=0))

    def is_inside(points: np.ndarray) -> np.ndarray:
        last = np.array(geometry.shape_zyx) - 1
        index = np.rint(geometry.to_index(points)).astype(int)
        fits = ((index >= 0) & (index <= last)).all(axis=1)
        return fits & (depth_mm[tuple(np.clip(index, 0, last).T)] > 2)

    portal, cava = middle + np.array((26, -2, -8)), middle + np.array((26, 22, 32))
    roots = np.array([portal, portal, portal, cava, cava, cava]) + rng.uniform(-5, 5, (6, 3))
    ways = [(-1, 0.2, 0.1), (-0.8, 0.3, -0.6), (0.5, -1, 0.4)]
    ways += [(-1, -0.3, -0.5), (-0.4, -0.9, -0.5), (0.5, -1, -0.3)]
    radii = np.array([7, 6, 6, 6, 6, 5.5])
    trees = grow(
        rng, roots, np.array(ways), radii, length_mm=27, thinnest_mm=1.7, is_inside=is_inside
    )
    vessels = np.full(hu.shape, -9.0, dtype=np.float32)
    add_tubes(vessels, geometry, trees)
    contrast = rng.uniform(25, 60) if rng.random() < 0.7 else -rng.uniform(22, 35)
    voxel_mm = float(np.mean(geometry.spacing_mm_zyx))
    hu += np.where(liver, contrast * share(vessels, voxel_mm), 0).astype(np.float32)

    cysts = np.full(hu.shape, -9.0, dtype=np.float32)
    for place in inside[rng.integers(0, len(inside), rng.integers(0, 4))]:
        centre, radius = geometry.to_world(place), rng.uniform(4, 10)
        add_tubes(cysts, geometry, [Tube(centre, centre, radius, radius)])
    part = np.where(liver, share(cysts, voxel_mm), 0)
    hu += (part * (rng.uniform(5, 20) - hu)).astype(np.float32)


def _add_fat_plane(rng, hu: np.ndarray, tissue: np.ndarray, depth_mm, geometry) -> None:
    """Lays fat of 0 to 3 mm around the liver where it does not touch lung, gas or air."""
    thickness = np.clip(smooth_field(rng, geometry, 1.4, 35) + rng.uniform(0.8, 1.8), 0, 3)
    voxel_mm = float(np.mean(geometry.spacing_mm_zyx))
    part = share(depth_mm + thickness, voxel_mm) - share(depth_mm, voxel_mm)
    airy = np.isin(tissue, [_VALUE[name] for name in ("lung", "gas", "background", "table")])
    hu += np.where(airy, 0, part * (_FIXED_HU["body"][0] - hu)).astype(np.float32)
