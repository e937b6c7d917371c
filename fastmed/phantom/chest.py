"""Synthetic CT of the chest: its anatomy, what is normal in its lungs, and the truth beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fastmed.geometry import Geometry
from fastmed.phantom import opacities
from fastmed.phantom.fields import scanner_noise
from fastmed.phantom.thorax import healthy_body
from fastmed.volume import Volume


@dataclass(frozen=True, eq=False)
class Chest:
    """One synthetic chest.

    volume: int16 HU.
    lungs: [D, H, W] bool; both lungs with their vessels and whatever is wrong inside them, without
        windpipe, mediastinum, pleura.
    lesion: [D, H, W] bool, within `lungs`; empty where none was asked for.
    """

    volume: Volume
    lungs: np.ndarray
    lesion: np.ndarray


def chest(geometry: Geometry, seed: int, *, lesion: bool = False) -> Chest:
    """Makes one synthetic CT of the chest.

    Every chest has some of what a threshold takes for disease: dependent opacity, plates of
    atelectasis, clumps of vessels, thickened pleura, nodes at the hilum, effusion, and one to
    three dense patches of lung. Without `lesion` these are consolidations at the back, flat and
    broad; with it, one or two of them are replaced by solid masses of 26 to 40 mm with a halo, not
    far back in a lung, so that the amount of dense lung tells nothing.

    geometry: an upright grid in LPS mm; the patient's axis runs through x = y = 0, the diaphragm
        lies near z = -90 and the tips of the lungs near z = 120. Slices may lie far apart.
    seed: anatomy, opacities, noise; the global random state stays untouched.
    """
    anatomy, wrong, wanted, noise = (np.random.default_rng([seed, 4, k]) for k in range(4))
    body = healthy_body(anatomy, geometry)
    voxel_mm = float(np.mean(geometry.spacing_mm_zyx[1:]))
    scene = opacities.Scene(geometry, body.lungs, body.cavity, body.left > 0, body.hu, voxel_mm)
    dense = 1 + wrong.choice(3, p=(0.35, 0.4, 0.25))
    masses = min(dense, wanted.choice((1, 2), p=(0.75, 0.25))) if lesion else 0
    opacities.add_distractors(wrong, scene, consolidations=dense - masses)
    found = opacities.add_lesions(wanted, scene, masses)
    hu = scene.hu
    blur = [0.0, *(noise.uniform(0.7, 1.1) / s for s in geometry.spacing_mm_zyx[1:])]
    hu = ndimage.gaussian_filter(hu, blur, truncate=2)
    hu += scanner_noise(noise, geometry.shape_zyx, noise.uniform(12, 35))
    np.rint(hu, out=hu)
    voxels = np.clip(hu, -1024, 3071, out=hu).astype(np.int16)
    name = f"chest-phantom-{seed}"
    volume = Volume(voxels, geometry, name=name, source=name)
    return Chest(volume, scene.lungs > 0, found)
