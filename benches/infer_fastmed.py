"""One run of `fastmed.infer`, timed by stage: infer_fastmed.py SCAN BUNDLE OUTPUT ENGINE

ENGINE "eager" is torch as it comes: activations are not channels-last.

Prints one line of JSON: the seconds of each stage, the engine, and the label map's path.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import wraps

import torch

import fastmed
from fastmed.inference import archive, run_model
from fastmed.inference.engines import pytorch
from fastmed.inference.engines.open_vino import OpenVinoEngine


def timed(seconds: dict[str, float], stage: str, function: Callable) -> Callable:
    """`function`, whose calls add their seconds to `stage`."""

    @wraps(function)
    def call(*arguments, **named):
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started

    return call


def main() -> None:
    scan, bundle, output, engine = sys.argv[1:]
    if engine == "eager":
        engine = "torch"
        pytorch._LAYOUTS = dict.fromkeys(pytorch._LAYOUTS, torch.contiguous_format)
    seconds: dict[str, float] = {}
    archive.entries_of = timed(seconds, "index", archive.entries_of)
    archive.plan = timed(seconds, "index", archive.plan)
    run_model.load = timed(seconds, "load", run_model.load)
    # OpenVINO compiles at the first tile: that is loading the model, not running it.
    compiling: dict[str, float] = {}
    compile_network = OpenVinoEngine._opened
    OpenVinoEngine._opened = timed(compiling, "compile", compile_network)

    started = time.perf_counter()
    run = fastmed.infer(scan, output, model=bundle, engine=engine, quiet=True)
    total = time.perf_counter() - started
    ((name, stages),) = run.series_seconds.items()
    if run.exit_status:
        sys.exit("; ".join(row.reason for row in run.rows))

    seconds |= stages
    seconds["network"] -= compiling.get("compile", 0.0)
    seconds["load"] += compiling.get("compile", 0.0)
    seconds["tables"] = total - sum(seconds.values())
    used = json.loads((run.output / "manifest.json").read_text())["engine"]
    labels = run.output / "series" / name / "labels.nii.gz"
    print(json.dumps({"seconds": seconds, "engine": used, "labels": str(labels)}))


if __name__ == "__main__":
    main()
