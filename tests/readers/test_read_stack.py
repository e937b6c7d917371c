"""Slice stacks: positions alone decide, within the tolerances that the module states."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmed.readers.dicom_stack import (
    MISSING,
    SHIFTED,
    TOLERANCE_MM,
    UNEVEN,
    UNIFORM,
    same_positions,
    stack,
)

UP = np.array([0.0, 0.0, 1.0])


def upright(*depths) -> np.ndarray:
    return np.array([(0.0, 0.0, d) for d in depths])


@pytest.mark.parametrize(
    ("depths", "state", "words"),
    [
        ((0, 1, 2, 3), UNIFORM, "uniform 1 mm"),
        ((0, 2.5), UNIFORM, "uniform 2.5 mm"),
        ((0, 0.6, 1.3, 1.9, 2.5, 3.1), UNIFORM, "uniform 0.62 mm"),  # 0.625 rounded to 0.1
        ((0, 1, 3, 4), MISSING, "1 slice missing between z = 1.0 and 3.0 mm"),
        ((0, 1, 2, 6, 7), MISSING, "3 slices missing between z = 2.0 and 6.0 mm"),
        ((0, 1, 3), UNEVEN, "unevenly spaced (1.00 and 2.00 mm)"),
        ((0, 4, 8, 16, 24, 32), UNEVEN, "unevenly spaced (4.00 and 8.00 mm)"),
        ((0, 1, 2.5, 3.5), UNEVEN, "unevenly spaced (1.00 and 1.50 mm)"),
        ((0, 1, 2, 3.3, 4.3, 5.3), UNEVEN, "unevenly spaced (1.00 and 1.30 mm)"),
        ((0, 1, 3, 6, 10, 15, 21), UNEVEN, "unevenly spaced (6 different gaps, 1.00 to 6.00 mm)"),
    ],
)
def test_the_verdict_on_upright_stacks(depths, state, words):
    found = stack(upright(*depths), UP)
    assert (found.state, found.words) == (state, words)


@pytest.mark.parametrize(
    ("depths", "planes", "z_index"),
    [
        ((0, 1, 3, 4), 5, [0, 1, 3, 4]),
        ((0, 1, 3.5, 4.5), 6, [0, 1.111, 3.889, 5]),
        ((0, 1.96, 4.0, 10.04, 12.0), 7, [0, 1, 2, 5, 6]),  # rounded positions fall on planes
    ],
)
def test_other_stacks_get_a_grid_at_their_smallest_gap(depths, planes, z_index):
    found = stack(upright(*depths), UP)
    assert found.planes == planes
    np.testing.assert_allclose(found.z_index, z_index, atol=1e-3)
    np.testing.assert_allclose(found.first_lps_mm + found.step_lps_mm * (planes - 1),
                               (0, 0, depths[-1]))  # fmt: skip


def test_a_slice_beside_the_line_is_found_and_a_leaning_line_is_not():
    positions = upright(*range(8))
    positions[:, 1] = 0.3 * positions[:, 2]
    assert stack(positions, UP).state == UNIFORM
    positions[3, 0] += 0.09
    assert stack(positions, UP).state == UNIFORM
    positions[3, 0] += 0.03
    found = stack(positions, UP)
    assert found.state == SHIFTED
    assert found.sideways_mm == pytest.approx(0.12)


def test_leaning_gaps_are_given_both_ways():
    depths = np.array([0, 4, 8, 9, 16.0])
    positions = np.stack([0 * depths, -np.tan(np.radians(18.5)) * depths, depths], axis=1)
    assert stack(positions, UP).words == (
        "unevenly spaced (1.00, 4.00 and 7.00 mm along the normal; "
        "1.05, 4.22 and 7.38 along the table)"
    )


def test_runs_of_one_position():
    assert same_positions(np.array([0, 1, 1.005, 1.009, 2])) == [[0], [1, 2, 3], [4]]


@given(
    gap=st.floats(1.0, 10),
    errors=st.lists(st.floats(-0.45 * TOLERANCE_MM, 0.45 * TOLERANCE_MM), min_size=3, max_size=50),
)
def test_errors_within_the_tolerance_never_break_a_uniform_stack(gap, errors):
    depths = gap * np.arange(len(errors)) + errors
    assert stack(upright(*depths), UP).state == UNIFORM


@given(count=st.integers(4, 60), gap=st.floats(0.2, 10), data=st.data())
def test_a_missing_slice_is_always_found(count, gap, data):
    gone = data.draw(st.integers(1, count - 2))
    depths = np.delete(gap * np.arange(count), gone)
    found = stack(upright(*depths), UP)
    assert found.state in (MISSING, UNEVEN)
    assert found.planes == count
    np.testing.assert_array_equal(found.z_index, np.delete(np.arange(count), gone))
