"""Class weights, the choice of a loss and resampled epochs, by literal tables."""

import numpy as np
import pytest
import torch

from fastmed.errors import DataError
from fastmed.training.balance import choose_loss, class_weights, resample

# method, beta, counts, weights of mean 1
WEIGHTS = {
    "inverse": ("inverse", 0.999, [90, 10], [0.2, 1.8]),  # 1/90 : 1/10 = 1 : 9
    "inverse of equals": ("inverse", 0.999, [7, 7, 7], [1, 1, 1]),
    "inverse of three": ("inverse", 0.999, [4, 2, 1], [3 / 7, 6 / 7, 12 / 7]),
    # beta 1/2: effective numbers 1, 3/2, 7/4, so weights as 1 : 2/3 : 4/7 = 21 : 14 : 12
    "effective": ("effective", 0.5, [1, 2, 3], [63 / 47, 42 / 47, 36 / 47]),
    "effective, beta 0": ("effective", 0.0, [1000, 1], [1, 1]),
    # 1 - 0.999^1000 = 0.632304575, 1 - 0.999^10 = 0.009955120
    "effective, usual beta": ("effective", 0.999, [1000, 10], [0.031000294, 1.968999706]),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_class_weights_table(name):
    method, beta, counts, expected = WEIGHTS[name]
    weights = class_weights(counts, method, beta=beta)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6)


def test_effective_weights_tend_to_the_inverse_as_beta_tends_to_one():
    counts = [500, 40, 3]
    near = class_weights(counts, "effective", beta=1 - 1e-9)
    torch.testing.assert_close(near, class_weights(counts), rtol=1e-5, atol=0)


CHOICES = [
    # negatives, positives, loss, weighted, words of the reason
    (91, 9, "focal", False, "9 of 100 samples (9.0%), which is below 10%"),
    (27, 3, "ce", True, "weighted cross entropy: class 1 has 3 of 30 samples (10.0%)"),
    (80, 20, "ce", True, "which is 10% to 30%"),
    (70, 30, "ce", True, "30 of 100 samples (30.0%), which is 10% to 30%"),
    (69, 31, "ce", False, "plain cross entropy: class 1 has 31 of 100 samples (31.0%)"),
    (50, 50, "ce", False, "above 30%"),
    (5, 95, "focal", False, "class 0 has 5 of 100"),
]


@pytest.mark.parametrize(("negatives", "positives", "name", "weighted", "words"), CHOICES)
def test_auto_chooses_the_loss_by_the_share_of_the_rarest(
    negatives, positives, name, weighted, words
):
    choice = choose_loss([0] * negatives + [1] * positives)
    assert (choice.name, choice.weighted) == (name, weighted)
    assert words in choice.reason


def test_auto_looks_at_the_rarest_of_several_classes():
    choice = choose_loss([0] * 60 + [1] * 35 + [2] * 5, class_names=("none", "cyst", "tumour"))
    assert choice.name == "focal"
    assert choice.reason == (
        "focal loss: class 'tumour' has 5 of 100 samples (5.0%), which is below 10%"
    )


# 5 samples of class 0, 2 of class 1: how often each class comes
SIZES = {"none": (5, 2), "over": (5, 5), "under": (2, 2), "both": (4, 4)}


@pytest.mark.parametrize("method", SIZES)
def test_resampled_epochs_have_the_sizes_promised(method):
    targets = [0, 0, 1, 0, 0, 1, 0]
    for seed in range(20):
        indices = resample(targets, method, np.random.default_rng(seed))
        assert indices.dtype == np.int64
        times = np.bincount(indices, minlength=7)
        by_class = [times[np.asarray(targets) == k] for k in (0, 1)]
        assert tuple(each.sum() for each in by_class) == SIZES[method]
        for each in by_class:
            assert each.max() - each.min() <= 1, "samples of a class come equally often"


def test_resampling_is_decided_by_its_generator_alone():
    targets = [0] * 20 + [1] * 6 + [2] * 3
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    for method in SIZES:
        one, same, other = (
            resample(targets, method, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
        assert (np.diff(one) < 0).any(), "the order is shuffled"
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


def test_what_undersampling_leaves_out_differs_between_epochs():
    rng = np.random.default_rng(0)
    seen = {i for _ in range(30) for i in resample([0] * 8 + [1] * 2, "under", rng)}
    assert seen == set(range(10))


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: class_weights([5, 0, 0], class_names=("none", "cyst", "tumour")), DataError,
         "class 'cyst', class 'tumour': no training sample"),
        (lambda: class_weights([5, 0]), DataError, "class 1: no training sample"),
        (lambda: choose_loss([0, 0, 0]), DataError, "class 1: no training sample"),
        (lambda: choose_loss([0, 1], class_names=("none", "cyst", "tumour")), DataError,
         "class 'tumour': no training sample"),
        (lambda: resample([0, 2], "over", RNG), DataError, "class 1: no training sample"),
        (lambda: resample([], "over", RNG), DataError, "expected one class for each sample"),
        (lambda: resample([0, 1, 2], "over", RNG, class_names=("none", "cyst")), DataError,
         "target 2: expected classes from 0 to 1"),
        (lambda: resample([0, 1, -1], "over", RNG), DataError, "target -1"),
        (lambda: resample([0, 1], "smote", RNG), ValueError,
         "balance 'smote': expected one of none, over, under, both"),
        (lambda: class_weights([1, 2], "log"), ValueError,
         "class weights 'log': expected one of inverse, effective"),
        (lambda: class_weights([1, 2], "effective", beta=1.0), ValueError,
         "beta 1.0: expected at least 0 and below 1"),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_wrong_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
