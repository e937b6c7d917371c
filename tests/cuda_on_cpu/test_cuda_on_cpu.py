"""The CUDA kernels, run on the host, agree with the CPU's; the emulation notices faults."""

import os
import subprocess
import sys

import emulated
import pytest
import torch

from fastmed import ops
from fastmed.testing import OP_CASES

THREADS, BLOCKS = 64, 3
SANITIZED = pytest.mark.skipif("FASTMED_EMULATED" not in os.environ, reason="make sanitize")


def _call(case):
    return getattr(ops, case.op)(*case.make("cpu"), **case.keywords)


def _gradients(case):
    """Gradients to the floating arguments of an op that has them, else an empty list."""
    inputs = [
        each.detach().requires_grad_()
        if isinstance(each, torch.Tensor) and each.is_floating_point()
        else each
        for each in case.make("cpu")
    ]
    try:
        results = getattr(ops, case.op)(*inputs, **case.keywords)
    except NotImplementedError:
        return []
    results = [results] if isinstance(results, torch.Tensor) else results
    smooth = [each for each in results if each.requires_grad]
    if not smooth:
        return []
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(each.shape, generator=generator).to(each.dtype) for each in smooth]
    leaves = [each for each in inputs if isinstance(each, torch.Tensor) and each.requires_grad]
    return [
        each
        for each in torch.autograd.grad(smooth, leaves, weights, allow_unused=True)
        if each is not None
    ]


@pytest.mark.parametrize("case", [each for each in OP_CASES if not each.large], ids=str)
def test_emulated_kernels_agree_with_the_cpu(case):
    expected, slopes = _call(case), _gradients(case)
    with emulated.Emulated() as emulation:
        result = _call(case)
        called = len(emulation.calls)
        emulated_slopes = _gradients(case)
    assert called > 0, f"{case.op} reaches no native op"
    torch.testing.assert_close(result, expected, rtol=0, atol=case.tolerance, equal_nan=True)
    torch.testing.assert_close(emulated_slopes, slopes, rtol=1e-4, atol=1e-5, equal_nan=True)


def _probe(name, *, order=0, shared_bytes=4 * THREADS):
    emulated.set_order(order)
    return torch.ops.fastmed_emulated.probe(torch.zeros(1), name, shared_bytes)


INDEX = torch.arange(BLOCKS * THREADS, dtype=torch.int32)
PROBES = {
    "warp_sum": INDEX.view(-1, 32).sum(1, dtype=torch.int32).repeat_interleave(32),
    "warp_exchange": (INDEX ^ 1) + 16 + 2,
    "block_reverse": INDEX.view(BLOCKS, THREADS).flip(1).flatten() + 2,
    "exits_early": 1 + (INDEX % THREADS < 32).int(),
}


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("name", PROBES)
def test_warps_and_barriers_do_as_on_a_gpu(name, order):
    emulated.library()
    assert torch.equal(_probe(name, order=order), PROBES[name])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("divergent_barrier", "wait at two barriers"),
        ("absent_lane", "31 wait for their warp|1 returned"),
        ("barrier_against_warp", "wait for each other for ever"),
    ],
)
def test_threads_that_miss_each_other_are_told(name, error):
    emulated.library()
    for order in (0, 1, 2):
        with pytest.raises(RuntimeError, match=error):
            _probe(name, order=order)
    assert torch.equal(_probe("warp_sum"), PROBES["warp_sum"])


def test_a_race_shows_by_order():
    emulated.library()
    assert not torch.equal(_probe("race", order=0), _probe("race", order=1))


def test_shared_memory_starts_as_rubbish():
    emulated.library()
    assert set(_probe("unwritten_shared").tolist()) == {int.from_bytes(b"\xcd" * 4, signed=True)}


@pytest.mark.parametrize("shared_bytes", [48 * 1024 + 1, 1 << 20])
def test_more_shared_memory_than_a_block_has_is_refused(shared_bytes):
    emulated.library()
    with pytest.raises(RuntimeError, match="CUDA error 1 "):
        _probe("block_reverse", shared_bytes=shared_bytes)


@SANITIZED
@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("beyond_static_shared", "global-buffer-overflow"),
        ("beyond_dynamic_shared", "heap-buffer-overflow"),
        ("beyond_local", "with insufficient space"),
        ("beyond_tensor", "heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
        ("overflow", "signed integer overflow"),
    ],
)
def test_sanitizers_see_into_kernels(name, report):
    program = f"import test_cuda_on_cpu as t; t.emulated.library(); t._probe({name!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert report in done.stderr, done.stderr[-3000:]
