"""The table of bench_infer.py, and its gates: medians of runs by stage, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# Stage, what it holds. What is loaded once for any number of scans comes first.
STAGES = {
    "start": "interpreter, imports, exit",
    "load": "load the model, compile it",
    "index": "index the folder",
    "read": "read the voxels",
    "resample": "orient, resample, window",
    "network": "network",
    "stitch": "stitch the tiles",
    "decode": "labels on the scan's grid",
    "invert": "  - invert",
    "argmax": "  - argmax",
    "write": "write the results",
    "tables": "tables, report, manifest",
}
PARTS = ("invert", "argmax")  # of decode
ONCE = ("start", "load")


@dataclass(frozen=True)
class Measured:
    """One run of one side: seconds by stage, of the whole process, and its peak memory in MB.

    Seconds outside the network are those of every stage of the scan, from the index to the report,
    without the forward passes; what is loaded once for any number of scans is not in them.
    """

    seconds: Mapping[str, float]
    whole: float
    peak_mb: float

    @property
    def outside_network(self) -> float:
        skipped = {*ONCE, *PARTS, "network"}
        return sum(s for stage, s in self.seconds.items() if stage not in skipped)


def medians(runs: Sequence[Measured]) -> dict[str, float]:
    """Median of each line of the table over the runs of one side, by the line's key."""
    stages = [stage for stage in STAGES if stage in runs[0].seconds]
    lines = {stage: median(run.seconds[stage] for run in runs) for stage in stages}
    lines["outside_network"] = median(run.outside_network for run in runs)
    lines["whole_process"] = median(run.whole for run in runs)
    lines["peak_memory"] = median(run.peak_mb for run in runs)
    return lines


def ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """How many times more the other side needs."""
    lines = ("network", "outside_network", "whole_process", "peak_memory")
    return {line: theirs[line] / ours[line] for line in lines}


def text(sides: Mapping[str, Mapping[str, float]]) -> str:
    """The table; the first side is ours, and the last column says how many times it is ahead.

    sides: medians by the side's name; the last is the one that ours is compared with.
    """
    names = list(sides)
    ours, theirs = sides[names[0]], sides[names[-1]]
    rows = [["seconds", *names, f"{names[-1]} / {names[0]}"]]

    def line(key: str, title: str, digits: int) -> None:
        cells = [f"{side[key]:.{digits}f}" if key in side else "-" for side in sides.values()]
        both = key in ours and key in theirs
        rows.append([title, *cells, f"{theirs[key] / ours[key]:.1f}x" if both else ""])

    for stage, title in STAGES.items():
        line(stage, title, 2)
    rows.append([])
    line("outside_network", "outside the network", 2)
    line("whole_process", "whole process", 2)
    line("peak_memory", "peak memory, MB", 0)
    widths = [max(len(row[k]) for row in rows if row) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    )


def below(gates: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """One sentence for each gate that a ratio fell below."""
    return [
        f"{name.replace('_', ' ')}: the other needs {found[name]:.2f} times as much, the gate is "
        f"{gate:g}"
        for name, gate in gates.items()
        if not found[name] >= gate
    ]
