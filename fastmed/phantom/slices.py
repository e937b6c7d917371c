"""Synthetic grey images with masks: slices of the chest, and organs with a lesion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmed.geometry import Geometry
from fastmed.phantom.chest import chest
from fastmed.phantom.fields import scanner_noise

_LUNG_WINDOW_HU = (-1000.0, 400.0)


@dataclass(frozen=True, eq=False)
class GreySlice:
    """An 8-bit grey image and its mask of 0 and 255, both [H, W] uint8."""

    image: np.ndarray
    mask: np.ndarray


def chest_slices(seed: int, *, count: int = 8, size: int = 192) -> list[GreySlice]:
    """Cuts `count` axial slices of one synthetic chest, from its base to its top, lungs marked.

    Each is size x size pixels of 400 mm / size, in the window -1000..400 HU; every second patient
    has a lesion. The mask is 255 in both lungs, their vessels and lesions included, and 0 in
    windpipe, gullet and stomach.
    """
    rng = np.random.default_rng([seed, 5])
    spacing = 400 / size
    gap = 200 / count
    origin = (-spacing * (size - 1) / 2, -spacing * (size - 1) / 2 + 10, -95 + rng.uniform(0, gap))
    geometry = Geometry.from_spacing((count, size, size), (gap, spacing, spacing), origin)
    made = chest(geometry, seed, lesion=seed % 2 == 1)
    low, high = _LUNG_WINDOW_HU
    grey = np.clip((made.volume.voxels - low) * (255 / (high - low)), 0, 255)
    images = np.rint(grey).astype(np.uint8)
    masks = made.lungs.astype(np.uint8) * 255
    return [GreySlice(image, mask) for image, mask in zip(images, masks, strict=True)]


def lesion_slice(seed: int, *, size: int = 64) -> GreySlice:
    """Makes one organ, an ellipse, with one lesion of overlapping circles inside it.

    The image has noise and the cupping of beam hardening: darker towards the middle of the field.
    The mask is 255 in the lesion. The global random state stays untouched.
    """
    rng = np.random.default_rng([seed, 6])
    u = rng.uniform
    fine = 4 * size  # drawn four times as fine, then averaged: borders get their partial pixels
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / fine * 2 - 1
    y, x = axis[:, None], axis[None, :]
    angle, long, short = u(0, np.pi), u(0.6, 0.82), u(0.5, 0.72)
    middle = u(-0.12, 0.12, 2)

    def in_organ(px, py):
        """Radius in the organ's own scale: below 1 inside."""
        dx, dy = px - middle[0], py - middle[1]
        c, s = np.cos(angle), np.sin(angle)
        return np.hypot((c * dx + s * dy) / long, (c * dy - s * dx) / short)

    organ = in_organ(x, y) < 1
    toward, far = u(0, 2 * np.pi), u(0, 0.4) * short
    centre = middle + far * np.array([np.cos(toward), np.sin(toward)])
    radius = u(0.14, 0.2)
    lesion = np.zeros_like(organ)
    for _ in range(rng.integers(3, 7)):
        cx, cy = centre + rng.normal(0, 0.5 * radius, 2)
        lesion |= np.hypot(x - cx, y - cy) < radius * u(0.6, 1.1)
    lesion &= in_organ(x, y) < 0.95

    tissue = u(0.45, 0.6)
    contrast = u(0.14, 0.25) * rng.choice([-1, 1])
    image = 0.06 + (tissue - 0.06) * organ + contrast * lesion
    image -= u(0.02, 0.1) * np.clip(1 - x**2 - y**2, 0, 1) * organ
    image = image.reshape(size, 4, size, 4).mean(axis=(1, 3))
    image += scanner_noise(rng, (1, size, size), u(0.015, 0.04))[0]
    covered = lesion.reshape(size, 4, size, 4).mean(axis=(1, 3)) >= 0.5
    grey = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return GreySlice(grey, covered.astype(np.uint8) * 255)
