"""Checks and times the CUDA kernels and the engines: python tools/check_gpu.py [--output FILE]

Runs the CUDA tests, compute-sanitizer, a comparison of every op case with the CPU, captures in CUDA
graphs and the timings, then writes docs/gpu.md. Exit status 0 where all is met, 1 where something
is not, 2 without a GPU, in which case nothing is written. Needs no network.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_report import Result, machine, report
from torch import Tensor

PROJECT = Path(__file__).parent.parent
CAPTURED = {"window_resample", "resample_argmax", "overlap_counts", "softmax_overlap", "nms_mask"}


def cuda_tests() -> Iterator[Result]:
    command = [sys.executable, "-m", "pytest", "-k", "cuda", "tests/ops"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    print(done.stdout[-3000:])
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    passed = done.returncode == 0 and " passed" in last  # skipped tests alone prove nothing
    yield Result("pytest -k cuda tests/ops", last, "all pass", passed)


def sanitized_calls() -> Iterator[Result]:
    """Every op case under compute-sanitizer, each tensor in an allocation of its own."""
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    for tool in ("memcheck", "racecheck", "synccheck"):
        if program is None:
            yield Result(f"compute-sanitizer {tool}", "compute-sanitizer not found")
            continue
        options = ["--tool", tool, "--error-exitcode", "1"]
        done = subprocess.run(
            [program, *options, sys.executable, __file__, "--call-cases"],
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            capture_output=True,
            text=True,
        )
        print(done.stdout[-3000:], done.stderr[-3000:])
        summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
        found = summary[-1].strip("= ") if summary else f"exit status {done.returncode}"
        yield Result(f"compute-sanitizer {tool}", found, "no report", done.returncode == 0)


def call(case, device: str):
    from fastmed import ops

    return getattr(ops, case.op)(*case.make(device), **case.keywords)


def cases(*, large: bool) -> list:
    from fastmed.testing import OP_CASES

    return [case for case in OP_CASES if large or not case.large]


def agreement() -> Iterator[Result]:
    """CPU against CUDA, op by op."""
    wrong: dict[str, list[str]] = {}
    for case in cases(large=True):
        wrong.setdefault(case.op, [])
        try:
            torch.testing.assert_close(
                call(case, "cuda"), call(case, "cpu"),
                rtol=0, atol=case.tolerance, equal_nan=True, check_device=False,
            )  # fmt: skip
        except (AssertionError, RuntimeError) as error:
            wrong[case.op].append(case.name)
            print(f"{case}: {error}")
    for op, names in wrong.items():
        count = sum(case.op == op for case in cases(large=True))
        found = f"{count - len(names)} of {count}" + (f"; not {', '.join(names)}" if names else "")
        yield Result(f"{op}: CPU and CUDA agree", found, "all", not names)


def graph_capture() -> Iterator[Result]:
    """A captured call, replayed on other values, gives what a plain call gives."""
    first = {case.op: case for case in reversed(cases(large=False))}
    for op in sorted(CAPTURED & first.keys()):
        case = first[op]
        try:
            same = replays(case)
            yield Result(f"{op}: CUDA graph", "same" if same else "DIFFERENT", "same", same)
        except RuntimeError as error:
            print(f"{op}: {error}")
            yield Result(f"{op}: CUDA graph", "capture failed", "same", False)


def replays(case) -> bool:
    from fastmed import ops

    arguments = case.make("cuda")

    def run():
        # Without keywords: a capture refuses the copy by which some of them reach the device.
        return getattr(ops, case.op)(*arguments)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    arguments[0].copy_(arguments[0].roll(1, -2))
    graph.replay()
    expected = run()
    torch.cuda.synchronize()
    if isinstance(expected, Tensor):
        return torch.equal(captured, expected)
    return all(map(torch.equal, captured, expected))


def install() -> None:
    """Builds the package in place where its CUDA library is missing."""
    if importlib.util.find_spec("fastmed") and importlib.util.find_spec("fastmed._C_cuda"):
        return
    options = ["--no-build-isolation", "--no-deps", "--editable", PROJECT]
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True)
    look = "import importlib.util as u, sys; sys.exit(u.find_spec('fastmed._C_cuda') is None)"
    if subprocess.run([sys.executable, "-c", look]).returncode:
        sys.exit("check_gpu: the build made no fastmed/_C_cuda.so; is nvcc on the PATH?")
    os.execv(sys.executable, [sys.executable, *sys.argv])


def every_result() -> Iterator[Result]:
    """All checks and timings; one that breaks off counts as failed and stops no other."""
    import gpu_engines
    import gpu_timings

    checks = (cuda_tests, sanitized_calls, agreement, graph_capture)
    for part in (*checks, *gpu_timings.ALL, *gpu_engines.ALL):
        try:
            yield from part()
        except Exception as error:  # the other parts go on
            print(error)
            lines = str(error).splitlines() or [type(error).__name__]
            yield Result(part.__name__, f"broke off: {lines[0]}", "an answer", False)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=PROJECT / "docs" / "gpu.md", help="the report"
    )
    parser.add_argument("--call-cases", action="store_true", help="only call every op case once")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "check_gpu: torch sees no NVIDIA GPU here; nothing was checked or written",
            file=sys.stderr,
        )
        return 2
    install()
    if arguments.call_cases:
        for case in cases(large=False):
            call(case, "cuda")
        torch.cuda.synchronize()
        return 0
    about = machine()
    for each in about:
        print(f"{each.what}: {each.found}")
    results = []
    for result in every_result():
        print(f"{result.what}: {result.found}", flush=True)
        results.append(result)
    arguments.output.write_text(report(about, results), "utf-8")
    print(f"written: {arguments.output}")
    return 1 if any(each.passed is False for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
