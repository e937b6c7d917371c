"""Label values: the numbers in a label file become classes, by one vectorised lookup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastmed.errors import UsageError
from fastmed.spec import Spec


@dataclass(frozen=True)
class LabelValues:
    """What stored label values mean.

    classes: stored value -> class; None where everything above 0 is class 1.
    others_are_background: values that `classes` lacks are class 0, else they are out of range.
    """

    num_classes: int
    classes: Mapping[int, int] | None
    others_are_background: bool = False

    @classmethod
    def of(cls, spec: Spec, values: Mapping[str, tuple[int, ...]]) -> LabelValues:
        """The meaning of a data set's label files.

        values: label name -> the stored values that count as it; other values are background
            then. {}: the spec's grey values where it has any; else everything above 0 is class 1
            where the spec has one label, and the value is the class where it has more.

        Raises UsageError for a name that is no label, and for a value that stands for two.
        """
        if values:
            return cls(spec.num_classes, _named(spec, values), others_are_background=True)
        if any(label.grey is not None for label in spec.labels):
            greys = {
                label.value if label.grey is None else label.grey: label.value
                for label in spec.labels
            }
            return cls(spec.num_classes, {0: 0} | greys)
        if len(spec.labels) == 1:
            return cls(spec.num_classes, None)
        return cls(spec.num_classes, {value: value for value in range(spec.num_classes)})

    def unknown(self, labels: np.ndarray) -> list[int]:
        """Stored values that are no class, rising."""
        present = _present(labels)
        if self.classes is None or self.others_are_background:
            return [value for value in present if value < 0]
        return [value for value in present if value not in self.classes]

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        """Class of each voxel, uint8 (int16 above 256 classes); unknown values are background."""
        dtype = np.uint8 if self.num_classes <= 256 else np.int16
        if self.classes is None:
            return (labels > 0).astype(dtype)
        low, high = int(labels.min()), int(labels.max())
        if high - low < 1 << 16:
            table = np.zeros(high - low + 1, dtype)
            for value, label in self.classes.items():
                if low <= value <= high:
                    table[value - low] = label
            # The difference may overflow the stored type, never the index type.
            return table[labels if low == 0 else labels.astype(np.int64) - low]
        stored = np.array(sorted(self.classes))
        classes = np.array([self.classes[value] for value in stored.tolist()], dtype)
        at = np.searchsorted(stored, labels).clip(0, len(stored) - 1)
        return np.where(stored[at] == labels, classes[at], dtype(0))


def _named(spec: Spec, values: Mapping[str, tuple[int, ...]]) -> dict[int, int]:
    names = {label.name: label.value for label in spec.labels}
    classes: dict[int, int] = {}
    for name, stored in values.items():
        if name not in names:
            raise UsageError(f"values: {name!r} is no label; known are {', '.join(names)}")
        for value in stored:
            if classes.get(value, names[name]) != names[name]:
                raise UsageError(f"values: {value} stands for two labels")
            classes[value] = names[name]
    if missing := [name for name in names if name not in values]:
        raise UsageError(f"values: no stored values for {', '.join(missing)}")
    return classes


def _present(labels: np.ndarray) -> list[int]:
    low, high = int(labels.min()), int(labels.max())
    if labels.dtype.kind in "iu" and labels.dtype.itemsize <= 2:
        counts = np.zeros(high - low + 1, bool)
        counts[labels if low == 0 else labels.astype(np.int64) - low] = True
        return (np.flatnonzero(counts) + low).tolist()
    return np.unique(labels).tolist()
