"""Draws size against time and threads against time of every op and its main rival.

python benches/kernel_curves.py docs/kernels.png [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import kernel_meter
import rivals
import torch

from fastmed import ops
from fastmed.testing import (
    OpCase,
    fitted_matrix,
    labels_to_logits,
    organ_labels,
    stored_voxels,
    strewn_boxes,
)

ROUNDS = 3
LONGEST = 0.8  # seconds of a rival after which its larger sizes are left out
LUNG = (-1000.0, 400.0)


@dataclass(frozen=True)
class Curve:
    """Calls of one op by size; the threads are counted at the one before the last."""

    op: str
    unit: str
    sizes: tuple[int, ...]
    make: Callable[[int], Callable[[str], tuple]]
    count: Callable[[int], float]
    keywords: dict

    def case(self, size: int) -> OpCase:
        return OpCase(self.op, str(size), self.make(size), None, self.keywords)


def curves() -> Iterator[Curve]:
    def window(edge):
        shape, size = (edge,) * 3, (edge * 3 // 4,) * 3
        return lambda device: (
            stored_voxels(shape, device=device),
            fitted_matrix(shape, size).to(device),
            size,
        )

    def decode(edge):
        shape, size = (edge,) * 3, (edge * 2,) * 3

        def make(device):
            logits = labels_to_logits(organ_labels(shape, 14), 14)
            return logits.to(device), fitted_matrix(shape, size).to(device), size

        return make

    def overlap(edge):
        def make(device):
            target = organ_labels((edge,) * 3, 14).to(device)
            return target.roll(2)[None], target[None], 14

        return make

    def nms(count):
        extent = 200.0 * (count / 20_000) ** (1 / 3)
        return lambda device: (*(e.to(device) for e in strewn_boxes(count, 3, extent)), 0.1)

    def batched(count):
        def make(device):
            boxes, scores = (each.to(device) for each in strewn_boxes(count, 3, 100.0))
            return boxes, scores, (torch.arange(count) % (count // 100)).to(device), 0.1

        return make

    def pairs(count):
        return lambda device: tuple(
            strewn_boxes(count, 3, 100.0, seed=seed)[0].to(device) for seed in (1, 2)
        )

    def loss(edge):
        def make(device):
            target = organ_labels((edge,) * 3, 14)
            logits = labels_to_logits(target, 14)[None]
            return logits.to(device).requires_grad_(), target.long()[None].to(device)

        return make

    def output(factor):
        return lambda edge: (factor * edge) ** 3

    def itself(count):
        return count

    voxels = "output voxels"
    yield Curve(
        "window_resample", voxels, (64, 128, 256, 400), window, output(0.75), {"window": LUNG}
    )
    yield Curve(
        "resample_argmax", f"{voxels}, 14 classes", (32, 64, 96, 128), decode, output(2), {}
    )
    yield Curve("overlap_counts", "voxels, 14 classes", (64, 128, 256, 400), overlap, output(1), {})
    yield Curve("nms", "3D boxes", (300, 1_000, 3_000, 10_000, 30_000), nms, itself, {})
    yield Curve(
        "batched_nms",
        "3D boxes, 100 per group",
        (1_000, 10_000, 100_000, 300_000),
        batched,
        itself,
        {},
    )
    yield Curve("box_iou", "3D boxes on each side", (100, 300, 1_000, 3_000), pairs, itself, {})
    yield Curve(
        "softmax_overlap",
        "voxels, 14 classes, with backward",
        (24, 48, 72, 96),
        loss,
        output(1),
        {},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes alone")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    threads = min(2, os.cpu_count() or 1)
    present = list(curves())

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(present), figsize=(2.6 * len(present), 5.2), squeeze=False, layout="constrained"
    )
    for column, curve in enumerate(present):
        sizes = curve.sizes[:2] if arguments.quick else curve.sizes
        by_size = against_size(curve, sizes, arguments.device, threads)
        _draw(axes[0, column], by_size, curve.op, curve.unit)
        by_threads = against_threads(curve, sizes[-2], arguments.device)
        if by_threads:
            _draw(axes[1, column], by_threads, "", f"threads ({curve.count(sizes[-2]):,.0f})")
    for row in axes:
        row[0].set_ylabel("ms")
    figure.savefig(arguments.picture, dpi=80, pil_kwargs={"optimize": True})
    print(f"{arguments.picture}: {arguments.picture.stat().st_size / 1024:.0f} KB")
    return 0


def against_size(curve: Curve, sizes, device: str, threads: int) -> dict[str, dict]:
    """Median seconds by size, of the kernel and of its first rival."""
    torch.set_num_threads(threads)
    found: dict[str, dict] = {}
    too_long = set()
    for size in sizes:
        for name, taken in _measured(curve.case(size), device, too_long).items():
            found.setdefault(name, {})[curve.count(size)] = taken
            if taken > LONGEST and name != "fastmed":
                too_long.add(name)
        _say(curve.op, f"size {size}", found)
    return found


def against_threads(curve: Curve, size: int, device: str) -> dict[str, dict]:
    """Median seconds by the number of threads, up to one per processor."""
    most = os.cpu_count() or 1
    counts = sorted({1, most, *(2**k for k in range(10) if 2**k < most)})
    found: dict[str, dict] = {}
    for count in counts if device == "cpu" else []:
        torch.set_num_threads(count)
        for name, taken in _measured(curve.case(size), device, set()).items():
            found.setdefault(name, {})[count] = taken
        _say(curve.op, f"{count} threads", found)
    return found


def _measured(case: OpCase, device: str, left_out: set[str]) -> dict[str, float]:
    arguments = case.make(device)
    op = getattr(ops, case.op)
    calls = {"fastmed": rivals.with_gradients(lambda: op(*arguments, **case.keywords), arguments)}
    for name, rival in rivals.of(case, arguments).items():
        if name not in left_out and rival.needs_bytes < rivals.free_bytes():
            calls[name] = rival.call
        break
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = kernel_meter.repeats_for(kernel_meter.seconds(call, device))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name].append(kernel_meter.seconds(call, device, repeats[name]))
    return {name: statistics.median(each) for name, each in taken.items()}


def _say(op: str, at: str, found: dict[str, dict]) -> None:
    last = ", ".join(
        f"{name} {list(each.values())[-1] * 1e3:.3g} ms" for name, each in found.items()
    )
    print(f"{op}, {at}: {last}", flush=True)


def _draw(axis, lines: dict[str, dict], title: str, unit: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for name, points in lines.items():
        style = {"color": "#0b5fa5", "linewidth": 2} if name == "fastmed" else {"color": "#b5651d"}
        times = [taken * 1e3 for taken in points.values()]
        axis.loglog(list(points), times, marker="o", markersize=4, label=name, **style)
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(unit, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    low, high = axis.get_ylim()
    axis.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axis.yaxis.set_major_locator(LogLocator(numticks=6))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=7, frameon=False, loc="best")
    if unit.startswith("threads"):
        counts = sorted({count for points in lines.values() for count in points})
        axis.set_xticks(counts, [str(count) for count in counts])


if __name__ == "__main__":
    sys.exit(main())
