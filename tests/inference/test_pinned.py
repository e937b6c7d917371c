"""Pinned memory, also where there is none."""

import numpy as np
import pytest

from fastmed.inference.pinned import pinned


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32], ids=lambda d: d.__name__)
def test_pinned_memory_is_an_array_also_where_there_is_no_gpu(dtype):
    array = pinned((2, 3, 4), np.dtype(dtype))
    assert (array.shape, array.dtype) == ((2, 3, 4), dtype)
    array[...] = 7
    assert array.sum() == 7 * 24
