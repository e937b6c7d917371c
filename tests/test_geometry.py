"""Geometry: the same point of the patient, whatever the axes, units and neighbours say."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastmed.geometry import Geometry

ORIGIN = (-31.5, 17.25, -402.125)


def turn(degrees_xyz) -> np.ndarray:
    """A rotation in LPS by angles about x, y and z."""
    total = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees_xyz)):
        a, b = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[a, a], one[a, b], one[b, a], one[b, b] = np.array(
            [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
        )
        total = total @ one
    return total


def tilted(degrees, spacing_mm_zyx=(4.0, 0.5, 0.7), shape_zyx=(7, 20, 24)) -> Geometry:
    """Slices stacked along the table, their rows leaning back as a tilted gantry makes them."""
    z, y, x = spacing_mm_zyx
    angle = np.radians(degrees)
    down = (0, y * np.cos(angle), -y * np.sin(angle))
    return Geometry.from_axes(shape_zyx, ORIGIN, [(0, 0, z), down, (x, 0, 0)])


UPRIGHT = Geometry.from_spacing((6, 10, 14), (2.5, 0.7, 0.8), ORIGIN)
_STEPS = UPRIGHT.steps_lps_mm
RIGHT_ANGLED = {
    "upright": UPRIGHT,
    "feet first": Geometry.from_axes((6, 10, 14), ORIGIN, _STEPS * [[-1], [1], [1]]),
    "flipped": Geometry.from_axes((6, 10, 14), ORIGIN, -_STEPS),
    "coronal": Geometry.from_axes((6, 10, 14), ORIGIN, [(0, 2.5, 0), (0, 0, -0.7), (0.8, 0, 0)]),
    "sagittal": Geometry.from_axes((6, 10, 14), ORIGIN, [(2.5, 0, 0), (0, 0, -0.7), (0, 0.8, 0)]),
    "oblique": Geometry.from_axes((6, 10, 14), ORIGIN, _STEPS @ turn((12, 7, -31)).T),
}
SHEARED = {
    "tilted": tilted(18.5),
    "tilted backwards": tilted(-25),
    "tilted and turned": Geometry.from_axes(
        (7, 20, 24), ORIGIN, tilted(15).steps_lps_mm @ turn((3, 20, 100)).T
    ),
    "tilted feet first": Geometry.from_axes(
        (7, 20, 24), ORIGIN, tilted(15).steps_lps_mm * [[-1], [1], [1]]
    ),
}
ALL = RIGHT_ANGLED | SHEARED

every_geometry = pytest.mark.parametrize("geometry", ALL.values(), ids=ALL.keys())
numbers = st.floats(-50, 50, allow_subnormal=False)
angles = st.tuples(*[st.floats(-180, 180)] * 3)


@st.composite
def geometries(draw) -> Geometry:
    """Any grid: turned, flipped, sheared within a plane or across, of any spacing."""
    spacing = [draw(st.floats(0.2, 9)) for _ in range(3)]
    flips = [draw(st.sampled_from((-1, 1))) for _ in range(3)]
    axes = np.diag(flips) @ turn(draw(angles))
    axes[0] += draw(st.floats(-0.5, 0.5)) * axes[1] + draw(st.floats(-0.5, 0.5)) * axes[2]
    shape = draw(st.tuples(*[st.integers(1, 40)] * 3))
    origin = draw(arrays(float, 3, elements=numbers))
    return Geometry.from_axes(shape, origin, axes * np.array(spacing)[:, None])


@every_geometry
def test_nibabel_places_each_voxel_where_we_do(geometry):
    index_zyx = np.argwhere(np.ones((2, 3, 4)))
    ras = nibabel.affines.apply_affine(geometry.to_ras_xyz(), index_zyx[:, ::-1])
    np.testing.assert_allclose(ras * [-1, -1, 1], geometry.to_world(index_zyx), atol=1e-9)
    back = Geometry.from_ras_xyz(geometry.shape_zyx[::-1], geometry.to_ras_xyz())
    assert back.shape_zyx == geometry.shape_zyx
    np.testing.assert_allclose(back.affine, geometry.affine, atol=1e-12)


@pytest.mark.parametrize("geometry", RIGHT_ANGLED.values(), ids=RIGHT_ANGLED.keys())
def test_simpleitk_places_each_voxel_where_we_do(geometry):
    image = sitk.Image([int(n) for n in geometry.shape_zyx[::-1]], sitk.sitkUInt8)
    image.SetOrigin(geometry.origin_lps_mm.tolist())
    image.SetSpacing(geometry.spacing_mm_zyx[::-1])
    image.SetDirection(geometry.directions[::-1].T.ravel().tolist())
    for index in ((0, 0, 0), (5, 9, 13), (3, 0, 7)):
        expected = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        np.testing.assert_allclose(geometry.to_world(index), expected, atol=1e-6)


def test_a_geometry_made_by_hand_says_what_it_is():
    geometry = Geometry.from_spacing((6, 10, 14), (2.5, 0.7, 0.8), ORIGIN)
    assert geometry.spacing_mm_zyx == pytest.approx((2.5, 0.7, 0.8))
    assert geometry.voxel_volume_mm3 == pytest.approx(2.5 * 0.7 * 0.8)
    assert geometry.tilt_degrees == 0
    assert not geometry.is_sheared
    np.testing.assert_allclose(geometry.to_world((1, 2, 3)), np.add(ORIGIN, (2.4, 1.4, 2.5)))
    np.testing.assert_allclose(geometry.normal, (0, 0, 1))


@given(geometries(), arrays(float, (4, 3), elements=numbers))
def test_an_index_survives_the_way_to_the_world_and_back(geometry, index):
    np.testing.assert_allclose(geometry.to_index(geometry.to_world(index)), index, atol=1e-8)


@given(geometries(), geometries(), arrays(float, 3, elements=st.floats(0, 1)))
def test_matrix_from_moves_an_index_as_the_world_does(geometry, other, share):
    index = share * (np.array(other.shape_zyx) - 1)
    moved = geometry.matrix_from(other) @ [*index, 1]
    np.testing.assert_allclose(moved, geometry.to_index(other.to_world(index)), atol=1e-4)


def test_matrix_from_shows_that_axes_are_parallel():
    scan = RIGHT_ANGLED["oblique"]
    matrix = scan.matrix_from(scan.grid((3.0, 3.0, 3.0)))
    assert np.count_nonzero(matrix[:, :3]) == 3


@pytest.mark.parametrize("degrees", [0.0, 0.02, 5.0, 18.5, -25.0])
def test_tilt_is_the_angle_of_the_gantry(degrees):
    geometry = tilted(degrees)
    assert geometry.tilt_degrees == pytest.approx(abs(degrees), abs=1e-5)
    assert geometry.is_sheared == (abs(degrees) > 0.06)
    assert geometry.normal @ geometry.steps_lps_mm[0] > 0


@every_geometry
def test_the_grid_runs_to_the_head_the_back_and_the_left(geometry):
    grid = geometry.grid((3.0, 2.0, 1.5))
    assert grid.spacing_mm_zyx == pytest.approx((3.0, 2.0, 1.5))
    assert not grid.is_sheared
    z, y, x = grid.directions
    assert (z[2], y[1], x[0]) > (0.5, 0.5, 0.5)


@pytest.mark.parametrize("geometry", RIGHT_ANGLED.values(), ids=RIGHT_ANGLED.keys())
def test_the_grid_of_a_right_angled_scan_is_the_scan_to_half_a_voxel(geometry):
    spacing = (3.0, 2.0, 1.5)
    grid = geometry.grid(spacing)
    middle = (np.array(grid.shape_zyx) - 1) / 2
    expected = geometry.to_world((np.array(geometry.shape_zyx) - 1) / 2)
    np.testing.assert_allclose(grid.to_world(middle), expected, atol=1e-9)
    extent = np.abs(
        geometry.steps_lps_mm * np.array(geometry.shape_zyx)[:, None] @ grid.directions.T
    )
    missing_mm = extent.max(axis=0) - np.array(grid.shape_zyx) * spacing
    assert (np.abs(missing_mm) <= np.array(spacing) / 2 + 1e-6).all()


@pytest.mark.parametrize("geometry", SHEARED.values(), ids=SHEARED.keys())
def test_the_grid_of_a_tilted_scan_stands_upright_and_holds_every_voxel(geometry):
    grid = geometry.grid((3.0, 2.0, 1.5))
    assert max(np.abs(grid.directions @ geometry.directions[0])) == pytest.approx(1)
    low, high = _reach(grid, geometry)
    assert (low >= -0.5 - 1e-6).all()
    assert (high <= np.array(grid.shape_zyx) - 0.5 + 1e-6).all()


@given(geometries(), st.floats(0.5, 6))
def test_no_voxel_lies_more_than_a_quarter_voxel_outside_any_grid(geometry, spacing_mm):
    grid = geometry.grid((spacing_mm,) * 3)
    low, high = _reach(grid, geometry)
    # A right-angled scan is covered to half a voxel of the grid in all, a quarter on either side;
    # one thinner than that gets one voxel.
    assert (low >= -0.76).all()
    assert (high <= np.array(grid.shape_zyx) - 0.24).all()


def _reach(grid, geometry):
    """Lowest and highest index on `grid` that the edges of the scan's outermost voxels reach."""
    ends = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in geometry.shape_zyx)))
    index = grid.to_index(geometry.to_world(ends.reshape(3, -1).T))
    return index.min(axis=0), index.max(axis=0)


def test_a_scan_of_the_grids_spacing_is_its_own_grid():
    scan = Geometry.from_spacing((30, 40, 50), (3.0, 3.0, 3.0), ORIGIN)
    grid = scan.grid((3.0, 3.0, 3.0))
    assert grid.shape_zyx == scan.shape_zyx
    np.testing.assert_allclose(grid.affine, scan.affine, atol=1e-9)


@every_geometry
def test_a_slab_is_a_part_of_the_same_grid(geometry):
    slab = geometry.slab(2.25, slices=2)
    assert slab.shape_zyx == (2, *geometry.shape_zyx[1:])
    np.testing.assert_allclose(slab.to_world((1, 4, 5)), geometry.to_world((3.25, 4, 5)))


def test_geometries_are_equal_by_value_and_cannot_be_changed():
    again = Geometry.from_spacing((6, 10, 14), (2.5, 0.7, 0.8), ORIGIN)
    assert again == UPRIGHT
    assert again != RIGHT_ANGLED["flipped"]
    assert again != "upright"
    with pytest.raises(ValueError, match="read-only"):
        again.affine[0, 3] = 7


BAD = {
    "no slices": ((0, 4, 4), np.eye(4), "at least 1"),
    "two sizes": ((4, 4), np.eye(4), "three sizes"),
    "3 x 4": ((4, 4, 4), np.eye(4)[:3], "4 x 4"),
    "NaN": ((4, 4, 4), np.diag([1, 1, np.nan, 1]), "finite"),
    "flat": ((4, 4, 4), np.diag([1.0, 1, 0, 1]), "singular"),
}


@pytest.mark.parametrize(("shape", "affine", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_no_geometry_is_refused(shape, affine, words):
    with pytest.raises(ValueError, match=words):
        Geometry(shape, affine)


@every_geometry
def test_along_patient_names_the_same_voxels(geometry):
    turned = geometry.along_patient()
    assert turned.voxel_volume_mm3 == pytest.approx(geometry.voxel_volume_mm3)
    assert (np.diag(turned.directions[:, ::-1]) > 0.5).all()
    index = np.argwhere(np.ones(turned.shape_zyx))
    back = geometry.to_index(turned.to_world(index))
    whole = np.rint(back).astype(int)
    np.testing.assert_allclose(back, whole, atol=1e-9)
    assert len(np.unique(whole, axis=0)) == np.prod(geometry.shape_zyx)
    assert whole.min() == 0
    assert (whole.max(axis=0) == np.array(geometry.shape_zyx) - 1).all()


@every_geometry
def test_resized_fills_the_same_space(geometry):
    other = geometry.resized((3, 17, 5))
    for share in ((0, 0, 0), (1, 1, 1), (0.25, 1, 0.5)):
        edge = np.multiply(share, geometry.shape_zyx) - 0.5
        np.testing.assert_allclose(
            other.to_world(np.multiply(share, other.shape_zyx) - 0.5), geometry.to_world(edge)
        )


@every_geometry
def test_a_grid_of_a_size_covers_the_scan_exactly(geometry):
    grid = geometry.grid_of_size((7, 9, 4))
    assert grid.shape_zyx == (7, 9, 4)
    assert not grid.is_sheared
    np.testing.assert_allclose(grid.directions, geometry.grid((2, 2, 2)).directions, atol=1e-9)
    low, high = _reach(grid, geometry)
    np.testing.assert_allclose(low, -0.5, atol=1e-6)
    np.testing.assert_allclose(high, np.array(grid.shape_zyx) - 0.5, atol=1e-6)


@every_geometry
def test_a_crop_is_a_part_of_the_same_grid(geometry):
    part = geometry.crop((1, 2.5, 3), (2, 3, 1))
    assert part.shape_zyx == (2, 3, 1)
    np.testing.assert_allclose(part.to_world((1, 1, 0)), geometry.to_world((2, 3.5, 3)))
