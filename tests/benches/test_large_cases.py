"""The calls of large size: rivals agree with them, or slabs of the reference do."""

import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from fastmed import ops, testing
from fastmed.testing import LARGE_CASES

_BENCHES = Path(__file__).parents[2] / "benches"

pytestmark = pytest.mark.long


@pytest.fixture(params=LARGE_CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def rivals():
    if util.find_spec("monai") is None:
        pytest.skip("MONAI is not installed; pip install '.[bench]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_BENCHES))
        yield __import__("rivals")
        for name in [name for name in sys.modules if name.split(".")[0] == "rivals"]:
            sys.modules.pop(name)


@pytest.mark.filterwarnings("ignore")
def test_every_rival_that_fits_into_memory_agrees(case, rivals):
    arguments = case.make("cpu")
    op = getattr(ops, case.op)
    answer = rivals.with_gradients(lambda: op(*arguments, **case.keywords), arguments)()
    for name, rival in rivals.of(case, arguments).items():
        if rival.needs_bytes < rivals.free_bytes():
            rival.check(f"{case}: {name}", answer, rival.call())


@pytest.mark.parametrize(
    "case", [case for case in LARGE_CASES if case.op.startswith(("window", "resample"))], ids=str
)
def test_slabs_of_the_output_agree_with_the_reference(case):
    inputs, matrix, size = case.make("cpu")
    result = getattr(ops, case.op)(inputs, matrix, size, **case.keywords)
    slab = (1, *size[1:])
    for first in (0, size[0] // 3, size[0] - 1):
        moved = matrix.clone()
        moved[..., 3] += moved[..., 0] * first
        expected = _by_reference(case, inputs, moved, slab)
        found = result[..., first : first + 1, :, :]
        if found.is_floating_point():
            torch.testing.assert_close(found, expected, rtol=0, atol=case.tolerance)
        else:
            # Two classes within one rounding of each other may go either way.
            assert (found != expected).double().mean() < 1e-4


def _by_reference(case, inputs, matrix, slab):
    """The whole reference of a small slab; of logits only the planes that it reaches."""
    if case.op == "resample_argmax":
        reached = matrix[0, 3].clamp(0, inputs.shape[1] - 1)
        low = max(0, int(reached) - 2)
        inputs = inputs[:, low : low + 5]
        matrix = matrix.clone()
        matrix[0, 3] -= low
        return testing.resample_argmax_reference(inputs, matrix, slab)
    return testing.window_resample_reference(inputs, matrix, slab, **case.keywords)
