"""Tiny data sets and recipes, so that a whole training run takes a second."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastmed.training.train import TrainingRun

TINY = (
    "network.base_channels=8",
    "tiles.size_zyx=[16,16,16]",
    "grid.spacing_mm_zyx=[3.0,3.0,3.0]",
    "loop.shares=[0.5,0.25,0.25]",
    "loop.batch_size=2",
    "loop.epochs=2",
    "sampling.samples_per_case=2",
)


def balls(folder: Path, count: int = 8, side: int = 20, seed: int = 0) -> Path:
    """Writes `count` CTs with a bright ball each, and its label, into image/ and label/."""
    rng = np.random.default_rng(seed)
    index = np.indices((side,) * 3)
    for number in range(count):
        centre = rng.uniform(6, side - 6, 3).reshape(3, 1, 1, 1)
        inside = np.square(index - centre).sum(0) < rng.uniform(4, 6) ** 2
        hu = np.where(inside, 120, -60) + rng.normal(0, 20, inside.shape)
        hu[:2] = -1000  # air, as every CT has
        for part, array in (("image", hu.astype(np.int16)), ("label", inside.astype(np.uint8))):
            path = folder / part / f"case-{number:02d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([3.0, 3.0, 3.0, 1.0])), path)
    return folder


def first_moments(run) -> dict[str, torch.Tensor]:
    """Adam's first moments of a run: a tenth of the gradient where it took a single step."""
    with safe_open(run.path / "state.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.endswith(".exp_avg")]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}


def rows(run: TrainingRun) -> list[dict[str, str]]:
    with open(run.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(run: TrainingRun, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run.path / which / "weights.safetensors")


def same(one: TrainingRun, other: TrainingRun, which: str = "last") -> bool:
    a, b = weights(one, which), weights(other, which)
    return all(torch.equal(a[name], b[name]) for name in a)


def distance(one: TrainingRun, other: TrainingRun) -> float:
    a, b = weights(one), weights(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a)
