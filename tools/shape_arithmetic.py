"""What free sizes cost a network that pads to its skips: shape_arithmetic.py [BUNDLE] [--runs N]

Times the bundle's model.onnx over its own tile, with sizes free as exported and with the tile's
written into a copy, in turns; by ONNX Runtime alone: OpenVINO and TensorRT get fixed sizes anyway.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from statistics import median

import onnx
import onnxruntime
import torch
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

from fastmed import bundle as bundles
from fastmed.inference.engines.choice import example_tiles

_SIZES = ("Shape", "Squeeze", "Reshape", "Add", "Sub", "Mul", "Div", "Concat", "Gather", "Cast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, default=bundles.demo_path())
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    read = bundles.read(arguments.bundle)
    tile = example_tiles(read.spec, "cpu")
    tile = tile.squeeze(2) if read.spec.dimensions == 2 else tile
    free = onnx.load(read.onnx_path())
    fixed = onnx.load(read.onnx_path())
    for axis, size in zip(free.graph.input[0].type.tensor_type.shape.dim, tile.shape, strict=True):
        if axis.dim_param:
            make_dim_param_fixed(fixed.graph, axis.dim_param, size)
    counts = Counter(node.op_type for node in free.graph.node)
    about_sizes = sum(counts[name] for name in _SIZES)
    sessions = {"free": _session(free), "fixed": _session(fixed)}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(arguments.runs):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {free.graph.input[0].name: tile.numpy()})
            seconds[name].append(time.perf_counter() - started)
    took = {name: median(times[1:]) for name, times in seconds.items()}
    print(
        f"{read.spec.name}, tile {' x '.join(map(str, tile.shape))}: {len(free.graph.node)} nodes, "
        f"{about_sizes} of them Shape, Squeeze, Reshape and arithmetic"
    )
    print(
        f"  {took['free'] * 1e3:.1f} ms with free sizes, {took['fixed'] * 1e3:.1f} ms with fixed "
        f"ones ({took['free'] / took['fixed'] - 1:+.1%})"
    )


def _session(model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Idle threads of one session would spin beside the other's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


if __name__ == "__main__":
    main()
