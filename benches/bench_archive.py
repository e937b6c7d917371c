"""A whole archive run beside MONAI doing the same work, by stage: scans per hour, memory, share.

python benches/bench_archive.py [--scans 30] [--slices 75]

Both run the same weights with the same tiles, overlap and Gaussian weights on the same two cores,
one after the other, the model loaded once. fastmed is its command as it comes, with the process
that it starts; it writes all that it writes by default, MONAI the label maps alone. Each side's
memory is the peak of what its processes hold together (proportional set size, looked at twenty
times a second). The scans are pieces of a phantom, 512 x 512 x SLICES of 0.8 x 0.8 x 1 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import infer_inputs

from fastmed.testing.process_memory import peak_of_group

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "bench-archive"
CORES = 2


@dataclass(frozen=True)
class Side:
    """What one side took: its wall time, the seconds of its stages, and its peak memory."""

    wall: float
    stages: dict[str, float]
    peak_mb: float
    scans: int

    @property
    def scans_per_hour(self) -> float:
        return 3600 * self.scans / self.wall

    @property
    def network_share(self) -> float:
        return self.stages["network"] / self.wall


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=30, help="default: 30")
    parser.add_argument("--slices", type=int, default=75, help="of each; default: 75")
    arguments = parser.parse_args()
    if util.find_spec("monai") is None:
        print("bench_archive: MONAI is not installed; pip install '.[bench]'", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = str(CORES)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    scans = WORK / f"scans-{arguments.scans}x{arguments.slices}"
    WORK.mkdir(parents=True, exist_ok=True)
    infer_inputs.write_bundle(_demo(), WORK / infer_inputs.BUNDLE)
    if not scans.is_dir():
        _write_scans(scans, arguments.scans, arguments.slices)
    fastmed, monai = _fastmed(scans, arguments.scans), _monai(scans, arguments.scans)
    print(
        f"{arguments.scans} scans of 512 x 512 x {arguments.slices}, {CORES} threads; "
        f"load {os.getloadavg()[0]:.1f} at the end\n"
    )
    print(_table(fastmed, monai))
    found = {
        "scans_per_hour": fastmed.scans_per_hour / monai.scans_per_hour,
        "network_share": fastmed.network_share,
        "peak_memory": monai.peak_mb / fastmed.peak_mb,
    }
    gates = tomllib.loads((HERE / "archive_gates.toml").read_text(encoding="utf-8"))
    fallen = [name for name, floor in gates.items() if found[name] < floor]
    for name in fallen:
        print(f"bench_archive: {name} {found[name]:.2f}, floor {gates[name]}", file=sys.stderr)
    return int(bool(fallen))


def _demo() -> Path:
    from fastmed import bundle

    return bundle.demo_path()


def _write_scans(folder: Path, count: int, slices: int) -> None:
    """Pieces of one phantom, each from another slice on, as DICOM series."""
    from dataclasses import replace

    from fastmed.geometry import Geometry
    from fastmed.phantom import abdomen
    from fastmed.writers.dicom_ct import write_dicom_ct

    depth, height, width = infer_inputs.SHAPE_ZYX
    _, step_y, step_x = infer_inputs.SPACING_MM_ZYX
    origin = (-0.5 * step_x * (width - 1), -0.5 * step_y * (height - 1), -240.0)
    whole = Geometry.from_spacing((depth, height, width), infer_inputs.SPACING_MM_ZYX, origin)
    volume, _ = abdomen(whole, seed=7)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for number in range(count):
        first = number * (depth - slices) // max(count - 1, 1)
        piece = replace(
            volume,
            voxels=volume.voxels[first : first + slices],
            geometry=whole.slab(first, slices),
            name=f"scan-{number:02d}",
        )
        write_dicom_ct(piece, partial / piece.name, description="phantom of bench_archive")
    os.replace(partial, folder)


def _fastmed(scans: Path, count: int) -> Side:
    output = WORK / "fastmed"
    shutil.rmtree(output, ignore_errors=True)
    command = ["-m", "fastmed.cli", "infer", "--input", scans, "--output", output, "--quiet"]
    _, wall, peak = _timed([*command, "--model", WORK / infer_inputs.BUNDLE])
    facts = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    stages: dict[str, float] = {}
    for series in facts["series"]:
        if series["verdict"] != "done":
            sys.exit(f"bench_archive: {series['source']}: {series['reason']}")
        for stage, spent in series["seconds"].items():
            stages[stage] = stages.get(stage, 0.0) + spent
    return Side(wall, stages, peak, count)


def _monai(scans: Path, count: int) -> Side:
    output = WORK / "monai"
    shutil.rmtree(output, ignore_errors=True)
    arguments = [HERE / "archive_monai.py", scans, WORK / infer_inputs.BUNDLE, output]
    answer, wall, peak = _timed(arguments)
    stages = json.loads(answer)["seconds"]
    stages["decode"] = stages.pop("invert") + stages.pop("argmax")
    return Side(wall, stages, peak, count)


def _timed(arguments: list) -> tuple[str, float, float]:
    """Runs Python; returns what it printed, its wall time, and the peak of its memory in MB."""
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    peaks: list[float] = []
    watcher = threading.Thread(target=lambda: peaks.append(peak_of_group(child)))
    watcher.start()
    answer = child.stdout.read()
    status = child.wait()
    wall = time.perf_counter() - started
    watcher.join()
    if status:
        sys.exit(f"bench_archive: {arguments[0]} ended with {status}")
    return answer, wall, peaks[0]


def _table(fastmed: Side, monai: Side) -> str:
    lines = ["| seconds | fastmed | MONAI |", "|---|---|---|"]
    for stage in ("load", "read", "resample", "network", "stitch", "decode", "write"):
        cells = (
            f"{side.stages[stage]:.1f}" if stage in side.stages else "" for side in (fastmed, monai)
        )
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    rows = {
        "**whole run**": (f"{fastmed.wall:.1f}", f"{monai.wall:.1f}"),
        "scans per hour": (f"{fastmed.scans_per_hour:.0f}", f"{monai.scans_per_hour:.0f}"),
        "network's share of the whole": (
            f"{fastmed.network_share:.1%}",
            f"{monai.network_share:.1%}",
        ),
        "peak memory, MB": (f"{fastmed.peak_mb:.0f}", f"{monai.peak_mb:.0f}"),
    }
    lines += [f"| {name} | {one} | {two} |" for name, (one, two) in rows.items()]
    faster = fastmed.scans_per_hour / monai.scans_per_hour
    return "\n".join(
        [
            *lines,
            "",
            f"{faster:.2f} times the scans per hour, {monai.peak_mb / fastmed.peak_mb:.1f} times "
            "less memory",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
