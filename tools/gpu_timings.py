"""Times the CUDA kernels against a plain copy and against what torch and torchvision have."""

import importlib.util
import statistics
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from gpu_report import Result
from torch import Tensor

from fastmed import ops
from fastmed.testing import (
    fitted_matrix,
    oblique_matrix,
    smooth_logits,
    stored_voxels,
)

REPEATS = 20
WINDOW = (-1000.0, 400.0)


def seconds(run: Callable[[], object]) -> float:
    """Median over REPEATS runs on the device's own clock."""
    for _ in range(3):
        run()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_bytes_per_second() -> float:
    source = torch.empty(2**28, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def share_of_copy(what: str, run: Callable[[], object], traffic: int, copy: float) -> Result:
    took = seconds(run)
    share = traffic / took / copy
    found = f"{took * 1e3:.2f} ms, {share:.0%} of a copy's {copy / 1e9:.0f} GB/s"
    return Result(what, found, "75 %", share >= 0.75)


def bandwidths() -> Iterator[Result]:
    copy = copy_bytes_per_second()
    shape = (512, 512, 512)
    volume = stored_voxels(shape, device="cuda")
    window = torch.tensor(WINDOW, dtype=torch.float64, device="cuda")
    for name, make in (("straight", fitted_matrix), ("oblique", oblique_matrix)):
        matrix = make(shape, shape).cuda()
        yield share_of_copy(
            f"window_resample, {name}, int16 512³ to float32 512³",
            lambda matrix=matrix: ops.window_resample(volume, matrix, shape, window=window),
            volume.nbytes + 4 * volume.numel(),
            copy,
        )
    coarse = smooth_logits((8, 20, 40, 40), device="cuda")
    matrix = fitted_matrix((20, 40, 40), shape).cuda()
    truth = ops.resample_argmax(coarse, matrix, shape).repeat(4, 1, 1, 1)
    labels = truth.roll(2, 1)
    yield share_of_copy(
        "overlap_counts, uint8, 4 x 512³, 8 classes",
        lambda: ops.overlap_counts(labels, truth, 8),
        labels.nbytes + truth.nbytes,
        copy,
    )


def argmax_against_torch() -> Iterator[Result]:
    shape, size = (80, 273, 273), (120, 512, 512)
    for classes in (2, 14):
        coarse = smooth_logits((classes, 24, 24, 24), device="cuda")[None]
        logits = F.interpolate(coarse, size=shape, mode="trilinear")
        matrix = fitted_matrix(shape, size).cuda()
        ours = seconds(
            lambda logits=logits, matrix=matrix: ops.resample_argmax(logits, matrix, size)
        )
        theirs = seconds(
            lambda logits=logits: F.interpolate(logits, size=size, mode="trilinear").argmax(1)
        )
        found = f"{ours * 1e3:.2f} ms against {theirs * 1e3:.2f} ms: {theirs / ours:.1f} x"
        name = f"resample_argmax, {classes} classes, against F.interpolate + argmax"
        yield Result(name, found, "20 x", theirs / ours >= 20)


def boxes(count: int, axes: int) -> tuple[Tensor, Tensor]:
    """Boxes of 4 to 40 in a cube whose side grows with their number, and their scores."""
    generator = torch.Generator("cuda").manual_seed(0)
    extent = 10.0 * count ** (1 / axes)
    low = extent * torch.rand(count, axes, generator=generator, device="cuda")
    sides = 4 + 36 * torch.rand(count, axes, generator=generator, device="cuda")
    return torch.cat([low, low + sides], 1), torch.rand(count, generator=generator, device="cuda")


def suppression() -> Iterator[Result]:
    flat, solid = boxes(100_000, 2), boxes(100_000, 3)
    ours = seconds(lambda: ops.nms(*solid, 0.5))
    if importlib.util.find_spec("torchvision"):
        from torchvision.ops import nms

        theirs = seconds(lambda: nms(*flat, 0.5))
        found = f"{ours * 1e3:.1f} ms against {theirs * 1e3:.1f} ms"
        yield Result(
            "nms of 100,000 boxes in 3D, against torchvision's in 2D",
            found,
            "no slower",
            ours <= theirs,
        )
    else:
        yield Result(
            "nms of 100,000 boxes in 3D", f"{ours * 1e3:.1f} ms; no torchvision to compare with"
        )
    million = boxes(1_000_000, 3)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    took = seconds(lambda: ops.nms(*million, 0.5))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    yield Result(
        "nms of 1,000,000 boxes in 3D", f"{took * 1e3:.0f} ms, {peak:.0f} MiB above its input"
    )


ALL = (bandwidths, argmax_against_torch, suppression)
