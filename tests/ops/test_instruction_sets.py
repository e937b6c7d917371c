"""The CPU kernels' versions for other machines than this one: each is right, and they agree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastmed.ops._load import instruction_set
from fastmed.testing import OP_CASES

KNOWN = ["baseline", "avx2", "avx512"]
LESSER = KNOWN[: KNOWN.index(instruction_set())]
CASES = [case for case in OP_CASES if not case.large]
RUN_CASES = """
import sys, torch
from fastmed import ops
from fastmed.testing import OP_CASES
torch.save([getattr(ops, case.op)(*case.make("cpu"), **case.keywords)
            for case in OP_CASES if not case.large], sys.argv[1])
"""


def run(wanted: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"FASTMED_CPU": wanted},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("wanted", LESSER)
def test_a_lesser_instruction_set_agrees_with_the_references(wanted):
    told = run(wanted, "-c", "from fastmed.ops import _load; print(_load.instruction_set())")
    assert told.stdout.strip() == wanted, told.stderr
    files = ("test_cases", "test_window_resample", "test_overlap")
    names = "test_cases or straight or caches or table or dtypes or maps"
    tests = [f"tests/ops/{file}.py" for file in files]
    done = run(wanted, "-m", "pytest", "-q", *tests, "-k", names)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every small call of OP_CASES gives, by instruction set."""
    folder = tmp_path_factory.mktemp("results")
    for wanted in KNOWN[: len(LESSER) + 1]:
        done = run(wanted, "-c", RUN_CASES, folder / wanted)
        assert done.returncode == 0, done.stderr
    return {path.name: torch.load(path) for path in folder.iterdir()}


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_instruction_sets_round_alike(results, number):
    case = CASES[number]
    best = results[instruction_set()][number]
    for wanted in LESSER:
        # window_resample fuses its multiply-adds, where the CPU can; nothing else does.
        fused = case.op == "window_resample" and wanted == "baseline"
        atol = case.tolerance if fused else 0
        other = results[wanted][number]
        torch.testing.assert_close(other, best, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("wanted", ["sse9", "AVX2", ""])
def test_an_unknown_instruction_set_is_refused(wanted):
    told = run(wanted, "-c", "import fastmed.ops")
    assert told.returncode != 0
    assert f"FASTMED_CPU: {wanted!r}" in told.stderr
