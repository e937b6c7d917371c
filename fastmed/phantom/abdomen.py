"""Synthetic abdominal CT with known organs, for tests, demonstrations and training."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from fastmed.findings import Findings, measure_masks
from fastmed.geometry import Geometry
from fastmed.ops import resample_argmax
from fastmed.spec import Label
from fastmed.volume import Volume

_MODEL_SPACING_MM = 3.0  # anatomy is computed on this grid and cut from it at any other

CLASSES = tuple(
    Label(value, name)
    for value, name in enumerate(
        (
            "body", "muscle", "lung", "liver", "spleen", "kidney", "stomach", "bowel", "gas",
            "aorta", "vena cava", "bone", "marrow", "heart", "table",
        ),
        start=1,
    )
)  # fmt: skip
LIVER = Label(1, "liver", "10200004")

# HU of each tissue: mean and the spread from one phantom to the next.
_HU = {
    "background": (-1000, 4), "body": (-100, 12), "muscle": (55, 10), "lung": (-840, 40),
    "liver": (95, 28), "spleen": (105, 30), "kidney": (150, 50), "stomach": (25, 20),
    "bowel": (35, 25), "gas": (-950, 30), "aorta": (170, 60), "vena cava": (130, 40),
    "bone": (480, 120), "marrow": (190, 60), "heart": (110, 40), "table": (-350, 150),
}  # fmt: skip


def abdomen(geometry: Geometry, seed: int, *, organs: bool = False) -> tuple[Volume, Findings]:
    """Makes one synthetic CT of the abdomen and its truth.

    geometry: the scan's grid in LPS mm; the patient's axis runs through x = y = 0 and the dome of
        the liver lies near z = 0, its tip about 160 mm below. Tilted and oblique grids are cut
        from the same anatomy as upright ones that reach as far in z.
    seed: anatomy, tissue contrast, texture and noise; the global random state stays untouched.
    organs: whether the truth names every tissue (CLASSES) or the liver alone.

    Returns a Volume (int16, HU = stored - 1024) and Findings on the same grid.
    """
    rng = np.random.default_rng(seed)
    model_grid, scores = anatomy(rng, *z_extent(geometry))
    matrix = torch.from_numpy(model_grid.matrix_from(geometry))
    tissue = resample_argmax(torch.from_numpy(scores), matrix, geometry.shape_zyx).numpy()
    voxels = _voxels(rng, tissue, geometry)

    name = f"phantom-{seed}"
    volume = Volume(voxels, geometry, 1.0, -1024.0, name=name, source=name)
    liver = next(label.value for label in CLASSES if label.name == "liver")
    labels = tissue if organs else (tissue == liver).astype(np.uint8)
    classes = CLASSES if organs else (LIVER,)
    masks = measure_masks(volume, labels, classes)
    return volume, Findings(name, name, "phantom truth", geometry, labels, classes, masks, {})


def z_extent(geometry: Geometry) -> tuple[float, float]:
    """Lowest and highest z in mm that the scan reaches."""
    corners = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in geometry.shape_zyx)))
    z = geometry.to_world(corners.reshape(3, -1).T)[:, 2]
    return float(z.min()), float(z.max())


def anatomy(
    rng: np.random.Generator, low_mm: float, high_mm: float, step: float = _MODEL_SPACING_MM
) -> tuple[Geometry, np.ndarray]:
    """Draws the organs of one abdomen from z = low_mm to high_mm on a grid of `step` mm.

    Returns the grid, 384 mm deep and 450 mm wide around x = y = 0, and float32 scores
    [classes + 1, D, H, W]: how many mm inside each tissue (CLASSES; 0 is the air around) a point
    lies, negative outside. The largest score names the tissue.
    """
    depth = int(np.ceil((high_mm - low_mm) / step)) + 5
    shape = (depth, round(384 / step), round(450 / step))
    origin = (-0.5 * step * (shape[2] - 1), -0.5 * step * (shape[1] - 1), low_mm - 2 * step)
    geometry = Geometry.from_spacing(shape, (step,) * 3, origin)
    z, y, x = (
        (origin[2 - axis] + step * np.arange(shape[axis], dtype=np.float32)).reshape(
            [-1 if k == axis else 1 for k in range(3)]
        )
        for axis in range(3)
    )

    def wobble(amplitude_mm: float, length_mm: float) -> np.ndarray:
        """A smooth random field, [D, H, W] in mm."""
        coarse = [int(np.ceil(n * step / length_mm)) + 3 for n in shape]
        knots = rng.standard_normal(coarse).astype(np.float32) * amplitude_mm
        zoom = [n / (c - 1) for n, c in zip(shape, coarse, strict=True)]
        return ndimage.zoom(knots, zoom, order=2)[: shape[0], : shape[1], : shape[2]]

    size = rng.uniform(0.85, 1.15)
    xw, yw, zw = (axis + wobble(5, 70) + wobble(2.5, 30) for axis in (x, y, z))
    xw, yw, zw = (axis / size for axis in (xw, yw, zw))

    def ball(center, radii, tilt_degrees=0.0) -> np.ndarray:
        """Depth in mm inside an ellipsoid at (x, y, z), turned about the y axis."""
        c, s = np.cos(np.radians(tilt_degrees)), np.sin(np.radians(tilt_degrees))
        dx, dy, dz = (p - q for p, q in zip((xw, yw, zw), center, strict=True))
        across, along = c * dx + s * dz, -s * dx + c * dz
        reach = np.sqrt((across / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (along / radii[2]) ** 2)
        return (1 - reach) * min(radii) * size

    def tube(center_xy, radius, low=-400.0, high=400.0) -> np.ndarray:
        """Depth in mm inside a vertical vessel or bone, squeezed by the same wobble."""
        around = radius - np.hypot(xw - center_xy[0], yw - center_xy[1])
        return np.minimum(around, np.minimum(zw - low, high - zw)) * size

    def jitter(*point, by=6.0):
        return tuple(p + rng.uniform(-by, by) for p in point)

    u = rng.uniform
    girth, depth_mm = u(150, 185), u(100, 130)
    fat = u(6, 28)
    outline = np.sqrt((xw / girth) ** 2 + ((yw - 8) / depth_mm) ** 2) + 0 * zw
    skin = (1 - outline) * depth_mm * size
    wall = skin - fat
    cavity = wall - u(10, 18)
    lung_dome = (zw - (u(-15, 5) - 0.0022 * ((xw + u(40, 70)) ** 2 + yw**2))) * size

    drop = u(-12, 12)
    right = ball(jitter(-78, 5, -55 + drop), (u(62, 80), u(70, 92), u(70, 98)), u(-12, 6))
    left_lobe = ball(jitter(10, -38, -32 + drop), (u(55, 85), u(32, 48), u(26, 44)), u(-8, 20))
    caudate = ball(jitter(-30, 12, -45 + drop), (u(25, 35), u(22, 32), u(28, 45)))
    liver = np.maximum(np.maximum(right, left_lobe), caudate)
    liver = np.minimum(liver, -ball(jitter(-35, -20, -105 + drop), (38, 40, 34)))
    hollow = np.minimum(liver, cavity - 1)

    spine_y = u(55, 68)
    pitch = u(30, 36)
    disc = np.cos(2 * np.pi * zw / pitch) * 6 + 3
    vertebra = np.maximum(
        tube((0, spine_y), u(19, 23)), ball((0, spine_y + 36, -60), (12, 26, 400))
    )
    shaft = np.minimum(vertebra, disc + 8)
    rib_wave = np.cos(2 * np.pi * (zw + 0.35 * np.abs(yw) + 0.12 * np.abs(xw)) / u(24, 30))
    rib = np.minimum(6 - np.abs(cavity - 2), rib_wave * 12 - 6)
    rib = np.minimum(rib, (zw + u(90, 150)) * 0.5)

    tissues = {
        "body": skin,
        "muscle": np.minimum(wall, 12 - cavity),
        "bowel": np.minimum(np.minimum(cavity - 6, wobble(14, 34) + 1), -zw - u(60, 110)),
        "lung": np.minimum(cavity, lung_dome),
        "heart": np.minimum(ball(jitter(25, -40, 38), (u(45, 60), u(38, 48), u(32, 42))), cavity),
        "spleen": np.minimum(
            ball(jitter(100, 35, -40 + drop), (u(22, 34), u(38, 55), u(40, 62)), u(-25, 0)), cavity
        ),
        "stomach": np.minimum(
            ball(jitter(62, -32, -52), (u(32, 52), u(30, 48), u(42, 65)), u(-35, -5)), cavity - 2
        ),
        "liver": hollow,
        "kidney": np.maximum(
            ball(jitter(-62, 52, -120 + drop), (u(24, 31), u(24, 31), u(48, 60)), -10),
            ball(jitter(62, 52, -105 + drop), (u(24, 31), u(24, 31), u(48, 60)), 10),
        ),
        "aorta": tube(jitter(12, spine_y - 32, by=3), u(9, 14)),
        "vena cava": tube(jitter(-20, spine_y - 30, by=3), u(9, 15)),
        "gas": np.minimum(
            ball(jitter(65, -48, -45), (u(16, 34), u(10, 22), u(22, 40))), cavity - 8
        ),
        "bone": np.maximum(shaft, rib),
        "marrow": shaft - 4,
        "table": np.minimum(12 - np.abs(y - depth_mm * size - u(20, 32)), 210 - np.abs(x)) + 0 * zw,
    }
    scores = np.empty((len(CLASSES) + 1, *shape), dtype=np.float32)
    order = [label.name for label in CLASSES]
    outside = np.full(shape, np.inf, dtype=np.float32)
    for name in reversed(tissues):  # what comes later lies in front and carves what lies behind
        depth = np.broadcast_to(tissues[name], shape)
        if name not in ("table", "body"):
            depth = np.minimum(depth, skin)
        scores[order.index(name) + 1] = np.minimum(depth, outside)
        outside = np.minimum(outside, -depth)
    scores[0] = outside
    return geometry, scores


def _voxels(rng: np.random.Generator, tissue: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Gives each tissue its HU, blurs, adds texture and noise; returns stored int16 (HU + 1024)."""
    names = ["background", *(label.name for label in CLASSES)]
    table = np.array([rng.normal(*_HU[name]) for name in names], dtype=np.float32)
    sigma = [min(0.8, 0.7 / s) for s in geometry.spacing_mm_zyx]
    noise_hu, texture_hu = rng.uniform(6, 22), rng.uniform(3, 10)
    texture = rng.standard_normal((32, 64, 64), dtype=np.float32)
    texture = ndimage.gaussian_filter(texture, 1.5, mode="wrap")
    texture *= texture_hu / texture.std()
    depth, height, width = tissue.shape
    tiles = np.tile(texture, (1, -(-height // 64), -(-width // 64)))[:, :height, :width]

    voxels = np.empty(tissue.shape, dtype=np.int16)
    for z in range(depth):
        hu = ndimage.gaussian_filter(table[tissue[z]], sigma[1:])
        hu += tiles[z % 32]
        hu += noise_hu * rng.standard_normal((height, width), dtype=np.float32)
        voxels[z] = np.clip(np.rint(hu), -1024, 3071) + 1024
    return voxels
