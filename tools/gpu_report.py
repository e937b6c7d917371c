"""What tools/check_gpu.py found, and the page it writes of it."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import date

import torch


@dataclass(frozen=True)
class Result:
    """One row of the report. passed is None where there is nothing to meet."""

    what: str
    found: str
    wanted: str = ""
    passed: bool | None = None


def output_of(*command: str) -> str:
    """What a program prints, or an empty text where it is missing."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine() -> list[Result]:
    gpu = torch.cuda.get_device_properties(0)
    driver = output_of(
        "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"
    )
    nvcc = (output_of("nvcc", "--version").splitlines() or ["absent"])[-1]
    memory = f"{gpu.total_memory / 2**30:.0f} GiB"
    return [
        Result("GPU", f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {memory}"),
        Result("driver", driver or "unknown"),
        Result("torch", f"{torch.__version__}, CUDA {torch.version.cuda}"),
        Result("nvcc", nvcc),
        Result(
            "host",
            f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        ),
    ]


def table(results: list[Result]) -> str:
    verdicts = {None: "", True: "pass", False: "**FAIL**"}
    rows = [f"| {r.what} | {r.found} | {r.wanted} | {verdicts[r.passed]} |" for r in results]
    return "\n".join(["| what | found | wanted | |", "| --- | --- | --- | --- |", *rows])


PAGE = """\
# The CUDA kernels on a GPU

Measured on {day} by `python tools/check_gpu.py`, which wrote this page. {verdict}

{machine}

{table}

Times are medians by CUDA events. A share of a copy counts the bytes that must be read and written
once, against a float32 copy of 1 GiB in the same run. Graphs are captured with default keywords:
numbers given by the host become device memory by a copy, which a capture refuses. TensorRT computes
in float32, where torch rounds to TF32 unless told otherwise; networks have fresh weights.

Without a GPU, `tests/cuda_on_cpu` runs the same kernels on the host: their indices, barriers and
bounds, but neither the GPU's memory model nor its speed.
"""


def report(about: list[Result], results: list[Result]) -> str:
    failed = sum(each.passed is False for each in results)
    return PAGE.format(
        day=date.today(),
        verdict=f"{failed} of the checks failed." if failed else "All checks passed.",
        machine="\n".join(f"- {each.what}: {each.found}" for each in about),
        table=table(results),
    )
