"""Label values: what the numbers in a label file mean."""

from __future__ import annotations

import data_sets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastmed.errors import UsageError
from fastmed.training.label_values import LabelValues

# spec, values, stored -> classes, values that are out of range
TABLE = [
    (data_sets.LIVER, {}, [0, 1, 7, 300], [0, 1, 1, 1], []),
    (data_sets.LIVER, {}, [-1, 0, 2, 2], [0, 0, 1, 1], [-1]),
    (data_sets.LIVER, {"liver": (5, 6)}, [0, 5, 6, 7], [0, 1, 1, 0], []),
    (data_sets.ORGANS, {}, [0, 1, 2, 3], [0, 1, 2, 0], [3]),
    (data_sets.ORGANS, {"liver": (9,), "spleen": (1,)}, [0, 1, 9, 2], [0, 2, 1, 0], []),
    (data_sets.SLICES, {}, [0, 255, 254, 1], [0, 1, 0, 0], [1, 254]),
    (data_sets.ORGANS, {"liver": (70000,), "spleen": (-5,)}, [-5, 0, 70000, 2], [2, 0, 1, 0], [-5]),
]


@pytest.mark.parametrize(("spec", "values", "stored", "classes", "unknown"), TABLE)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64"])
def test_stored_values_become_classes(spec, values, stored, classes, unknown, dtype):
    if min(stored) < np.iinfo(dtype).min or max(stored) > np.iinfo(dtype).max:
        pytest.skip("not of this type")
    meaning = LabelValues.of(spec, values)
    labels = np.array(stored, dtype).reshape(1, 2, 2)
    found = meaning.to_classes(labels)
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == classes
    assert meaning.unknown(labels) == unknown


@given(arrays.arrays(np.int16, (2, 3, 4)))
def test_the_lookup_equals_asking_each_voxel(labels):
    meaning = LabelValues(4, {0: 0, -32768: 1, 12: 2, 32767: 3})
    one_by_one = [meaning.classes.get(int(value), 0) for value in labels.ravel()]
    assert meaning.to_classes(labels).ravel().tolist() == one_by_one


@given(st.integers(-100, 100))
def test_a_map_of_one_value_is_taken(value):
    meaning = LabelValues(3, {0: 0, 1: 1, 2: 2})
    labels = np.full((1, 2, 2), value, np.int16)
    assert (meaning.to_classes(labels) == (value if value in (1, 2) else 0)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kidney": (1,)}, "'kidney' is no label; known are liver, spleen"),
        ({"liver": (1,), "spleen": (1,)}, "1 stands for two labels"),
        ({"liver": (1,)}, "no stored values for spleen"),
    ],
)
def test_values_that_contradict_the_spec_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        LabelValues.of(data_sets.ORGANS, values)
