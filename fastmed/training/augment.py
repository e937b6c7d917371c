"""Augmentation: what is drawn for one sample, and what is done to a batch after resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmed.ops import window_resample

_NOISE_SEEDS = 2**63 - 1


@dataclass(frozen=True)
class Augmentation:
    """How training samples are varied. Validation and test never are.

    rotation_degrees: largest angle about each axis (2D: in the plane alone), rotation_p how often.
    zoom: range of the factor by which things grow, one for all axes.
    shift_voxels: largest shift along each axis, in voxels of the network's grid.
    flip_zyx: axes that are mirrored half of the time; off for CT, where organs have sides.
    window_jitter: largest move of either end of the window, as a share of its width.
    noise: standard deviation of Gaussian noise, of images in 0..1.
    brightness, contrast: ranges of a factor for the image, and for its distance from its mean.
    elastic_voxels: standard deviation of the displacements of points `elastic_spacing` voxels
        apart, between which displacements are interpolated.

    Raises ValueError that names the entry.
    """

    rotation_degrees: float = 10.0
    rotation_p: float = 0.5
    zoom: tuple[float, float] = (0.9, 1.1)
    zoom_p: float = 0.5
    shift_voxels: float = 5.0
    shift_p: float = 0.5
    flip_zyx: tuple[bool, bool, bool] = (False, False, False)
    window_jitter: float = 0.0
    window_p: float = 0.5
    noise: float = 0.05
    noise_p: float = 0.3
    brightness: tuple[float, float] = (0.9, 1.1)
    brightness_p: float = 0.3
    contrast: tuple[float, float] = (0.9, 1.1)
    contrast_p: float = 0.3
    elastic_voxels: float = 2.0
    elastic_spacing: int = 16
    elastic_p: float = 0.2

    def __post_init__(self) -> None:
        for name in ("rotation", "zoom", "shift", "window", "noise", "brightness", "contrast",
                     "elastic"):  # fmt: skip
            if not 0 <= getattr(self, f"{name}_p") <= 1:
                raise ValueError(f"{name}_p {getattr(self, f'{name}_p')}: expected 0 to 1")
        for name in ("zoom", "brightness", "contrast"):
            factors = getattr(self, name)
            if len(factors) != 2 or not 0 < factors[0] <= factors[1] < math.inf:
                raise ValueError(f"{name} {factors}: expected (low, high), both above 0")
        for name, high in (
            ("rotation_degrees", 180), ("shift_voxels", math.inf), ("noise", math.inf),
            ("elastic_voxels", math.inf), ("window_jitter", 0.45),
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} {getattr(self, name)}: expected 0 to {high}")
        if len(self.flip_zyx) != 3 or not all(isinstance(flip, bool) for flip in self.flip_zyx):
            raise ValueError(f"flip_zyx {self.flip_zyx}: expected true or false for z, y, x")
        if self.elastic_spacing < 2:
            raise ValueError(f"elastic_spacing {self.elastic_spacing}: expected at least 2")


@dataclass(frozen=True, eq=False)
class Drawn:
    """What one sample's generator said.

    linear: [3, 3] in mm (z, y, x), from a direction in the patch to one in the patient.
    shift_voxels: of the patch's centre. window: moves of its low and high end, shares of its width.
    noise: standard deviation, 0 for none, of a field seeded by noise_seed.
    elastic: [3, d, h, w] displacements (z, y, x) in voxels at the points of a coarse grid.
    """

    linear: np.ndarray
    shift_voxels: np.ndarray
    window: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0
    noise_seed: int = 0
    brightness: float = 1.0
    contrast: float = 1.0
    elastic: np.ndarray | None = None

    @property
    def keeps_place(self) -> bool:
        """Whether the patch lies on the grid's own voxels."""
        return np.array_equal(self.linear, np.eye(3)) and not self.shift_voxels.any()


NOTHING = Drawn(np.eye(3), np.zeros(3))


def draw(augmentation: Augmentation, rng: np.random.Generator, patch_zyx, dimensions: int) -> Drawn:
    """Draws what happens to one sample; in 2D nothing turns, moves or bends across the plane."""
    a = augmentation
    free = np.array([dimensions == 3, True, True])

    def happens(p: float) -> bool:
        return rng.random() < p

    turn = happens(a.rotation_p)
    angles = np.radians(rng.uniform(-a.rotation_degrees, a.rotation_degrees, 3)) * turn
    if dimensions == 2:
        angles[1:] = 0.0  # about z, the axis across the plane, alone
    zooms, factor = happens(a.zoom_p), rng.uniform(*a.zoom)
    scale = np.where(free, 1.0 / factor if zooms else 1.0, 1.0)
    shifts, shift = happens(a.shift_p), rng.uniform(-a.shift_voxels, a.shift_voxels, 3)
    flips = np.where((rng.random(3) < 0.5) & np.array(a.flip_zyx), -1.0, 1.0)
    jitters, window = happens(a.window_p), rng.uniform(-a.window_jitter, a.window_jitter, 2)
    noisy, seed = happens(a.noise_p), int(rng.integers(_NOISE_SEEDS))
    brighter, brightness = happens(a.brightness_p), rng.uniform(*a.brightness)
    starker, contrast = happens(a.contrast_p), rng.uniform(*a.contrast)
    bends = happens(a.elastic_p)
    points = [-(-n // a.elastic_spacing) + 1 for n in patch_zyx]
    field = rng.normal(0.0, a.elastic_voxels, (3, *points)) * free[:, None, None, None]
    return Drawn(
        linear=_rotation(angles) * (scale * flips),
        shift_voxels=shift * free if shifts else np.zeros(3),
        window=tuple(window.tolist()) if jitters else (0.0, 0.0),
        noise=a.noise if noisy else 0.0,
        noise_seed=seed,
        brightness=float(brightness) if brighter else 1.0,
        contrast=float(contrast) if starker else 1.0,
        elastic=field if bends and a.elastic_voxels else None,
    )


def _rotation(angles_zyx: np.ndarray) -> np.ndarray:
    """[3, 3] for (z, y, x): turned about z, then about y, then about x."""
    total = np.eye(3)
    for axis, angle in enumerate(angles_zyx):
        if angle:
            i, j = (k for k in range(3) if k != axis)
            step = np.eye(3)
            step[i, i] = step[j, j] = math.cos(angle)
            step[i, j], step[j, i] = -math.sin(angle), math.sin(angle)
            total = step @ total
    return total


def patch_matrix(start_zyx, patch_zyx, spacing_mm_zyx, drawn: Drawn) -> np.ndarray:
    """[3, 4] from a voxel of the patch to an index of the grid; exact where nothing was drawn.

    start_zyx: the grid voxel at which the unvaried patch begins. Rotation, zoom and flip keep the
    patch's centre and act in mm, so that things keep their shape on grids of unequal spacing.
    """
    matrix = np.zeros((3, 4))
    if drawn.keeps_place:
        matrix[:, :3], matrix[:, 3] = np.eye(3), start_zyx
        return matrix
    spacing = np.asarray(spacing_mm_zyx)
    centre = (np.asarray(patch_zyx) - 1) / 2
    matrix[:, :3] = drawn.linear * spacing / spacing[:, None]
    matrix[:, 3] = np.asarray(start_zyx) + centre + drawn.shift_voxels - matrix[:, :3] @ centre
    return matrix


def after(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """[3, 4] matrices one after the other: inner, then outer."""
    result = outer[:, :3] @ inner
    result[:, 3] += outer[:, 3]
    return result


def bend(image: Tensor, labels: Tensor | None, drawn: list[Drawn]) -> None:
    """Elastic deformation, in place, of the samples that drew one: [B, D, H, W] and its labels.

    Image and labels are sampled at the same displaced places, the labels by nearest neighbour.
    """
    for row, sample in enumerate(drawn):
        if sample.elastic is None:
            continue
        places = _displaced(sample.elastic, image.shape[1:], image.device)
        image[row] = _sampled(image[row], places, "bilinear").clamp_(0.0, 1.0)
        if labels is not None:
            nearest = _sampled(labels[row].float(), places, "nearest")
            labels[row] = nearest.to(labels.dtype)


def _displaced(coarse: np.ndarray, shape, device) -> Tensor:
    """[D, H, W, 3] places (x, y, z) in -1..1 of the displaced voxels."""
    points = []
    for axis, n in enumerate(shape):
        # Where a voxel was is linear in its index, which interpolation keeps.
        line = np.linspace(-1.0, 1.0, coarse.shape[axis + 1]) if n > 1 else np.zeros(2)
        line = line.reshape([-1 if k == axis else 1 for k in range(3)])
        points.append(line + coarse[axis] * (2.0 / max(n - 1, 1)))
    fields = torch.from_numpy(np.stack(points[::-1]).astype(np.float32)).to(device)
    matrix = torch.zeros(3, 4)
    for axis, n in enumerate(shape):
        matrix[axis, axis] = (coarse.shape[axis + 1] - 1) / max(n - 1, 1)
    return window_resample(fields, matrix.to(device), tuple(shape)).permute(1, 2, 3, 0)


def _sampled(volume: Tensor, places: Tensor, mode: str) -> Tensor:
    """[D, H, W] float32 at `places`, the edge repeated outside."""
    # torch shares the items of a batch among its threads, never the voxels of one.
    slabs = math.gcd(places.shape[0], torch.get_num_threads())
    sampled = F.grid_sample(
        volume.expand(slabs, 1, *volume.shape),
        places.reshape(slabs, -1, *places.shape[1:]),
        mode=mode,
        padding_mode="border",
        align_corners=True,
    )
    return sampled.reshape(places.shape[:3])


def shade(image: Tensor, drawn: list[Drawn]) -> None:
    """Contrast, brightness and noise, in place, of [B, D, H, W] in 0..1, which it stays in.

    With contrast c and brightness b a voxel becomes ((voxel - mean) * c + mean) * b.
    """
    gains = [sample.contrast * sample.brightness for sample in drawn]
    rests = [(1.0 - sample.contrast) * sample.brightness for sample in drawn]
    changes = any(sample.contrast != 1.0 or sample.brightness != 1.0 for sample in drawn)
    if changes:
        gain = torch.tensor(gains, device=image.device).view(-1, 1, 1, 1)
        rest = torch.zeros_like(gain)
        for row, sample in enumerate(drawn):
            if sample.contrast != 1.0:
                rest[row] = image[row].mean() * rests[row]
        torch.addcmul(rest, image, gain, out=image)
    for row, sample in enumerate(drawn):
        if sample.noise:
            generator = torch.Generator(image.device).manual_seed(sample.noise_seed)
            field = torch.randn(image[row].shape, generator=generator, device=image.device)
            image[row].add_(field, alpha=sample.noise)
    if changes or any(sample.noise for sample in drawn):
        image.clamp_(0.0, 1.0)
