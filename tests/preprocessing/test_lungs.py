"""Lungs: found by HU and enclosure on any lattice, or refused by what was found; never guessed."""

import time

import numpy as np
import pytest

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.preprocessing.lungs import lung_box, lung_mask
from fastmed.volume import Volume

MIDDLE = np.array((8.0, -20.0, 110.0))
LUNGS = {"right": ((-72, -20, 105), (55, 75, 85)), "left": ((82, -20, 115), (50, 70, 80))}
LUNG_LPS_MM = np.array([(-127, -95, 20), (132, 55, 195)])  # the box around both


def ellipsoid(world, centre, radii, axes=(0, 1, 2)):
    """Below 1 inside."""
    return sum(((world[..., a] - centre[a]) / radii[a]) ** 2 for a in axes)


def chest_hu(world) -> np.ndarray:
    """A chest in LPS mm: body, lungs, trachea, spine; arms, a table with a foam core, gut gas."""
    hu = np.full(world.shape[:-1], -1000.0)
    body = (8, -20, 110), (175, 115, 1)
    arm = (-196, -20, 110), (30, 30, 1)
    x, y, z = (world[..., k] for k in range(3))
    table = (np.abs(x - 8) < 150) & (np.abs(y - 110) < 13)
    hu[table] = -100
    hu[table & (np.abs(x - 8) < 147) & (np.abs(y - 110) < 10)] = -930
    hu[(ellipsoid(world, *body, (0, 1)) < 1) | (ellipsoid(world, *arm, (0, 1)) < 1)] = 40
    for centre, radii in LUNGS.values():
        hu[ellipsoid(world, centre, radii) < 1] = -850
    hu[ellipsoid(world, (-72, -20, 105), (12, 12, 12)) < 1] = 30  # a mass inside a lung
    hu[(ellipsoid(world, (5, -15, 0), (9, 9, 1), (0, 1)) < 1) & (z > 150)] = -995
    hu[(ellipsoid(world, (5, -15, 150), (45, 8, 8)) < 1)] = -990  # the main bronchi
    hu[ellipsoid(world, (8, 60, 110), (20, 20, 1), (0, 1)) < 1] = 400
    hu[ellipsoid(world, (70, -60, 0), (35, 30, 14)) < 1] = -1000  # 61 ml of gas in the stomach
    return hu


def scan_of(geometry, hu_of=chest_hu, noise_hu=30.0, slope=1.0, intercept=-1024.0) -> Volume:
    world = geometry.to_world(np.moveaxis(np.indices(geometry.shape_zyx), 0, -1))
    hu = hu_of(world) + np.random.default_rng(0).normal(0, noise_hu, geometry.shape_zyx)
    stored = np.rint((np.clip(hu, -1024, 3000) - intercept) / slope)
    return Volume(stored.astype(np.int16), geometry, slope, intercept)


def around(steps, shape) -> Geometry:
    middle = MIDDLE - (np.array(shape) - 1) / 2 @ np.array(steps)
    return Geometry.from_axes(shape, middle, steps)


LEAN = np.radians(18.0)
UPRIGHT = np.array([(0, 0, 2.5), (0, 2.0, 0), (2.0, 0, 0)])
TILTED = np.array([(0, 0, 2.5), (0, 2 * np.cos(LEAN), -2 * np.sin(LEAN)), (2.0, 0, 0)])
GEOMETRIES = {
    "upright": around(UPRIGHT, (100, 150, 240)),
    "flipped": around(-UPRIGHT, (100, 150, 240)),
    "feet first": around(UPRIGHT * [[-1], [1], [1]], (100, 150, 240)),
    "thick slices": around(UPRIGHT * [[4], [0.8], [0.8]], (25, 190, 300)),
    "sagittal": around([(2.5, 0, 0), (0, 0, -2.0), (0, 2.0, 0)], (190, 130, 150)),
    "coronal": around([(0, 2.5, 0), (0, 0, -2.0), (2.0, 0, 0)], (120, 130, 240)),
    "tilted": around(TILTED, (110, 190, 240)),
    "tilted feet first": around(TILTED * [[-1], [1], [1]], (110, 190, 240)),
}


def corners_lps_mm(geometry) -> np.ndarray:
    """Lowest and highest world coordinate that the edges of a grid reach."""
    ends = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in geometry.shape_zyx)))
    world = geometry.to_world(ends.reshape(3, -1).T)
    return np.array([world.min(axis=0), world.max(axis=0)])


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_the_box_holds_both_lungs_and_little_more(geometry):
    box = lung_box(scan_of(geometry))
    assert not box.is_sheared
    low, high = corners_lps_mm(box)
    room_mm = np.array([LUNG_LPS_MM[0] - low, high - LUNG_LPS_MM[1]])
    slack = max(3.0, 0.6 * max(geometry.spacing_mm_zyx))
    assert (room_mm > 5.0 - slack).all(), room_mm
    assert (room_mm < 5.0 + 3.0 + slack).all(), room_mm


@pytest.mark.parametrize("name", ["upright", "tilted", "thick slices"])
def test_the_mask_is_the_lungs_with_what_they_enclose(name):
    mask, grid = lung_mask(scan_of(GEOMETRIES[name]))
    world = grid.to_world(np.moveaxis(np.indices(grid.shape_zyx), 0, -1))
    lungs = np.logical_or.reduce([ellipsoid(world, c, r) < 1 for c, r in LUNGS.values()])
    assert (mask & lungs).sum() / lungs.sum() > 0.95  # the mass and its hole too
    airways = (world[..., 2] > 135) & (np.abs(world[..., 0] - 5) < 60)
    assert (mask & ~lungs & ~airways).sum() / lungs.sum() < (
        0.07 if name == "thick slices" else 0.04
    )
    assert grid.spacing_mm_zyx == pytest.approx((3, 3, 3), rel=0.05)


def test_the_lungs_of_a_short_scan_touch_its_ends_and_are_kept():
    short = around(UPRIGHT, (20, 150, 240))
    box = lung_box(scan_of(short))
    low, high = corners_lps_mm(box)
    scan_low, scan_high = corners_lps_mm(short)
    np.testing.assert_allclose((low[2], high[2]), (scan_low[2], scan_high[2]), atol=3.0)


def one_lung(world):
    hu = chest_hu(world)
    hu[ellipsoid(world, *LUNGS["left"]) < 1.05] = 20
    return hu


def test_a_lung_that_has_collapsed_leaves_the_other():
    low, high = corners_lps_mm(lung_box(scan_of(GEOMETRIES["upright"], one_lung)))
    assert -130 - 6 < low[0] < -127
    assert high[0] < 60


def test_the_box_ends_below_a_throat_that_opens_to_the_outside():
    """A neck whose airway reaches the image's air: the lungs stay, the neck does not."""
    geometry = around(UPRIGHT, (160, 150, 240))

    def with_mouth(world):
        hu = chest_hu(world)
        mouth = (np.abs(world[..., 0] - 5) < 10) & (world[..., 1] < -10) & (world[..., 2] > 260)
        hu[mouth] = -1000
        return hu

    low, high = corners_lps_mm(lung_box(scan_of(geometry, with_mouth)))
    assert high[2] < LUNG_LPS_MM[1][2] + 12
    assert low[2] > LUNG_LPS_MM[0][2] - 12


def test_stored_values_and_rescale_make_no_difference():
    plain = lung_box(scan_of(GEOMETRIES["thick slices"]))
    other = lung_box(scan_of(GEOMETRIES["thick slices"], slope=-0.5, intercept=400.0))
    assert plain == other


def solid(world):
    return np.where(ellipsoid(world, MIDDLE, (170, 110, 1), (0, 1)) < 1, 40.0, -1000.0)


def with_gas(world):
    hu = solid(world)
    hu[ellipsoid(world, MIDDLE, (40, 40, 40)) < 1] = -1000
    return hu


def table_alone(world):
    hu = np.where(np.abs(world[..., 1] + 60) < 40, 40.0, -1000.0)
    hu[np.abs(world[..., 0] - 8) > 100] = -1000
    shell = (np.abs(world[..., 1] - 60) < 30) & (np.abs(world[..., 0]) < 150)
    hu[shell] = -100
    hu[shell & (np.abs(world[..., 1] - 60) < 27) & (np.abs(world[..., 0]) < 147)] = -930
    return hu


def cut_off(world):
    """A small field of view: the lungs run out of the image."""
    return np.where(np.abs(world[..., 0] - 8) > 40, -850.0, 40.0)


NO_LUNGS = {
    "a belly": (solid, "no piece of 50 ml or more"),
    "gas in the gut": (with_gas, r"2\d\d ml of gas \(median -9\d\d HU\)"),
    "a foam table": (table_alone, "ml outside the body"),
    "lungs cut off": (cut_off, r"\d{4,} ml that touch the sides"),
    "no tissue at all": (lambda world: np.full(world.shape[:-1], -1000.0), "no piece of 50 ml"),
    "no air at all": (lambda world: np.full(world.shape[:-1], 40.0), "lie 0 ml that touch"),
}


@pytest.mark.parametrize(("hu_of", "words"), NO_LUNGS.values(), ids=NO_LUNGS.keys())
def test_a_scan_without_lungs_is_refused_by_what_was_found(hu_of, words):
    with pytest.raises(SeriesError, match=words) as caught:
        lung_box(scan_of(GEOMETRIES["upright"], hu_of, noise_hu=10))
    assert str(caught.value).startswith("no lungs found. ")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (40, 1, 1)], ids=str)
def test_a_scan_of_hardly_any_voxels_is_refused_too(shape):
    with pytest.raises(SeriesError, match="no lungs found"):
        lung_box(Volume(np.full(shape, -850, np.int16), Geometry.from_spacing(shape, (1, 1, 1))))


def test_a_whole_chest_takes_less_than_a_second():
    geometry = around(UPRIGHT * [[0.4], [0.4], [0.4]], (300, 512, 512))
    coarse = scan_of(geometry.resized((75, 128, 128)))
    voxels = np.ascontiguousarray(coarse.voxels.repeat(4, 0).repeat(4, 1).repeat(4, 2))
    scan = Volume(voxels, geometry, coarse.slope, coarse.intercept)
    lung_box(scan)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        lung_box(scan)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0
