"""Against imbalance of classes: weights, resampled epochs, and the choice of a loss."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmed.errors import DataError

RARE, UNCOMMON = 0.10, 0.30  # shares of the rarest class
WEIGHTS = ("inverse", "effective")
RESAMPLING = ("none", "over", "under", "both")


class LossChoice(NamedTuple):
    """A loss of `fastmed.losses`, whether it wants class weights, and why, in one sentence."""

    name: str
    weighted: bool
    reason: str


def class_weights(
    counts: Sequence[int],
    method: str = "inverse",
    *,
    beta: float = 0.999,
    class_names: Sequence[str] = (),
) -> Tensor:
    """Weights of the classes from their numbers of examples; their mean is 1.

    counts: examples per class, class 0 first.
    method: "inverse", weights as 1 / n; or "effective", as (1 - beta) / (1 - beta ** n), which
        grow less where examples of a class resemble each other.
    beta: of "effective", at least 0 and below 1: 0 gives equal weights, 1 would give the inverse.
    class_names: for the error's sake.

    Returns [classes] float32. Raises DataError where a class has no example, ValueError for
    another method or a bad beta.

    Source of "effective": Cui et al., "Class-Balanced Loss Based on Effective Number of Samples",
    CVPR 2019.
    """
    if method not in WEIGHTS:
        raise ValueError(f"class weights {method!r}: expected one of {', '.join(WEIGHTS)}")
    if not 0 <= beta < 1:
        raise ValueError(f"beta {beta}: expected at least 0 and below 1")
    numbers = np.asarray(counts, dtype=np.float64)
    _check_no_class_is_empty(numbers, class_names)
    if method == "effective":
        numbers = (1 - beta**numbers) / (1 - beta)
    weights = 1 / numbers
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def choose_loss(targets: Sequence[int], *, class_names: Sequence[str] = ()) -> LossChoice:
    """The loss that loss = "auto" stands for, by the share of the rarest class.

    Of two classes that is usually the share of positives. Below 10 %: "focal" without weights
    ("combined", half focal and half Dice, is the alternative to try); 10 to 30 %: "ce" with class
    weights; above: "ce".

    targets: class of each training sample. Raises DataError where a class has no example.
    """
    counts = _counts(targets, class_names)
    rarest = int(counts.argmin())
    share = counts[rarest] / counts.sum()
    found = f"{_name(rarest, class_names)} has {counts[rarest]} of {counts.sum()} samples"
    found = f"{found} ({share:.1%})"
    if share < RARE:
        return LossChoice("focal", False, f"focal loss: {found}, which is below {RARE:.0%}")
    if share <= UNCOMMON:
        reason = f"weighted cross entropy: {found}, which is {RARE:.0%} to {UNCOMMON:.0%}"
        return LossChoice("ce", True, reason)
    return LossChoice("ce", False, f"plain cross entropy: {found}, which is above {UNCOMMON:.0%}")


def resample(
    targets: Sequence[int],
    method: str,
    rng: np.random.Generator,
    *,
    class_names: Sequence[str] = (),
) -> np.ndarray:
    """Indices of the samples of one epoch, shuffled; int64.

    With K classes of n_k samples, N in all, each class comes
        "none": n_k times (every sample once; N in all),
        "over": max(n_k) times (K * max(n_k) in all: no sample is lost),
        "under": min(n_k) times (K * min(n_k) in all: no sample comes twice),
        "both": N / K times, rounded up (about N in all).
    Within a class samples come equally often, give or take one; which of them come once more, or
    at all, is drawn anew by each call.

    targets: class of each training sample. rng: alone decides what is drawn.
    Raises DataError where a class has no example, ValueError for another method.
    """
    if method not in RESAMPLING:
        raise ValueError(f"balance {method!r}: expected one of {', '.join(RESAMPLING)}")
    counts = _counts(targets, class_names)
    if method == "none":
        return rng.permutation(len(targets))
    size = {"over": counts.max(), "under": counts.min(), "both": -(-counts.sum() // len(counts))}
    classes = np.asarray(targets)
    drawn = []
    for index in range(len(counts)):
        members = np.flatnonzero(classes == index)
        rounds, rest = divmod(int(size[method]), len(members))
        drawn += [np.tile(members, rounds), rng.permutation(members)[:rest]]
    return rng.permutation(np.concatenate(drawn))


def _counts(targets: Sequence[int], class_names: Sequence[str]) -> np.ndarray:
    classes = np.asarray(targets)
    if classes.ndim != 1 or not len(classes) or classes.dtype.kind not in "iu":
        raise DataError(f"targets {list(classes.shape)}: expected one class for each sample")
    if classes.min() < 0 or (class_names and classes.max() >= len(class_names)):
        bad = int(classes.min() if classes.min() < 0 else classes.max())
        last = len(class_names) - 1 if class_names else "one less than the number of classes"
        raise DataError(f"target {bad}: expected classes from 0 to {last}")
    counts = np.bincount(classes, minlength=max(len(class_names), 2))
    _check_no_class_is_empty(counts, class_names)
    return counts


def _check_no_class_is_empty(counts: np.ndarray, class_names: Sequence[str]) -> None:
    empty = [_name(k, class_names) for k in np.flatnonzero(np.asarray(counts) <= 0)]
    if empty:
        raise DataError(
            f"{', '.join(empty)}: no training sample; add some or leave the class out of the spec"
        )


def _name(index: int, class_names: Sequence[str]) -> str:
    return f"class {class_names[index]!r}" if class_names else f"class {index}"
