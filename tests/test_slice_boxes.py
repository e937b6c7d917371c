"""Slice boxes join into boxes of the stack, one object for each finding."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmed.slice_boxes import join_slices

A, B = (10, 10, 20, 20), (40, 10, 50, 20)  # far apart
NEXT_TO_A = (15, 10, 25, 20)  # overlaps A by a third

CASES = {
    "no boxes": ([], [], [], []),
    "one box": ([3], [A], [1], [0]),
    "a run of slices is one object": ([4, 5, 6], [A, A, A], [1, 1, 1], [0, 0, 0]),
    "the order of rows does not matter": ([6, 4, 5], [A, A, A], [1, 1, 1], [0, 0, 0]),
    "a slice between them makes two": ([4, 6], [A, A], [1, 1], [0, 1]),
    "neighbours that do not overlap are two": ([4, 5], [A, B], [1, 1], [0, 1]),
    "labels are kept apart": ([4, 5], [A, A], [1, 2], [0, 1]),
    "two side by side stay two": ([4, 4, 5, 5], [A, B, A, B], [1] * 4, [0, 1, 0, 1]),
    "the better overlap wins": ([4, 4, 5], [NEXT_TO_A, A, A], [1] * 3, [0, 1, 1]),
    "no object takes two of a slice": ([4, 5, 5], [A, A, NEXT_TO_A], [1] * 3, [0, 0, 1]),
    "touching is no overlap": ([4, 5], [A, (20, 10, 30, 20)], [1, 1], [0, 1]),
}


@pytest.mark.parametrize(("slices", "boxes", "labels", "group"), CASES.values(), ids=CASES.keys())
def test_slice_boxes_join_where_neighbouring_slices_overlap(slices, boxes, labels, group):
    joined, found = join_slices(slices, boxes, labels)
    assert found.tolist() == group
    assert joined.shape == (len(set(group)), 6)


def test_a_joined_box_is_the_hull_of_its_slices():
    joined, _ = join_slices([7, 8, 9], [A, NEXT_TO_A, (14, 8, 24, 19)], [1, 1, 1])
    np.testing.assert_array_equal(joined, [[10, 8, 6.5, 25, 20, 9.5]])


def test_a_gap_is_bridged_by_choice():
    assert join_slices([4, 6], [A, A], [1, 1], max_gap=1)[1].tolist() == [0, 0]
    assert join_slices([4, 7], [A, A], [1, 1], max_gap=1)[1].tolist() == [0, 1]


def test_a_least_overlap_may_be_asked_for():
    assert join_slices([4, 5], [A, NEXT_TO_A], [1, 1], min_iou=0.3)[1].tolist() == [0, 0]
    assert join_slices([4, 5], [A, NEXT_TO_A], [1, 1], min_iou=0.34)[1].tolist() == [0, 1]


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 slices, 1 boxes_px and 2 labels"):
        join_slices([1, 2], [A], [1, 1])


corner = st.integers(0, 30)
rows = st.lists(
    st.tuples(st.integers(0, 5), corner, corner, st.integers(1, 9), st.integers(1, 2)), max_size=14
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows)
def test_every_box_is_in_one_object_of_its_label_with_one_box_per_slice(rows):
    slices = np.array([z for z, *_ in rows], np.int64)
    boxes = np.array([(x, y, x + size, y + size) for _, x, y, size, _ in rows]).reshape(-1, 4)
    labels = np.array([label for *_, label in rows], np.int64)
    joined, group = join_slices(slices, boxes, labels)
    assert sorted(set(group.tolist())) == list(range(len(joined)))
    for k in range(len(joined)):
        members = group == k
        assert len(set(labels[members])) == 1
        planes = np.sort(slices[members])
        np.testing.assert_array_equal(np.diff(planes), 1)
        assert joined[k, 2] == planes[0] - 0.5
        assert joined[k, 5] == planes[-1] + 0.5
        assert (joined[k, :2] == boxes[members, :2].min(axis=0)).all()
