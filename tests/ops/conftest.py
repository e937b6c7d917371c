"""Devices present, and how results are compared with references."""

import pytest
import torch

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def one_thread_then_two():
    """Runs a call with one thread and with two (or other counts), and gives the results."""

    def compare(call, counts=(1, 2)):
        before = torch.get_num_threads()
        results = []
        try:
            for threads in counts:
                torch.set_num_threads(threads)
                results.append(call())
        finally:
            torch.set_num_threads(before)
        return results

    return compare
