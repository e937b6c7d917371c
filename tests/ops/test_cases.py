"""Every small call of OP_CASES agrees with its reference, and repeats itself."""

import pytest
import torch

from fastmed import ops
from fastmed.testing import OP_CASES


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.fixture(params=[case for case in OP_CASES if not case.large], ids=str)
def case(request):
    return request.param


def test_agrees_with_the_reference(case, device):
    arguments = case.make(device)
    result = getattr(ops, case.op)(*arguments, **case.keywords)
    expected = case.reference(*arguments, **case.keywords)
    for each, other in zip(as_tuple(result), as_tuple(expected), strict=True):
        assert each.dtype == other.dtype
        assert each.shape == other.shape
    torch.testing.assert_close(result, expected, rtol=0, atol=case.tolerance)


def test_repeats_itself_whatever_the_threads(case, one_thread_then_two):
    arguments = case.make("cpu")
    one, two = one_thread_then_two(lambda: getattr(ops, case.op)(*arguments, **case.keywords))
    assert all(map(torch.equal, as_tuple(one), as_tuple(two)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_agrees_with_cpu(case):
    results = [
        [part.cpu() for part in as_tuple(getattr(ops, case.op)(*case.make(each), **case.keywords))]
        for each in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*results, rtol=0, atol=case.tolerance)
