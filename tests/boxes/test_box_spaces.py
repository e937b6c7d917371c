"""Boxes keep their place between grids and the patient, and a turned nodule keeps its size."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.boxes import boxes_from_lps, boxes_to_lps, moved_boxes
from fastmed.geometry import Geometry

BOX = (1, 2, 3, 3, 6, 4)  # x 1 to 3, y 2 to 6, z 3 to 4
HALF_TURN = math.sqrt(0.5)

MOVES = {
    "as it is": ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], BOX),
    "z twice and one on, x mirrored": (
        [[2, 0, 0, 1], [0, 1, 0, 0], [0, 0, -1, 9]], (6, 2, 7, 8, 6, 9),
    ),
    "z and x exchanged": ([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], (3, 2, 1, 4, 6, 3)),
    # Centre (x 2, y 4): by 45 degrees to (6, 2) / sqrt(2); half lengths 1 and 2 to sqrt(5 / 2).
    "turned in the plane": (
        [[1, 0, 0, 0], [0, HALF_TURN, -HALF_TURN, 0], [0, HALF_TURN, HALF_TURN, 0]],
        (
            6 * HALF_TURN - math.sqrt(2.5), 2 * HALF_TURN - math.sqrt(2.5), 3,
            6 * HALF_TURN + math.sqrt(2.5), 2 * HALF_TURN + math.sqrt(2.5), 4,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_table_of_moves(name):
    matrix, expected = MOVES[name]
    moved = moved_boxes(np.array([BOX]), np.array(matrix))
    assert moved.dtype == np.float64
    np.testing.assert_allclose(moved, [expected], rtol=0, atol=1e-12)


def test_no_boxes_move_to_no_boxes():
    assert moved_boxes(np.zeros((0, 6)), np.eye(4)[:3]).shape == (0, 6)


def test_a_cube_turned_by_any_angle_is_the_box_of_the_same_ball():
    for degrees in (10, 45, 77):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0]])
        moved = moved_boxes(np.array([(-1, -1, -1, 1, 1, 1)]), turn)
        np.testing.assert_allclose(moved, [(-1, -1, -1, 1, 1, 1)], atol=1e-12)


numbers = st.floats(-2, 2)
matrices = st.lists(numbers, min_size=12, max_size=12).map(lambda n: np.reshape(n, (3, 4)))
halves = st.tuples(*[st.floats(0.5, 9)] * 3)


@given(matrices, halves)
@settings(max_examples=50, deadline=None)
def test_the_ellipsoid_in_a_box_fills_the_moved_box(matrix, half_zyx):
    half_zyx = np.array(half_zyx)
    middle = np.array([4.0, -3, 7])
    box = np.concatenate([(middle - half_zyx)[::-1], (middle + half_zyx)[::-1]])
    directions = np.random.default_rng(0).normal(size=(4000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    image = (middle + directions * half_zyx) @ matrix[:, :3].T + matrix[:, 3]
    moved = moved_boxes(box[None], matrix)[0]
    low, high = moved[2::-1], moved[:2:-1]  # z, y, x
    slack = 0.02 * (high - low) + 1e-9
    for reach, limit in ((image.min(0), low), (-image.max(0), -high)):
        assert (reach >= limit - 1e-9).all()
        assert (reach <= limit + slack).all()


# origin (5, -3, 100); z runs to the feet by 2 mm, y by 0.5 mm, x by 0.5 mm
GEOMETRIES = {
    "feet first": ([(0, 0, -2), (0, 0.5, 0), (0.5, 0, 0)], (5.5, -2, 92, 6.5, 0, 94)),
    "sagittal": ([(2, 0, 0), (0, 0, -1), (0, 1, 0)], (11, -2, 94, 13, 0, 98)),
    # The slices slide by 1 mm along y: half of y is sqrt((0.5 * 2)^2 + (1 * 0.5)^2).
    "tilted": (
        [(0, 1, 2), (0, 0.5, 0), (0.5, 0, 0)],
        (5.5, 2.5 - math.sqrt(1.25), 106, 6.5, 2.5 + math.sqrt(1.25), 108),
    ),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_table_of_boxes_in_the_patient(name):
    steps, expected = GEOMETRIES[name]
    geometry = Geometry.from_axes((10, 20, 30), (5, -3, 100), steps)
    np.testing.assert_allclose(boxes_to_lps(np.array([BOX]), geometry), [expected], atol=1e-12)


@pytest.mark.parametrize("name", ["feet first", "sagittal"])
def test_from_the_patient_is_the_way_back(name):
    geometry = Geometry.from_axes((10, 20, 30), (5, -3, 100), GEOMETRIES[name][0])
    boxes = np.array([BOX, (-4, 0, 2.5, 0.5, 1, 99)])
    there = boxes_to_lps(boxes, geometry)
    np.testing.assert_allclose(boxes_from_lps(there, geometry), boxes, atol=1e-9)


def test_of_a_tilted_scan_the_way_back_keeps_the_centre_and_loses_nothing_of_the_box():
    geometry = Geometry.from_axes((10, 20, 30), (5, -3, 100), GEOMETRIES["tilted"][0])
    back = boxes_from_lps(boxes_to_lps(np.array([BOX]), geometry), geometry)[0]
    np.testing.assert_allclose(back[:3] + back[3:], np.add(BOX[:3], BOX[3:]))
    assert (back[:3] <= BOX[:3]).all()
    assert (back[3:] >= BOX[3:]).all()


def test_through_the_patient_is_the_same_as_straight_from_grid_to_grid():
    scan = Geometry.from_axes((10, 20, 30), (5, -3, 100), GEOMETRIES["sagittal"][0])
    grid = scan.grid((1.5, 1.5, 1.5))
    straight = moved_boxes(np.array([BOX]), grid.matrix_from(scan))
    through = boxes_from_lps(boxes_to_lps(np.array([BOX]), scan), grid)
    np.testing.assert_allclose(straight, through, atol=1e-6)
