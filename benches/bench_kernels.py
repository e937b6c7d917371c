"""Times the kernels against what one would use without them; exit 1 below a gate."""

import statistics
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmed import ops
from fastmed.testing import fitted_matrix, oblique_matrix, smooth_logits, stored_voxels

REPEATS = 5
GATES = Path(__file__).with_name("gates.toml")
WINDOW = (-1000.0, 400.0)

# A chest CT of 0.7 x 0.7 x 1.25 mm onto a grid of 1.5 mm.
CT_SHAPE, CT_SIZE = (300, 512, 512), (250, 239, 239)


@dataclass(frozen=True)
class Job:
    """One call of a kernel, rivals that do the same, and a plain copy of its output."""

    name: str
    kernel: Callable[[], Tensor]
    rivals: dict[str, Callable[[], object]]
    copy: Callable[[], Tensor]


def window(values: Tensor) -> Tensor:
    return values.sub_(WINDOW[0]).mul_(1 / (WINDOW[1] - WINDOW[0])).clamp_(0, 1)


def interpolated(volume: Tensor, size) -> Tensor:
    return F.interpolate(volume[None, None].float(), size=size, mode="trilinear")[0, 0]


def grid_sampled(volume: Tensor, matrix: Tensor, size) -> Tensor:
    """The same grid through affine_grid, whose axes are (x, y, z), -1 to 1 at the outer edges."""
    shape_in = torch.tensor(volume.shape[::-1], dtype=torch.float64)
    shape_out = torch.tensor(size[::-1], dtype=torch.float64)
    linear = matrix[:, :3].flip(0, 1)
    theta = linear * shape_out / shape_in[:, None]
    origin = (2 * (matrix[:, 3].flip(0) + linear @ ((shape_out - 1) / 2)) + 1) / shape_in - 1
    affine = torch.cat([theta, origin[:, None]], 1).float()
    grid = F.affine_grid(affine[None], [1, 1, *size], align_corners=False)
    voxels = volume[None, None].float()
    return F.grid_sample(voxels, grid, padding_mode="border", align_corners=False)[0, 0]


def sitk_resampled(image: sitk.Image, matrix: Tensor, size) -> sitk.Image:
    """The same grid through SimpleITK, on an image of unit spacing, windowed by its own filter."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:, :3].flip(0, 1).flatten().tolist())
    transform.SetTranslation(matrix[:, 3].flip(0).tolist())
    reference = sitk.Image(size[::-1], sitk.sitkInt8)
    values = sitk.Resample(image, reference, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    return sitk.IntensityWindowing(values, *WINDOW, 0.0, 1.0)


def window_jobs():
    volume = stored_voxels(CT_SHAPE)
    image = sitk.GetImageFromArray(volume.numpy())
    straight, tilted = fitted_matrix(CT_SHAPE, CT_SIZE), oblique_matrix(CT_SHAPE, CT_SIZE)
    out = torch.rand(CT_SIZE)
    yield Job(
        "window_resample, axis-aligned",
        lambda: ops.window_resample(volume, straight, CT_SIZE, window=WINDOW),
        {
            "F.interpolate + window": lambda: window(interpolated(volume, CT_SIZE)),
            "SimpleITK": lambda: sitk_resampled(image, straight, CT_SIZE),
        },
        out.clone,
    )
    yield Job(
        "window_resample, oblique",
        lambda: ops.window_resample(volume, tilted, CT_SIZE, window=WINDOW),
        {
            "grid_sample + window": lambda: window(grid_sampled(volume, tilted, CT_SIZE)),
            "SimpleITK": lambda: sitk_resampled(image, tilted, CT_SIZE),
        },
        out.clone,
    )


def argmax_jobs():
    for classes, shape, size in (
        (2, (80, 273, 273), (120, 512, 512)),
        (14, (40, 137, 137), (60, 256, 256)),
    ):
        coarse = smooth_logits((classes, 24, 24, 24))[None]
        logits = F.interpolate(coarse, size=shape, mode="trilinear")[0]
        matrix = fitted_matrix(shape, size)
        labels = torch.zeros(size, dtype=torch.uint8)

        def whole(logits=logits, size=size):
            return (
                F.interpolate(logits[None], size=size, mode="trilinear")[0]
                .argmax(0)
                .to(torch.uint8)
            )

        yield Job(
            f"resample_argmax, {classes} classes",
            lambda logits=logits, matrix=matrix, size=size: ops.resample_argmax(
                logits, matrix, size
            ),
            {"F.interpolate + argmax": whole},
            labels.clone,
        )


def overlap_jobs():
    size, classes = (150, 512, 512), 8
    coarse = smooth_logits((classes, 20, 40, 40))
    target = ops.resample_argmax(coarse, fitted_matrix((20, 40, 40), size), size)
    prediction = target.roll(2, 1)

    def bincount():
        pairs = prediction.flatten().long().mul_(classes).add_(target.flatten())
        return torch.bincount(pairs, minlength=classes * classes)

    yield Job(
        "overlap_counts, uint8",
        lambda: ops.overlap_counts(prediction[None], target[None], classes),
        {"torch.bincount": bincount},
        target.clone,
    )


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(job: Job) -> dict[str, list[float]]:
    """Times of kernel, copy and rivals, taken in turn so that a busy machine slows all alike."""
    calls = {"kernel": job.kernel, "copy": job.copy, **job.rivals}
    for call in calls.values():
        call()
    rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(REPEATS)]
    return {name: [each[name] for each in rounds] for name in calls}


def main() -> int:
    gates = tomllib.loads(GATES.read_text())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {REPEATS}")
    print(f"{'kernel':32}{'time':>10}  {'against':24}{'time':>10}{'ratio':>9}{'gate':>8}")
    missed = 0
    for jobs in (window_jobs, argmax_jobs, overlap_jobs):
        for job in jobs():
            times = measure(job)
            kernel = statistics.median(times["kernel"])
            for name in (*job.rivals, "copy"):
                rival = statistics.median(times[name])
                ratio = rival / kernel
                gate = gates[job.name].get(name)
                below = gate is not None and ratio < gate
                missed += below
                verdict = "" if gate is None else f"{gate:7.2f}x{'  BELOW' if below else ''}"
                print(
                    f"{job.name:32}{kernel * 1e3:7.1f} ms  {name:24}{rival * 1e3:7.1f} ms"
                    f"{ratio:8.2f}x{verdict}",
                    flush=True,
                )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
