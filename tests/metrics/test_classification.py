"""Classification scores: literal tables, torchmetrics as the rival, a bootstrap that is exact."""

import math
import time

import numpy as np
import pytest
import torch
from torchmetrics.functional import classification as rival

from fastmed.metrics.classification import classification_scores

#               right  right  wrong  right  tie: class 0, wrong
POSITIVE = np.array([0.9, 0.2, 0.7, 0.6, 0.5])
TRUTH = np.array([1, 0, 0, 1, 1])


def rows(positive) -> np.ndarray:
    return np.stack([1 - np.asarray(positive), positive], axis=1)


def random_case(scans=400, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, scans)
    logits = rng.normal(size=(scans, classes)) + 1.2 * np.eye(classes)[targets]
    return torch.softmax(torch.from_numpy(logits), dim=1).numpy(), targets


def test_scores_of_a_literal_table():
    scores = classification_scores(rows(POSITIVE), TRUTH)
    assert scores.confusion.tolist() == [[1, 1], [1, 2]]
    assert scores.accuracy == pytest.approx(3 / 5)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.auc == pytest.approx(4 / 6)  # 0.9 beats both, 0.6 and 0.5 beat 0.2 alone
    assert scores.scans == 5


def test_ties_between_a_positive_and_a_negative_count_half():
    assert classification_scores(rows([0.3, 0.3, 0.8]), [0, 1, 1]).auc == pytest.approx(3 / 4)


@pytest.mark.parametrize("digits", [1, 15], ids=["many ties", "no ties"])
def test_two_classes_are_scored_as_torchmetrics_does(digits):
    probabilities, targets = random_case()
    positive = probabilities[:, 1].round(digits)
    scores = classification_scores(rows(positive), targets)
    preds, target = torch.from_numpy(positive), torch.from_numpy(targets)
    assert scores.auc == pytest.approx(float(rival.binary_auroc(preds, target)))
    if digits == 15:  # float noise moves probabilities across the bins' edges otherwise
        error = rival.binary_calibration_error(preds, target, n_bins=10)
        assert scores.calibration_error == pytest.approx(float(error))


def test_more_classes_are_scored_as_torchmetrics_does():
    probabilities, targets = random_case(classes=4)
    scores = classification_scores(probabilities, targets)
    ask = (torch.from_numpy(probabilities), torch.from_numpy(targets), 4)
    assert scores.auc == pytest.approx(float(rival.multiclass_auroc(*ask)))
    assert scores.f1 == pytest.approx(float(rival.multiclass_f1_score(*ask, average="macro")))
    assert scores.accuracy == pytest.approx(float(rival.multiclass_accuracy(*ask, average="micro")))
    assert scores.calibration_error == pytest.approx(
        float(rival.multiclass_calibration_error(*ask, n_bins=10)), abs=1e-6
    )
    assert np.trace(scores.confusion) == pytest.approx(scores.accuracy * 400)
    assert (scores.confusion.sum(axis=1) == np.bincount(targets)).all()


def test_a_class_without_scans_does_not_lower_the_means():
    probabilities, targets = random_case(classes=3)
    wider = np.concatenate([probabilities, np.zeros((400, 1))], axis=1)
    few, many = classification_scores(probabilities, targets), classification_scores(wider, targets)
    assert many.f1 == pytest.approx(few.f1)
    assert many.auc == pytest.approx(few.auc)


def test_the_band_is_that_of_a_plain_loop_over_resamples():
    probabilities, targets = random_case(scans=30, seed=1)
    scores = classification_scores(probabilities, targets, bootstraps=200, seed=5)
    rng = np.random.default_rng(5)
    values = []
    for picked in rng.integers(0, 30, (200, 30)):
        positive = probabilities[picked, 1]
        high, low = positive[targets[picked] == 1], positive[targets[picked] == 0]
        values.append(np.mean((high[:, None] > low) + 0.5 * (high[:, None] == low)))
    assert scores.auc_band == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert scores.auc_resamples == 200


def test_resamples_of_one_class_are_left_out_and_counted():
    scores = classification_scores(rows([0.1, 0.2, 0.3, 0.9]), [0, 0, 0, 1], bootstraps=1000)
    drawn = np.random.default_rng(0).integers(0, 4, (1000, 4)) == 3
    assert scores.auc_resamples == np.sum(drawn.any(axis=1) & ~drawn.all(axis=1))
    assert scores.auc_resamples < 750
    assert scores.auc_band == (1, 1)


def test_truth_of_one_class_has_no_curve():
    scores = classification_scores(rows([0.1, 0.8]), [1, 1])
    assert math.isnan(scores.auc)
    assert all(map(math.isnan, scores.auc_band))
    assert scores.auc_resamples == 0
    assert scores.accuracy == 0.5


def test_the_seed_decides_the_band():
    probabilities, targets = random_case()
    first, again, other = (
        classification_scores(probabilities, targets, seed=seed).auc_band for seed in (1, 1, 2)
    )
    assert first == again != other


def test_large_sets_are_resampled_piece_by_piece_with_the_same_outcome(monkeypatch):
    probabilities, targets = random_case(scans=50)
    whole = classification_scores(probabilities, targets, bootstraps=40).auc_band
    monkeypatch.setattr("fastmed.metrics.classification._CHUNK", 350)
    assert classification_scores(probabilities, targets, bootstraps=40).auc_band == whole


def test_the_calibration_curve_of_a_literal_table():
    scores = classification_scores(rows([0.02, 0.08, 0.35, 0.31, 1.0]), [0, 1, 1, 1, 1])
    first, fourth, last = (scores.calibration[k] for k in (0, 3, 9))
    assert len(scores.calibration) == 10
    assert (first.low, first.high, first.scans, first.share) == (0, 0.1, 2, 0.5)
    assert first.probability == pytest.approx(0.05)
    assert (fourth.scans, fourth.share) == (2, 1)
    assert (last.scans, last.probability, last.share) == (1, 1, 1)
    assert scores.calibration[1].scans == 0
    assert math.isnan(scores.calibration[1].share)
    assert scores.calibration_error == pytest.approx(2 / 5 * 0.45 + 2 / 5 * 0.67)


def test_the_calibration_error_is_the_curve_summed_up():
    for classes in (2, 3):
        probabilities, targets = random_case(classes=classes, seed=3)
        scores = classification_scores(probabilities, targets)
        error = sum(b.scans * abs(b.probability - b.share) for b in scores.calibration if b.scans)
        assert scores.calibration_error == pytest.approx(error / 400, abs=1e-6)


def test_a_thousand_resamples_of_a_thousand_scans_take_less_than_a_second():
    probabilities, targets = random_case(scans=1000)
    classification_scores(probabilities, targets, bootstraps=1)
    start = time.perf_counter()
    classification_scores(probabilities, targets)
    assert time.perf_counter() - start < 1


WRONG = {
    "one column": (np.ones((3, 1)), [0, 0, 0], "expected .N, K >= 2."),
    "no scans": (np.ones((0, 2)), np.zeros(0, int), "no scans"),
    "lengths": (rows([0.1, 0.2]), [0], "expected 2 integers"),
    "fractions": (rows([0.1]), [0.5], "expected 1 integers"),
    "no distribution": ([[0.5, 0.2]], [0], "row 0"),
    "NaN": ([[0.5, 0.5], [math.nan, 0.5]], [0, 1], "row 1"),
    "out of range": (rows([0.1, 0.2]), [0, 2], "run from 0 to 2"),
}


@pytest.mark.parametrize(("probabilities", "targets", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(probabilities, targets, words):
    with pytest.raises(ValueError, match=words):
        classification_scores(np.asarray(probabilities), np.asarray(targets))
