"""Overlap scores: exact on literal maps, NaN where a label is nowhere."""

import math

import numpy as np
import pytest
import torch

from fastmed.metrics.overlap import scores_of_counts, segmentation_scores
from fastmed.ops import overlap_counts

#              background  label 1  label 2  neither has label 3
PREDICTION = [[0, 0, 1, 1, 1, 2, 0, 0]]
TARGET = [[0, 0, 0, 1, 1, 2, 2, 2]]


@pytest.mark.parametrize("as_given", [np.uint8, np.int64, torch.tensor])
def test_scores_of_a_literal_label_map(as_given):
    make = as_given if as_given is torch.tensor else lambda v: np.array(v, as_given)
    scores = segmentation_scores(make(PREDICTION), make(TARGET), 4)
    assert scores["dice"] == pytest.approx([4 / 5, 1 / 2, math.nan], nan_ok=True)
    assert scores["iou"] == pytest.approx([2 / 3, 1 / 3, math.nan], nan_ok=True)
    assert scores["label_accuracy"] == pytest.approx([7 / 8, 6 / 8, 1])
    assert scores["mean_dice"] == pytest.approx(0.65)
    assert scores["mean_iou"] == pytest.approx(0.5)
    assert scores["accuracy"] == pytest.approx(5 / 8)


def test_without_any_label_there_is_no_mean():
    empty = np.zeros((2, 3, 4), np.uint8)
    scores = segmentation_scores(empty, empty, 2)
    assert math.isnan(scores["mean_iou"])
    assert math.isnan(scores["mean_dice"])
    assert scores["accuracy"] == 1


def test_a_label_that_no_class_has_is_wrong():
    scores = segmentation_scores(np.array([[0, 9]]), np.array([[0, 1]]), 2)
    assert scores["accuracy"] == 0.5
    assert scores["dice"] == [0]


def test_counts_of_pieces_add_up_to_the_scores_of_the_whole():
    rng = np.random.default_rng(0)
    prediction, target = (torch.from_numpy(rng.integers(0, 3, (4, 5, 6))) for _ in range(2))
    pieces = overlap_counts(prediction, target, 3).sum(dim=0)
    assert scores_of_counts(pieces, 120) == segmentation_scores(prediction, target, 3)


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match="target: expected"):
        segmentation_scores(np.zeros((2, 3), np.uint8), np.zeros((2, 4), np.uint8), 2)
