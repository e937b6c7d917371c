"""What is no nodule though as dense and as wide: crossings, lentils, cysts, scars, plaques."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastmed.phantom.fields import Tube, add_tubes, share
from fastmed.phantom.opacities import Scene

Taken = list[tuple[np.ndarray, float]]  # centres (x, y, z in LPS mm) and radii in mm


def add_distractors(rng: np.random.Generator, scene: Scene, taken: Taken) -> None:
    """Draws them into the scene's HU, in every scan alike and clear of the spheres `taken`."""
    for draw, few, many in (
        (_stub, 5, 10),
        (_swelling, 4, 8),
        (_knot, 8, 16),
        (_lentil, 2, 4),
        (_plate, 3, 6),
        (_plaque, 3, 5),
        (_wall, 2, 4),
        (_cyst, 2, 5),
        (_scar, 1, 4),
        (_haze, 0, 3),
    ):
        for _ in range(rng.integers(few, many + 1)):
            draw(rng, scene, taken)


def is_free(taken: Taken, points: np.ndarray, radius_mm: float) -> bool:
    """Whether no sphere taken comes within radius_mm of any of the points [N, 3]."""
    return all(
        np.linalg.norm(points - centre, axis=1).min() > radius_mm + radius
        for centre, radius in taken
    )


def find_place(
    rng: np.random.Generator,
    scene: Scene,
    fits: Callable[[tuple[int, int, int]], bool],
    tries: int = 4000,
) -> np.ndarray | None:
    """Draws a voxel until one fits: returns its centre (x, y, z in LPS mm), or None."""
    for index in rng.integers(0, scene.lungs.shape, (tries, 3)):
        if scene.lungs[tuple(index)] > 0 and fits(tuple(index)):
            return scene.geometry.to_world(index)
    return None


def lay_tubes(scene: Scene, tubes: list[Tube], value: float, hollow_mm: float = 0.0) -> None:
    """Draws tubes of `value` HU within the lungs; with hollow_mm, walls of that thickness."""
    ends = np.concatenate([(t.start, t.end) for t in tubes])
    centre = (ends.min(axis=0) + ends.max(axis=0)) / 2
    reach = float(np.abs(ends - centre).max()) + max(t.start_radius for t in tubes) + 4
    box, _ = scene.box(centre, reach)
    first = np.array([s.start for s in box])
    size = [s.stop - s.start for s in box]
    if min(size) < 1:
        return
    depth = np.full(size, -9.0, dtype=np.float32)
    add_tubes(depth, scene.geometry.crop(first, size), tubes)
    outer = share(np.minimum(depth, scene.lungs[box] + 1), scene.voxel_mm)
    if hollow_mm:
        outer -= share(depth - hollow_mm, scene.voxel_mm)
    _lay_denser(scene, outer, value, box)


def _lay_denser(scene: Scene, part: np.ndarray, value: float, box) -> None:
    target = scene.hu[box]
    np.maximum(target, target + part * (value - target), out=target)


def _course(rng, centre, length_mm: float, pieces: int, bend: float) -> np.ndarray:
    """Points [pieces + 1, 3] of a bent line through a centre."""
    way = rng.standard_normal(3)
    ways = []
    for _ in range(pieces):
        way = way / np.linalg.norm(way) + bend * rng.standard_normal(3)
        ways.append(way / np.linalg.norm(way) * length_mm / pieces)
    points = np.concatenate([np.zeros((1, 3)), np.cumsum(ways, axis=0)])
    return points - points.mean(axis=0) + centre


def _stub(rng, scene: Scene, taken: Taken) -> None:
    """A short thick rod, as a bronchus full of mucus or a vessel seen alone: 3 to 4.5 times as
    long as it is wide."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] > 4)
    if centre is None:
        return
    radius = rng.uniform(1.6, 4.2)
    points = _course(rng, centre, 2 * radius * rng.uniform(2.0, 3.6), 2, 0.25)
    if not is_free(taken, points, 2 * radius + 4):
        return
    a, b, c = radius * rng.uniform(0.8, 1.1, 3)
    tubes = [Tube(points[0], points[1], a, b), Tube(points[1], points[2], b, c)]
    if rng.random() < 0.3:  # forked
        side = points[1] + rng.standard_normal(3) * 1.6 * radius
        tubes.append(Tube(points[1], side, b, 0.6 * b))
    lay_tubes(scene, tubes, rng.uniform(-60, 90))


def _swelling(rng, scene: Scene, taken: Taken) -> None:
    """A vessel that widens along its course, by half at most."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] > 8)
    if centre is None:
        return
    points = _course(rng, centre, rng.uniform(28, 45), 4, 0.2)
    radius = rng.uniform(1.3, 3.2)
    if not is_free(taken, points, 8):
        return
    radii = radius * np.array([0.9, 1, rng.uniform(1.2, 1.5), 1, 0.8])
    pairs = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    lay_tubes(scene, [Tube(*pair) for pair in pairs], rng.uniform(0, 110))


def _knot(rng, scene: Scene, taken: Taken) -> None:
    """Where vessels cross: three to five, no wider there than anywhere along their way."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] > 6)
    if centre is None or not is_free(taken, centre[None], 20):
        return
    value, radius = rng.uniform(0, 110), rng.uniform(1.3, 3.0)
    lay_tubes(scene, _rays(rng, centre, rng.integers(3, 6), radius, 3 * radius + 8), value)


def feed(rng, scene: Scene, taken: Taken, centre: np.ndarray, radius_mm: float) -> None:
    """Leads up to three vessels into a nodule of that radius, each a fifth to a third as wide; none
    of them touches what else is taken."""
    others = [(at, radius) for at, radius in taken if (at != centre).any()]
    value = rng.uniform(0, 110)
    for tube in _rays(
        rng, centre, rng.integers(2, 4), radius_mm * rng.uniform(0.2, 0.33), radius_mm + 14
    ):
        course = np.linspace(tube.start, tube.end, 5)
        if is_free(others, course, tube.start_radius + 2):
            lay_tubes(scene, [tube], value)


def _rays(rng, centre, count: int, radius_mm: float, length_mm: float) -> list[Tube]:
    """Tubes from a point outwards, tapering by a fifth, at least 50 degrees from each other."""
    ways: list[np.ndarray] = []
    while len(ways) < count:
        way = rng.standard_normal(3)
        way /= np.linalg.norm(way)
        if all(way @ other < 0.64 for other in ways):
            ways.append(way)
    return [
        Tube(centre, centre + way * length_mm * rng.uniform(0.8, 1.2), radius_mm, 0.8 * radius_mm)
        for way in ways
    ]


def _lentil(rng, scene: Scene, taken: Taken) -> None:
    """A lymph node within the lung: as wide as a nodule, a third as thick or less."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] > 5)
    width = rng.uniform(8, 15)
    if centre is None or not is_free(taken, centre[None], width / 2 + 4):
        return
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    sides = width / 2 * np.array([1.0, rng.uniform(0.85, 1.1), rng.uniform(0.25, 0.36)])
    box, (x, y, z) = scene.box(centre, width / 2 + 4)
    along = (row[0] * x + row[1] * y + row[2] * z for row in turn)
    away = np.sqrt(sum((a / side) ** 2 for a, side in zip(along, sides, strict=True)))
    # Along the short axis, where the border matters most, this is the depth in mm.
    depth = np.minimum((1 - away) * sides[2], scene.lungs[box] + 1)
    _lay_denser(scene, share(depth, scene.voxel_mm), rng.uniform(-30, 90), box)


def _disc(rng, scene: Scene, centre, normal, thick_mm: float, radius_mm: float, value) -> None:
    box, (x, y, z) = scene.box(centre, radius_mm + 4)
    along = x * normal[0] + y * normal[1] + z * normal[2]
    radial = np.sqrt(np.maximum(x**2 + y**2 + z**2 - along**2, 0))
    bowed = along + rng.uniform(-0.01, 0.01) * radial**2
    depth = np.minimum(thick_mm / 2 - np.abs(bowed), radius_mm - radial)
    part = share(np.minimum(depth, scene.lungs[box] + 1), scene.voxel_mm)
    _lay_denser(scene, part, value, box)


def _plate(rng, scene: Scene, taken: Taken) -> None:
    """A plate of airless lung or a thick piece of fissure, 2 to 5 mm thick, 12 to 40 mm wide."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] > 3)
    radius = rng.uniform(6, 20)
    if centre is None or not is_free(taken, centre[None], radius + 4):
        return
    normal = rng.standard_normal(3)
    normal /= np.linalg.norm(normal)
    _disc(
        rng,
        scene,
        centre,
        normal,
        rng.uniform(1.8, min(5, radius / 2.2)),
        radius,
        rng.uniform(-100, 60),
    )


def _plaque(rng, scene: Scene, taken: Taken) -> None:
    """Thickened pleura: flat on the wall, four or more times as wide as it is thick."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] < 2)
    thick = rng.uniform(1.8, 5)
    reach = thick * rng.uniform(2.0, 4.5)
    if centre is None or not is_free(taken, centre[None], reach + 4):
        return
    box, (x, y, z) = scene.box(centre, reach + 3)
    away = np.sqrt(x**2 + y**2 + z**2)
    lungs = scene.lungs[box]
    depth = thick * np.sqrt(np.clip(1 - (away / reach) ** 2, 0, 1)) - lungs
    depth = np.where(away < reach, np.minimum(depth, lungs + 1), -9)
    _lay_denser(scene, share(depth, scene.voxel_mm), rng.uniform(-20, 60), box)


def _wall(rng, scene: Scene, taken: Taken) -> None:
    """A widened bronchus: a thick wall around air, a ring where a slice crosses it."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] > 8)
    if centre is None:
        return
    points = _course(rng, centre, rng.uniform(18, 36), 2, 0.2)
    radius = rng.uniform(3, 5)
    if not is_free(taken, points, 14):
        return
    tubes = [Tube(points[k], points[k + 1], radius, 0.85 * radius) for k in range(2)]
    lay_tubes(scene, tubes, rng.uniform(-80, 60), rng.uniform(1.3, 2.0))


def _cyst(rng, scene: Scene, taken: Taken) -> None:
    """A ball of air in a wall of a quarter to nearly half of its radius."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] > 6)
    radius = rng.uniform(3.5, 8)
    wall_mm = min(radius * rng.uniform(0.25, 0.45), 2.6)
    if centre is None or not is_free(taken, centre[None], radius + 4):
        return
    box, (x, y, z) = scene.box(centre, 1.3 * radius + 4)
    stretch = rng.uniform(0.85, 1.2, 3)
    away = np.sqrt((x / stretch[0]) ** 2 + (y / stretch[1]) ** 2 + (z / stretch[2]) ** 2)
    inner = share(np.minimum(radius - wall_mm - away, scene.lungs[box]), scene.voxel_mm)
    outer = share(np.minimum(radius - away, scene.lungs[box]), scene.voxel_mm)
    _lay_denser(scene, outer - inner, rng.uniform(-200, 40), box)
    scene.lay(inner, -950.0, box)


def _scar(rng, scene: Scene, taken: Taken) -> None:
    """Strands drawn together at the tip of a lung or under the pleura, long and uneven."""
    at_top = rng.random() < 0.6
    high = scene.geometry.shape_zyx[0] * 0.68
    centre = find_place(
        rng, scene, lambda at: 2 < scene.lungs[at] < 14 and (not at_top or at[0] > high)
    )
    if centre is None:
        return
    value = rng.uniform(-60, 70)
    for _ in range(rng.integers(2, 5)):
        points = _course(rng, centre + rng.normal(0, 3, 3), rng.uniform(16, 32), 3, 0.45)
        if not is_free(taken, points, 9):
            continue
        radii = rng.uniform(0.8, 2.6, 4)
        pairs = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
        lay_tubes(scene, [Tube(*pair) for pair in pairs], value)


def _haze(rng, scene: Scene, taken: Taken) -> None:
    """Ground glass without a border, wider than any nodule."""
    centre = find_place(rng, scene, lambda at: scene.lungs[at] > 5)
    radius = rng.uniform(20, 34)
    if centre is None or not is_free(taken, centre[None], radius):
        return
    box, (x, y, z) = scene.box(centre, 1.5 * radius)
    stretch = rng.uniform(0.75, 1.3, 3)
    away = np.sqrt((x / stretch[0]) ** 2 + (y / stretch[1]) ** 2 + (z / stretch[2]) ** 2)
    part = np.clip(1.15 - away / radius, 0, 0.5) * 2
    part *= share(scene.lungs[box], scene.voxel_mm)
    _lay_denser(scene, part, rng.uniform(-680, -520), box)
