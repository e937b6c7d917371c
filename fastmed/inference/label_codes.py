"""Label codes: which stored value of a label map stands for which of the labels to be scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmed.errors import SeriesError, UsageError

_HIGHEST = 65535
_NO_LABEL = -1


@dataclass(frozen=True)
class Code:
    """How stored values become classes 0 (background), 1, ..., K.

    classes: class of each stored value; None takes every value above 0 as class 1.
    others: the class of the values that `classes` lacks; None where they are an error.
    """

    classes: Mapping[int, int] | None
    others: int | None = None

    def __call__(self, labels: np.ndarray, path: object) -> np.ndarray:
        """Maps stored labels (any shape) to uint8 classes, int16 where there are above 254.

        Raises SeriesError that names the file and a value that is no label.
        """
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high > _HIGHEST:
            raise SeriesError(f"{path}: it holds {low if low < 0 else high}, which is no label")
        if self.classes is None:
            return (labels != 0).astype(np.uint8)
        table = np.full(high + 1, _NO_LABEL if self.others is None else self.others, np.int16)
        table[0] = 0
        for value, label in self.classes.items():
            if value <= high:
                table[value] = label
        if (table == _NO_LABEL).any():
            unknown = np.setdiff1d(stored_values(labels), np.flatnonzero(table != _NO_LABEL))
            if unknown.size:
                known = ", ".join(map(str, sorted(self.classes)))
                raise SeriesError(
                    f"{path}: it holds {', '.join(map(str, unknown[:8]))}, expected the labels "
                    f"{known}; --labels NAME=VALUE,... says which values to score"
                )
        narrow = np.uint8 if max(self.classes.values(), default=0) < 255 else np.int16
        return np.maximum(table, 0).astype(narrow)[labels]


@dataclass(frozen=True)
class Codes:
    """The labels to be scored, and how predictions and truth store them.

    pictures: of predictions that are images, which keep the truth's values.
    """

    names: tuple[str, ...]
    predictions: Code
    pictures: Code
    truth: Code


def stored_values(labels: np.ndarray) -> np.ndarray:
    """The values above 0 of a label map, rising; faster than np.unique on a whole scan."""
    present = np.zeros(int(labels.max()) + 1, bool)
    present[labels] = True
    present[0] = False
    return np.flatnonzero(present)


def parse_labels(text: str) -> dict[str, tuple[int, ...]]:
    """Reads "liver=5,lungs=10+11" as truth values by label name. Raises UsageError."""
    labels: dict[str, tuple[int, ...]] = {}
    for item in text.split(","):
        name, equals, values = item.rpartition("=")
        name = name.strip()
        try:
            numbers = tuple(int(value) for value in values.split("+"))
        except ValueError:
            numbers = ()
        if not (equals and name and numbers and all(0 < n <= _HIGHEST for n in numbers)):
            raise UsageError(
                f"--labels {item.strip()!r}: expected NAME=VALUE or NAME=VALUE+VALUE, "
                f"values 1..{_HIGHEST}"
            )
        if name in labels:
            raise UsageError(f"--labels: {name} is named twice")
        labels[name] = numbers
    taken = [value for values in labels.values() for value in values]
    if len(set(taken)) != len(taken):
        raise UsageError(f"--labels {text}: two labels have the same value")
    return labels


def named_codes(
    model_labels: Sequence[str] | None, labels: Mapping[str, Sequence[int]] | None
) -> Codes | None:
    """The codes as the model's label names and --labels say; None where neither does.

    model_labels: names of the predictions' values 1, 2, ...; None where they are not known, which
        takes the order of `labels` for theirs. labels: truth values by name.

    Raises UsageError where `labels` has a name that the model lacks.
    """
    if labels is None:
        if model_labels is None:
            return None
        if len(model_labels) == 1:
            return Codes(tuple(model_labels), Code({1: 1}), Code(None), Code(None))
        identity = Code({k: k for k in range(1, len(model_labels) + 1)})
        return Codes(tuple(model_labels), identity, identity, identity)
    names = tuple(labels)
    order = names if model_labels is None else tuple(model_labels)
    if absent := [name for name in names if name not in order]:
        raise UsageError(f"--labels {', '.join(absent)}: the model's are {', '.join(order)}")
    stored = {value: k for k, name in enumerate(names, 1) for value in labels[name]}
    predicted = {
        value: names.index(name) + 1 if name in labels else 0 for value, name in enumerate(order, 1)
    }
    truth = Code(stored, others=0)
    return Codes(names, Code(predicted), truth, truth)


def codes_of_values(predicted: Iterable[int], true: Iterable[int]) -> Codes:
    """The codes where nothing but the values above 0 of all predictions and truths is known.

    A single value on each side is one label; else a value means the same on both sides.

    Raises UsageError where the predictions hold one value and the truth several.
    """
    predicted, true = set(predicted), set(true)
    if len(predicted) <= 1 and len(true) <= 1:
        return Codes(("label",), Code(None), Code(None), Code(None))
    if len(predicted) <= 1:
        raise UsageError(
            f"--labels: the predictions hold one label, the truth {sorted(true)}; "
            "NAME=VALUE says which of them it is"
        )
    values = sorted(predicted | true)
    same = Code({value: k for k, value in enumerate(values, 1)})
    return Codes(tuple(f"label {value}" for value in values), same, same, same)
