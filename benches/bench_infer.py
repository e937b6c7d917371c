"""fastmed infer beside MONAI doing the same work, by stage, and the gates on it.

python benches/bench_infer.py [--quick] [--model BUNDLE] [--float32]

Each run is a process of its own, on the same two cores: its wall time counts from the start of the
interpreter to its exit, its memory is the peak of its resident set. Both sides run the same weights
with the same tiles, overlap, Gaussian weights and batch, on the demo model moved to a 1.5 mm grid.
fastmed writes all that it writes by default; MONAI writes the label map alone. "torch eager" is
fastmed with torch in place of the engine that it takes by itself. The real scan is
ct-abdomen-dicom in the folder named by FASTMED_SCANS, else in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import infer_inputs
import infer_table
from infer_table import Measured

HERE = Path(__file__).parent
PROJECT = HERE.parent
WORK = PROJECT / "build" / "bench-infer"
CORES = 2
REAL_SCAN = "ct-abdomen-dicom"


@dataclass(frozen=True)
class Side:
    """One column: the program that runs, its last argument, and how often it runs per scan."""

    name: str
    program: str
    variant: str
    on_real_scan: int = 3
    on_phantom: int = 1


def main() -> int:
    arguments = _arguments()
    if util.find_spec("monai") is None:
        print("bench_infer: MONAI is not installed; pip install '.[bench]'", file=sys.stderr)
        return 2
    _take_cores()
    started = time.perf_counter()
    _child("infer_inputs.py", WORK, *([arguments.model] if arguments.model else []))
    _warm_up()
    sides = [
        Side("fastmed", "infer_fastmed.py", "auto", on_phantom=3),
        Side("torch eager", "infer_fastmed.py", "eager"),
        Side("MONAI", "infer_monai.py", "float64", on_phantom=3),
    ]
    if arguments.float32:
        sides.insert(2, Side("MONAI float32", "infer_monai.py", "float32"))

    real = Path(os.environ.get("FASTMED_SCANS", PROJECT.parent / "shared" / "data")) / REAL_SCAN
    if real.is_dir():
        runs = {side: 1 if arguments.quick else side.on_real_scan for side in sides}
        _compare(f"{REAL_SCAN}: 512 x 512 x 20, JPEG 2000", real, runs)
    else:
        print(f"{real} is not here: the real scan is left out; FASTMED_SCANS names its folder\n")
    runs = {side: 1 if arguments.quick else side.on_phantom for side in sides}
    found = _compare(
        "phantom: 512 x 512 x 300 of 0.8 x 0.8 x 1 mm", WORK / infer_inputs.PHANTOM, runs
    )
    print(f"{time.perf_counter() - started:.0f} s in all")
    gates = tomllib.loads((HERE / "infer_gates.toml").read_text(encoding="utf-8"))
    fallen = infer_table.below(gates, found)
    for sentence in fallen:
        print(f"bench_infer: {sentence}", file=sys.stderr)
    return int(bool(fallen))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one run of each side on each scan")
    parser.add_argument("--model", type=Path, help="a bundle with model.onnx; default: the demo")
    parser.add_argument(
        "--float32", action="store_true", help="also MONAI with Spacing in float32 (default: 64)"
    )
    return parser.parse_args()


def _compare(title: str, scan: Path, runs: dict[Side, int]) -> dict[str, float]:
    """Runs the sides in turns and prints their table.

    Returns the ratios of the last to the first, and of the second's whole process to the first's.
    """
    measured: dict[Side, list[Measured]] = {side: [] for side in runs}
    labels: dict[Side, str] = {}
    engines: dict[Side, str] = {}
    for turn in range(max(runs.values())):
        for side in runs:
            if turn < runs[side]:
                output = WORK / "results" / f"{side.name}-{turn}".replace(" ", "-")
                shutil.rmtree(output, ignore_errors=True)
                run, answer = _child(
                    side.program, scan, WORK / infer_inputs.BUNDLE, output, side.variant
                )
                measured[side].append(run)
                labels[side], engines[side] = answer["labels"], answer["engine"]
    first, *others = runs
    columns = {side.name: infer_table.medians(measured[side]) for side in runs}
    counts = ", ".join(str(count) for count in runs.values())
    print(f"{title}; medians of {counts} runs; load {os.getloadavg()[0]:.1f} at the end")
    print(f"fastmed runs {engines[first]} where no engine is named, MONAI torch eager\n")
    print(infer_table.text(columns))
    print()
    for side in others:
        _, agreement = _child("infer_agreement.py", labels[first], labels[side])
        print(
            f"labels of {side.name} beside {first.name}: {agreement['equal']:.3%} of voxels equal, "
            f"Dice {agreement['dice']:.4f}, foreground {agreement['foreground']:.2%}"
        )
    print(flush=True)
    beside_torch = infer_table.ratios(columns[first.name], columns[others[0].name])
    print(
        f"{others[0].name} / {first.name}: network {beside_torch['network']:.2f}, "
        f"whole process {beside_torch['whole_process']:.2f}\n",
        flush=True,
    )
    found = infer_table.ratios(columns[first.name], columns[others[-1].name])
    return found | {"torch_eager_whole_process": beside_torch["whole_process"]}


def _child(program: str, *arguments: object) -> tuple[Measured, dict]:
    """Runs a program of this folder; returns what it took and its answer, a line of JSON."""
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    log = WORK / "stderr.log"
    WORK.mkdir(parents=True, exist_ok=True)
    with open(log, "w+", encoding="utf-8") as errors:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            answer = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        whole = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            sys.exit(f"{program} ended with {child.returncode}:\n{errors.read()[-2000:]}")
    facts = json.loads(answer) if answer.strip() else {}
    seconds = facts.get("seconds", {})
    parts = sum(s for stage, s in seconds.items() if stage not in infer_table.PARTS)
    measured = Measured({"start": whole - parts, **seconds}, whole, usage.ru_maxrss / 1024)
    return measured, facts


def _take_cores() -> None:
    """Keeps this process and its children on the same cores, with as many threads."""
    os.environ["OMP_NUM_THREADS"] = str(CORES)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def _warm_up() -> None:
    """Imports what both sides import, so that no run pays for reading libraries from the disk."""
    code = "import fastmed.cli, fastmed.inference.archive, monai.transforms, nibabel, PIL, pydicom"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
