"""Which default boxes are to answer for which true box."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.boxes import boxes_per_level, default_boxes, match_atss, match_iou

FOUR = [(0, 0, 4, 4), (0, 0, 4, 8), (10, 10, 14, 14), (20, 20, 22, 22)]
# IoU of the first with (0, 0, 4, 5): 16 / 20, of the second 20 / 32; of the third with
# (10, 10, 12, 14): 8 / 16.
TWO = [(0, 0, 4, 5), (10, 10, 12, 14)]

BY_IOU = {
    "both above": (TWO, 0.5, 0.5, [0, 0, 1, -1]),
    "between low and high is ignored": (TWO, 0.7, 0.6, [0, -2, 1, -1]),
    "below low is background, but the best": (TWO, 0.9, 0.9, [0, -1, 1, -1]),
    "from high on": (TWO[1:], 0.5, 0.1, [-1, -1, 0, -1]),
    # Both overlap the first the most, so the later has it; the second overlaps them by 16 / 32
    # and 15.6 / 32.
    "one best for two": ([(0, 0, 4, 4), (0, 0, 4, 3.9)], 0.5, 0.5, [1, 0, -1, -1]),
    "no truth": ([], 0.5, 0.5, [-1, -1, -1, -1]),
}


def boxes(rows, corners=4):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, corners)


@pytest.mark.parametrize("name", BY_IOU)
def test_table_of_matches_by_iou(name):
    truth, high, low, expected = BY_IOU[name]
    match = match_iou(boxes(FOUR), boxes(truth), high, low)
    assert match.dtype == torch.int64
    assert match.tolist() == expected


# Eight squares of side 4 in a row, each a voxel after the last.
ROW = [(x, 0, x + 4, 4) for x in range(8)]
# A second level: of side 8.
WIDE = [(0, -2, 8, 6), (8, -2, 16, 6)]

BY_ATSS = {
    # A true box a half voxel after the fourth: IoU 7/9, 5/11, 3/13, 1/15, each twice. Mean
    # 0.38244, standard deviation 0.28496: from 0.6674 on.
    "all are candidates": (ROW, [8], [(3.5, 0, 7.5, 4)], 8, [-1, -1, -1, 0, 0, -1, -1, -1]),
    # 7/9 and 5/11, each twice: mean 0.61616, standard deviation 0.18662; none reaches 0.80278, so
    # the best alone.
    "few candidates": (ROW, [8], [(3.5, 0, 7.5, 4)], 4, [-1, -1, -1, 0, -1, -1, -1, -1]),
    # The first two of the row 16 / 20 and 12 / 24, the wide ones 20 / 64 and 0: mean 0.40313,
    # standard deviation 0.33547.
    "two levels": (
        ROW + WIDE, [8, 2], [(0, 0, 4, 5)], 2, [0, -1, -1, -1, -1, -1, -1, -1, -1, -1],
    ),
    # The wide one is the true box itself; 16 / 64 on the row: mean 0.375 and deviation 0.4330.
    "the level that fits": (
        ROW + WIDE, [8, 2], [(0, -2, 8, 6)], 2, [-1, -1, -1, -1, -1, -1, -1, -1, 0, -1],
    ),
    # Nothing overlaps: the nearest.
    "far from all": (ROW, [8], [(40, 0, 41, 1)], 4, [-1, -1, -1, -1, -1, -1, -1, 0]),
    # The same true box twice: the second has the next best.
    "one best for two": (
        ROW, [8], [(3, 0, 7, 4), (3, 0, 7, 4)], 3, [-1, -1, 1, 0, -1, -1, -1, -1],
    ),
    "no truth": (ROW, [8], [], 4, [-1] * 8),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_ATSS)
def test_table_of_matches_by_atss(name):
    defaults, per_level, truth, nearest, expected = BY_ATSS[name]
    match = match_atss(boxes(defaults), per_level, boxes(truth), nearest)
    assert match.dtype == torch.int64
    assert match.tolist() == expected


SIZE, STRIDES = (16, 16, 24), (4, 8)
DEFAULTS = default_boxes(SIZE, STRIDES, [[(3, 3, 3), (5, 5, 5)], [(9, 9, 9), (14, 14, 14)]])
COUNTS = boxes_per_level(SIZE, STRIDES, 2)
small = st.tuples(*[st.floats(0, size) for size in SIZE[::-1]], st.floats(0.3, 8))


@given(st.lists(small, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_however_small_or_crowded_every_true_box_has_a_default_box(rows):
    truth = torch.tensor([(x, y, z, x + side, y + side, z + side) for x, y, z, side in rows])
    match = match_atss(DEFAULTS, COUNTS, truth)
    assert set(range(len(rows))) <= set(match.tolist())


def test_matches_do_not_depend_on_where_the_grid_begins():
    truth = boxes([(3, 4, 5, 8, 9, 9), (15, 2, 2, 17, 5, 5)], 6)
    moved = match_atss(DEFAULTS + 64, COUNTS, truth + 64)
    assert moved.tolist() == match_atss(DEFAULTS, COUNTS, truth).tolist()


def test_levels_that_do_not_sum_to_the_default_boxes_are_refused():
    with pytest.raises(ValueError, match=r"per_level \(8, 1\): expected a sum of 8"):
        match_atss(boxes(ROW), (8, 1), boxes(TWO))


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"low 0.6: expected at most high, 0.5"):
        match_iou(boxes(FOUR), boxes(TWO), 0.5, 0.6)
