"""Detection scores: literal tables, a slow reference by the rules, and what must not matter."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.metrics.average_precision import average_precision
from fastmed.metrics.detection import detection_scores

A, B, C = [0, 0, 0, 2, 2, 2], [10, 10, 10, 14, 14, 14], [20, 20, 20, 22, 22, 22]
A_HALF = [0, 0, 0, 2, 2, 1]  # IoU 1/2 with A
A_FIFTH = [0, 0, 0, 2, 2, 0.4]  # IoU 1/5 with A
FAR = [50, 50, 50, 51, 51, 51]
NOTHING = ([], [], [])


def test_scores_of_a_literal_table():
    predictions = [
        ([A_HALF, FAR], [0.9, 0.6], [1, 1]),
        ([FAR, B], [0.8, 0.7], [1, 1]),
        NOTHING,
    ]
    truth = [([A], [1]), ([B, C], [1, 1]), ([], [])]
    scores = detection_scores(predictions, truth)
    assert (scores.scans, scores.findings, scores.predictions) == (3, 3, 4)
    assert scores.mean_iou == pytest.approx((1 / 2 + 1 + 0) / 3)
    # by falling score: hit, false, hit, false; two of three are found, at precision 1 and 2/3
    assert scores.ap == {0.1: pytest.approx((1 + 2 / 3) / 3), 0.5: pytest.approx((1 + 2 / 3) / 3)}
    assert scores.map == pytest.approx((1 + 2 / 3) / 3)
    # one false positive in three scans is a rate of 1/3: at 1/8 and 1/4 the first hit alone
    assert scores.froc.sensitivities == pytest.approx((1 / 3, 1 / 3, *[2 / 3] * 5))
    assert scores.froc.cpm == pytest.approx((2 / 3 + 10 / 3) / 7)


IOUS = {
    "half counts at one half": (A_HALF, 1, 1),
    "a fifth counts at one tenth alone": (A_FIFTH, 1, 0),
    "none": (FAR, 0, 0),
    "inverted": ([2, 2, 2, 0, 0, 0], 0, 0),
}


@pytest.mark.parametrize(("box", "ap10", "ap50"), IOUS.values(), ids=IOUS.keys())
def test_the_overlap_decides(box, ap10, ap50):
    assert detection_scores([([box], [0.5], [1])], [([A], [1])]).ap == {0.1: ap10, 0.5: ap50}


def test_a_second_prediction_of_a_finding_is_a_false_positive_for_ap_and_none_for_froc():
    scores = detection_scores([([A, A_HALF, B], [0.9, 0.8, 0.7], [1, 1, 1])], [([A, B], [1, 1])])
    assert scores.ap[0.5] == pytest.approx((1 + 2 / 3) / 2)
    assert scores.froc.sensitivities[0] == 1


def test_a_prediction_takes_the_finding_that_it_overlaps_most_of_those_left():
    whole, lower, upper = ([0, 0, low, 10, 10, high] for low, high in ((0, 10), (0, 6), (4, 10)))
    # `lower` overlaps `whole` by 0.6 too, and would leave `upper` nothing there
    scores = detection_scores([([lower, upper], [0.9, 0.8], [1, 1])], [([whole, lower], [1, 1])])
    assert scores.ap[0.5] == 1
    again = detection_scores([([whole, whole], [0.9, 0.8], [1, 1])], [([whole, lower], [1, 1])])
    assert again.ap[0.5] == 1


def test_labels_must_agree_and_the_mean_is_of_the_labels_that_the_truth_has():
    predictions = [([A, B, FAR], [0.9, 0.8, 0.7], ["solid", "glass", "other"])]
    scores = detection_scores(predictions, [([A, B], ["solid", "solid"])])
    by_label = {one.label: (one.findings, one.predictions, one.ap[0.5]) for one in scores.classes}
    assert by_label.pop("solid") == (2, 1, 0.5)
    assert {label: row[:2] for label, row in by_label.items()} == {"glass": (0, 1), "other": (0, 1)}
    assert all(math.isnan(row[2]) for row in by_label.values())
    assert scores.ap[0.5] == 0.5
    assert scores.mean_iou == 0.5
    assert scores.froc.sensitivities[-1] == 0.5


def test_what_lies_on_an_ignored_box_alone_counts_for_nothing():
    with_it = detection_scores([([A, B], [0.5, 0.9], [1, 1])], [([A, B], [1, -1])])
    assert with_it.ap == {0.1: 1, 0.5: 1}
    assert with_it.froc.cpm == 1
    assert (with_it.findings, with_it.mean_iou) == (1, 1)


def test_flat_boxes_are_scored_alike():
    flat = [0, 0, 2, 2]
    scores = detection_scores([([flat], [0.5], [1]), NOTHING], [([flat], [1]), ([flat], [1])])
    assert scores.ap == {0.1: 0.5, 0.5: 0.5}
    assert scores.mean_iou == scores.froc.cpm == 0.5


CENTRES = {"inside": (0.999, 1), "on the border": (1.0, 0), "outside": (1.001, 0)}


@pytest.mark.parametrize(("shift", "hit"), CENTRES.values(), ids=CENTRES.keys())
def test_a_hit_of_the_froc_is_nearer_than_the_radius(shift, hit):
    moved = [shift, 0, 0, 2 + shift, 2, 2]
    assert detection_scores([([moved], [0.5], [1])], [([A], [1])]).froc.cpm == hit


def test_no_findings_have_no_score_and_no_scans_neither():
    for predictions, truth in (
        ([NOTHING], [([], [])]),
        ([([A], [0.5], [1])], [([], [])]),
        ([], []),
    ):
        scores = detection_scores(predictions, truth)
    assert all(map(math.isnan, (scores.mean_iou, scores.map, scores.froc.cpm)))
    assert all(map(math.isnan, (*scores.ap.values(), *scores.froc.sensitivities)))


def test_findings_without_predictions_are_missed():
    scores = detection_scores([NOTHING, NOTHING], [([A], [1]), ([], [])])
    assert (scores.mean_iou, scores.map, scores.froc.cpm) == (0, 0, 0)


def slow_ap(predictions, truth, label, threshold):
    """By the rules, prediction by prediction, with precision and recall at each score."""

    def iou(a, b):
        sides = [max(min(a[k + 3], b[k + 3]) - max(a[k], b[k]), 0) for k in range(3)]
        volume = [math.prod(max(c[k + 3] - c[k], 0) for k in range(3)) for c in (a, b)]
        return math.prod(sides) / (sum(volume) - math.prod(sides)) if math.prod(sides) else 0.0

    judged = []
    for (boxes, scores, labels), (true_boxes, true_labels) in zip(predictions, truth, strict=True):
        taken = set()
        for n in sorted(range(len(boxes)), key=lambda n: (-scores[n], n)):
            if labels[n] != label:
                continue
            fits = [
                (iou(boxes[n], box), -m)
                for m, box in enumerate(true_boxes)
                if true_labels[m] == label and m not in taken and iou(boxes[n], box) >= threshold
            ]
            if fits:
                taken.add(-max(fits)[1])
            judged.append((scores[n], bool(fits)))
    findings = sum(one == label for _, labels in truth for one in labels)
    points = []
    for score in sorted({score for score, _ in judged}, reverse=True):
        hits = [hit for one, hit in judged if one >= score]
        points.append((sum(hits) / findings, sum(hits) / len(hits)))
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


def random_scans(rng, scans, labels=2):
    predictions, truth = [], []
    for _ in range(scans):
        n, m = rng.integers(0, 12), rng.integers(0, 5)
        corners = rng.integers(0, 6, (n + m, 3))
        boxes = np.concatenate([corners, corners + rng.integers(1, 5, (n + m, 3))], axis=1)
        scores = rng.integers(0, 6, n) / 5
        predictions.append((boxes[:n], scores, rng.integers(1, labels + 1, n)))
        truth.append((boxes[n:], rng.integers(1, labels + 1, m)))
    return predictions, truth


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_ap_is_that_of_the_slow_rules(seed, scans):
    predictions, truth = random_scans(np.random.default_rng(seed), scans)
    for one in detection_scores(predictions, truth).classes:
        for threshold in (0.1, 0.5):
            if one.findings:
                expected = slow_ap(predictions, truth, one.label, threshold)
                assert one.ap[threshold] == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_the_scans_does_not_matter_where_scores_are_equal(seed):
    predictions, truth = random_scans(np.random.default_rng(seed), 4)
    first = detection_scores(predictions, truth)
    again = detection_scores(predictions[::-1], truth[::-1])
    assert again.ap == pytest.approx(first.ap, nan_ok=True)
    assert again.froc.sensitivities == pytest.approx(first.froc.sensitivities, nan_ok=True)


def test_tensors_are_taken_as_arrays_are():
    given_ = (torch.tensor([A], dtype=torch.float32), torch.tensor([0.5]), torch.tensor([1]))
    truth = (torch.tensor([A], dtype=torch.float32), torch.tensor([1]))
    assert detection_scores([given_], [truth]).map == 1


AREAS = {
    "perfect": ([0.9, 0.8], [0.7], 2, 1),
    "a tie enters at once": ([0.9], [0.9], 1, 1 / 2),
    "a later peak lifts what comes before": ([0.8, 0.7, 0.6], [0.9], 3, 3 / 4),
    "a hole": ([0.9, 0.5], [0.7, 0.6], 2, (1 + 2 / 4) / 2),
    "one never found": ([0.9], [], 2, 1 / 2),
    "no hit": ([], [0.4], 2, 0),
    "no prediction": ([], [], 2, 0),
}


@pytest.mark.parametrize(("hits", "false", "findings", "area"), AREAS.values(), ids=AREAS.keys())
def test_the_area_of_a_literal_curve(hits, false, findings, area):
    assert average_precision(np.array(hits), np.array(false), findings) == pytest.approx(area)


def test_ten_thousand_predictions_take_less_than_two_seconds():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (10_000, 3))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 20, (10_000, 3))], axis=1)
    parts = np.split(boxes, 20)
    predictions = [(part, rng.random(500), np.ones(500, int)) for part in parts]
    truth = [(part[:10] + 1, np.ones(10, int)) for part in parts]
    start = time.perf_counter()
    assert detection_scores(predictions, truth).mean_iou > 0.2
    assert time.perf_counter() - start < 2


WRONG = {
    "scans": ([NOTHING], [], "predictions: of 1 scans, truth of 0"),
    "width": ([([[0, 0, 1]], [0.5], [1])], [([], [])], r"predictions.0.: expected boxes"),
    "count": ([([A], [0.5], [1, 1])], [([], [])], r"predictions.0.: expected boxes .2"),
    "scores": ([([A], [0.5, 0.4], [1])], [([], [])], "expected 1 finite scores"),
    "NaN score": ([([A], [math.nan], [1])], [([], [])], "finite scores"),
    "NaN box": ([NOTHING], [([[0, 0, 0, 1, 1, math.nan]], [1])], r"truth.0.: a corner"),
    "2D and 3D": ([([[0, 0, 1, 1]], [0.5], [1])], [([A], [1])], "4 corners, others 6"),
    "names and numbers": ([([A], [0.5], ["a"])], [([A], [1])], "numbers, others names"),
    "ignored": ([([A], [0.5], [-1])], [([A], [1])], "below 0"),
}


@pytest.mark.parametrize(("predictions", "truth", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(predictions, truth, words):
    with pytest.raises(ValueError, match=words):
        detection_scores(predictions, truth)
