"""Agreement: how far answers lie from the reference's, in figures worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fastmed.inference.agreement import Agreement, Answer, compare
from fastmed.inference.certificate import misses
from fastmed.spec import Detection, Label, Limits, Spec

SEGMENT = Spec(
    name="organs",
    task="segmentation",
    labels=(Label(1, "liver"), Label(2, "spleen")),
    spacing_mm_zyx=(3.0, 3.0, 3.0),
    window_hu=(-160.0, 240.0),
    tile_zyx=(16, 16, 16),
)
CLASSIFY = Spec(
    name="mass",
    task="classification",
    labels=(Label(1, "mass"),),
    spacing_mm_zyx=None,
    size_zyx=(32, 32, 32),
    window_hu=(-1000.0, 400.0),
)
DETECT = Spec(
    name="nodules",
    task="detection",
    labels=(Label(1, "nodule"),),
    spacing_mm_zyx=(1.0, 1.0, 1.0),
    window_hu=(-1000.0, 400.0),
    tile_zyx=(16, 16, 16),
    detection=Detection(strides=(4,), diameters_mm=((6.0,),), score_threshold=0.05),
)


def logits(*values):
    return np.array(values, dtype=np.float32)


def of_labels(*labels):
    return Answer(logits(0), labels=np.array(labels, dtype=np.uint8).reshape(1, 1, -1))


def of_boxes(*boxes):
    """Boxes given as (corner, side, score)."""
    corners = [[c, c, c, c + side, c + side, c + side] for c, side, _ in boxes]
    return Answer(
        logits(0),
        boxes=np.array(corners, dtype=np.float64).reshape(-1, 6),
        scores=np.array([score for *_, score in boxes]),
        names=("nodule",) * len(boxes),
    )


def test_logits_are_compared_with_the_largest_of_their_scan():
    found = [Answer(logits(1.0, -4.1)), Answer(logits(10.0, 100.5))]
    reference = [Answer(logits(1.0, -4.0)), Answer(logits(10.0, 100.0))]
    said = compare(
        [replace(one, probabilities=(0.5, 0.5)) for one in found],
        [replace(one, probabilities=(0.4, 0.6)) for one in reference],
        CLASSIFY,
    )
    assert said.logits_largest == pytest.approx(0.5, rel=1e-5)
    assert said.logits_relative == pytest.approx(0.1 / 4, rel=1e-4)  # the first scan's is larger
    assert said.logits_mean == pytest.approx(0.6 / 4, rel=1e-4)
    assert said.probability == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_infinitely_far_away(wrong):
    both = [Answer(logits(wrong, 1.0), probabilities=(0.5, 0.5))]
    assert compare(both, both, CLASSIFY).logits_relative == math.inf


def test_outputs_of_another_shape_are_infinitely_far_away():
    found = [Answer(logits(1.0), probabilities=(0.5, 0.5))]
    reference = [Answer(logits(1.0, 2.0), probabilities=(0.5, 0.5))]
    assert compare(found, reference, CLASSIFY).logits_largest == math.inf


def test_tiles_that_the_network_never_saw_are_not_compared():
    reference = replace(of_boxes(), said=logits([1.0], [-1e4]), seen=np.array([True, False]))
    found = replace(reference, said=logits([1.5], [-1e4]))
    assert compare([found], [reference], DETECT).logits_relative == pytest.approx(0.5)


def test_labels_are_counted_over_all_scans():
    said = compare(
        [of_labels(0, 1, 1, 1), of_labels(0, 0, 1)],
        [of_labels(0, 1, 1, 0), of_labels(0, 0, 1)],
        SEGMENT,
    )
    assert said.equal_labels == pytest.approx(6 / 7)
    assert said.dice == {"liver": pytest.approx(2 * 3 / 7), "spleen": None}
    assert (said.probability, said.ap, said.boxes) == (None, None, None)


BOXES = {
    "the same": ([(0, 10, 0.9)], [(0, 10, 0.9)], (1.0, 0.0, 1)),
    "another score": ([(0, 10, 0.7)], [(0, 10, 0.9)], (1.0, 0.2, 1)),
    "one missed": ([(0, 10, 0.9)], [(0, 10, 0.9), (50, 10, 0.8)], (0.5, 0.0, 2)),
    "one elsewhere": ([(30, 10, 0.9)], [(0, 10, 0.9)], (0.0, 0.0, 1)),
    # Hardly above the threshold of 0.05: the reference's is no truth, the engine's no error.
    "one hardly found": ([(0, 10, 0.9)], [(0, 10, 0.9), (50, 10, 0.06)], (1.0, 0.0, 1)),
    "one found hardly": ([(0, 10, 0.9), (50, 10, 0.05)], [(0, 10, 0.9)], (1.0, 0.0, 1)),
    "none": ([], [], (None, 0.0, 0)),
}


@pytest.mark.parametrize(("found", "reference", "expected"), BOXES.values(), ids=BOXES.keys())
def test_boxes_are_scored_against_the_references(found, reference, expected):
    said = compare([of_boxes(*found)], [of_boxes(*reference)], DETECT)
    ap, probability, boxes = expected
    assert said.ap == (None if ap is None else pytest.approx(ap))
    assert said.probability == pytest.approx(probability)
    assert said.boxes == boxes


GOOD = Agreement(logits_largest=0.0, logits_mean=0.0, logits_relative=0.0)
MISSES = {
    "logits": (SEGMENT, {"logits_relative": 0.003}, "logits differ by 0.003 of the largest"),
    "no figure": (SEGMENT, {"logits_relative": math.nan}, "logits differ by nan"),
    "labels": (SEGMENT, {"equal_labels": 0.998}, "99.8000% of labels are equal"),
    "dice": (SEGMENT, {"dice": {"liver": 0.98, "spleen": None}}, "Dice of liver is 0.9800"),
    "probability": (CLASSIFY, {"probability": 0.03}, "a probability differs by 0.03,"),
    "ap": (DETECT, {"ap": 0.98, "boxes": 3}, "AP of its boxes is 0.980"),
    "nothing found": (DETECT, {"boxes": 0}, "certify on scans with findings"),
}


@pytest.mark.parametrize(("spec", "figures", "words"), MISSES.values(), ids=MISSES.keys())
def test_a_limit_that_is_missed_is_named(spec, figures, words):
    (sentence,) = misses(replace(GOOD, **figures), spec, "fp32")
    assert words in sentence
    kept = replace(spec, limits=Limits(1.0, 0.0, 0.0, 1.0, 0.0))
    is_figure = "nan" not in words and "findings" not in words
    assert bool(misses(replace(GOOD, **figures), kept, "fp32")) != is_figure


def test_logits_of_a_lower_precision_have_no_limit():
    assert misses(replace(GOOD, logits_relative=0.5), SEGMENT, "bf16") == ()
