"""A healthy chest in synthetic CT: wall, lungs with their vessels, mediastinum, what lies below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmed.geometry import Geometry
from fastmed.phantom.fields import Tube, add_tubes, grow, share, smooth_field

_AIR_HU = -1000.0


@dataclass(frozen=True, eq=False)
class Body:
    """How many mm inside cavity, lungs, left half and vessels voxels lie, and their HU, [D, H, W].

    tubes: the vessels of the lungs, piece by piece.
    """

    cavity: np.ndarray
    lungs: np.ndarray
    left: np.ndarray
    hu: np.ndarray
    vessels: np.ndarray
    tubes: list[Tube]


def healthy_body(rng: np.random.Generator, geometry: Geometry, *, thinnest_mm: float = 1.2) -> Body:
    """Draws the chest wall, the lungs with their vessels, the mediastinum and what lies below.

    thinnest_mm: radius of the vessels at which they stop to fork.
    """
    u = rng.uniform
    shape = geometry.shape_zyx
    flat = [
        (geometry.origin_lps_mm[2 - k] + geometry.spacing_mm_zyx[k] * np.arange(shape[k]))
        .astype(np.float32)
        .reshape([-1 if axis == k else 1 for axis in range(3)])
        for k in range(3)
    ]
    z, y, x = flat
    size = u(0.88, 1.12)
    bend = smooth_field(rng, geometry, 3.5, 55)
    xw, yw, zw = ((axis + sign * bend) / size for axis, sign in ((x, 1), (y, -1), (z, 1)))
    voxel_mm = float(np.mean(geometry.spacing_mm_zyx[1:]))

    def ball(centre, radii) -> np.ndarray:
        dx, dy, dz = ((p - q) / r for p, q, r in zip((xw, yw, zw), centre, radii, strict=True))
        return (1 - np.sqrt(dx * dx + dy * dy + dz * dz)) * (min(radii) * size)

    # Above the shoulders' height the chest narrows to the tips of the lungs.
    top = u(105, 130)
    narrowing = np.sqrt(np.clip(1 - np.clip((z / size + 20) / (top + 20), 0, 1) ** 3, 0.02, 1))
    across, deep = u(122, 142), u(82, 98)
    fat, wall = u(5, 25), u(12, 18)
    reach = np.sqrt((xw / across) ** 2 + (yw / deep) ** 2)
    cavity = (narrowing - reach) * (deep * size)
    skin = (1 + (fat + wall) / deep - reach) * (deep * size)

    dome = u(-100, -80) + u(8, 22) * (x < 0)
    diaphragm = (zw - (dome - 0.0035 * ((np.abs(xw) - 65) ** 2 + 0.8 * yw**2))) * size
    heart = ball((u(15, 30), u(-35, -20), u(-60, -45)), (u(50, 62), u(42, 52), u(48, 62)))
    spine = ball((0, deep - u(2, 8), 0), (24, 26, 900))
    middle = (u(20, 30) - np.abs(xw - u(-2, 6)) + 6 * np.cos(yw / 30)) * size
    mediastinum = np.maximum(np.maximum(middle, heart), spine)
    lungs = np.minimum(np.minimum(cavity, diaphragm), -mediastinum)

    hu = np.full(shape, _AIR_HU, dtype=np.float32)

    def lay(depth, value) -> None:
        np.copyto(hu, value, where=depth > 0)

    muscle, blood = u(40, 65), u(40, 180)
    lay(skin, u(-115, -90))
    lay(np.minimum(wall - 4 + cavity, skin - 3), muscle)
    wave = np.cos(2 * np.pi * (zw + 0.35 * np.abs(yw) + 0.15 * np.abs(xw)) / u(24, 29))
    lay(np.minimum(5.5 - np.abs(cavity + 6), wave * 11 - 5), u(300, 520))
    lay(cavity, u(-90, -30))  # fat between the organs
    lay(np.minimum(np.minimum(heart, cavity), diaphragm), blood * u(0.7, 1.0))
    below = np.minimum(np.minimum(-diaphragm, cavity), 1 - mediastinum / 40)
    lay(below, u(50, 110))
    aorta = np.full(shape, -30.0, dtype=np.float32)
    arch = u(45, 60) * size
    back = np.array([u(18, 26), deep * 0.55, 0]) * size
    front = np.array([u(-14, -4), -u(12, 24), 0]) * size
    trunk = _moved(front, 14, 12, 0)
    great = [
        (_moved(back, 0, 0, -400), _moved(back, 0, 0, arch - 20), u(10, 14)),
        (_moved(back, 0, 0, arch - 20), _moved((back + front) / 2, 0, 0, arch), 12),
        (_moved((back + front) / 2, 0, 0, arch), _moved(front, 0, 0, arch - 20), 13),
        (_moved(front, 0, 0, arch - 20), _moved(front, 6, 10, -30), u(13, 17)),
        (_moved(front, -22, 8, arch + 60), _moved(front, -20, 12, -30), u(7, 10)),
        (trunk, np.array([-45, 5, -5]) * size, 9),
        (trunk, np.array([50, 12, 5]) * size, 9),
    ]
    add_tubes(aorta, geometry, [Tube(start, end, r, r) for start, end, r in great])
    lay(np.minimum(aorta, cavity), blood)
    shaft = np.minimum(spine, np.cos(2 * np.pi * zw / u(22, 27)) * 8 + 6)
    lay(np.minimum(shaft, skin - 8), u(200, 420))
    lay(np.minimum(ball((0, -deep - 2, 20), (22, 7, 90)), skin - 4), u(200, 350))

    # Gas beside the lungs: windpipe and main bronchi, the gullet, the stomach.
    carina = u(15, 35) * size
    fork = np.array([u(-3, 5), u(5, 15), carina])
    airway = np.full(shape, -30.0, dtype=np.float32)
    width = u(7, 9.5)
    bronchi = [np.array([side * size, fork[1] + 5, carina - 26]) for side in (-40, 45)]
    pipes = [Tube(fork + np.array([u(-4, 4), -12, 200]), fork, width, width)]
    pipes += [Tube(fork, end, 0.72 * width, 5) for end in bronchi]
    add_tubes(airway, geometry, pipes)
    lungs = np.minimum(lungs, -airway - 2)
    if rng.random() < 0.5:
        centre, radii = (u(55, 80), u(-45, -20), dome - u(20, 30)), (u(15, 35), u(12, 22), 14)
        lay(np.minimum(ball(centre, radii), -3 - lungs), -960)

    lung_hu = u(-880, -800) + u(0.2, 0.7) * yw + smooth_field(rng, geometry, u(8, 22), 16)
    lay(lungs, lung_hu)
    vessels = np.full(shape, -9.0, dtype=np.float32)
    tubes = _vessels(rng, geometry, lungs, carina, size, thinnest_mm)
    add_tubes(vessels, geometry, tubes)
    part = share(np.minimum(vessels, lungs + 3), voxel_mm)
    hu += part * (0.9 * blood - hu)
    lay(airway + 1.5, 30)
    lay(airway, -980)
    if rng.random() < 0.4:
        gullet = 4 - np.hypot(xw - u(4, 12), yw - fork[1] - 22)
        lay(gullet + 0 * zw, -900)

    if rng.random() < 0.2:  # arms beside the body, with air between
        arm = np.hypot(np.abs(x) - (across + fat + wall + 42) * size, y - u(0, 30))
        lay(34 - arm + 0 * z, -20.0)
        lay(13 - arm + 0 * z, 400.0)
    table = (deep + fat + wall) * size + u(4, 14) + x**2 / u(900, 2000)
    lay(3 - np.abs(y - table) + 0 * z, u(-200, 0))
    lay(2 - np.abs(y - table - u(28, 40)) + 0 * z, u(-300, -100))
    return Body(cavity, lungs, xw + 0 * zw, hu, vessels, tubes)


def _moved(point: np.ndarray, *by_mm: float) -> np.ndarray:
    return point + np.array(by_mm)


def _vessels(
    rng, geometry: Geometry, lungs: np.ndarray, carina: float, size: float, thinnest_mm: float
) -> list[Tube]:
    """Arteries and veins of both lungs, from the hila to the thinnest radius."""

    def is_inside(points: np.ndarray) -> np.ndarray:
        last = np.array(geometry.shape_zyx) - 1
        index = np.clip(np.rint(geometry.to_index(points)).astype(int), 0, last)
        return lungs[tuple(index.T)] > 1

    roots, ways = [], []
    for side in (-1, 1):
        hilum = np.array([side * rng.uniform(36, 46) * size, 8, carina - 30])
        for up in (70, 30, 5, -20, -45, -75):
            roots.append(_moved(hilum, 0, rng.uniform(-8, 12), up / 4))
            ways.append([side * rng.uniform(30, 60), rng.uniform(-50, 60), up])
    radii = rng.uniform(4, 6, len(roots))
    return grow(
        rng, np.array(roots), np.array(ways), radii, length_mm=26 * size, thinnest_mm=thinnest_mm,
        is_inside=is_inside,
    )  # fmt: skip
