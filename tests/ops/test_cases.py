"""Every small call of OP_CASES agrees with its reference, and repeats itself."""

import pytest
import torch

from fastmed import ops
from fastmed.testing import OP_CASES


@pytest.fixture(params=[case for case in OP_CASES if not case.large], ids=str)
def case(request):
    return request.param


def test_agrees_with_the_reference(case, device):
    arguments = case.make(device)
    result = getattr(ops, case.op)(*arguments, **case.keywords)
    expected = case.reference(*arguments, **case.keywords)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=0, atol=case.tolerance)


def test_repeats_itself_whatever_the_threads(case, one_thread_then_two):
    arguments = case.make("cpu")
    one, two = one_thread_then_two(lambda: getattr(ops, case.op)(*arguments, **case.keywords))
    assert torch.equal(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_agrees_with_cpu(case):
    results = [
        getattr(ops, case.op)(*case.make(each), **case.keywords).cpu() for each in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*results, rtol=0, atol=case.tolerance)
