"""Trains and writes fastmed/bundles/demo-liver: python tools/make_demo_bundle.py --torso FOLDER

FOLDER holds ct.nii.gz and labels.nii.gz of one patient with TotalSegmentator's class numbers.
It learns from that one patient and from phantoms, so it is a demonstration and nothing more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmed import bundle, exporter, models, phantom
from fastmed.geometry import Geometry
from fastmed.ops import window_resample
from fastmed.spec import Label, Network, Spec

SPEC = Spec(
    name="demo-liver",
    task="segmentation",
    labels=(Label(1, "liver", "10200004"),),
    spacing_mm_zyx=(3.0, 3.0, 3.0),
    window_hu=(-160.0, 240.0),
    tile_zyx=(48, 128, 128),
    overlap=0.25,
    network=Network("unet3d", {"in_channels": 1, "num_classes": 2, "base_channels": 8}),
    trained_on=(
        "One torso CT of the TotalSegmentator repository (tests/reference_files, Apache-2.0) with "
        "its labels, and synthetic phantoms of fastmed.phantom. No other patient."
    ),
    notice=(
        "A demonstration that shows the pipeline at work. One patient is no training set: expect "
        "it to fail on scans that differ. Not for clinical use."
    ),
)

# What the auxiliary head learns to tell apart, so that the features know the liver's neighbours.
# The liver is first; the values are TotalSegmentator's class numbers and our phantom's names.
TISSUES = (
    ("liver", (5,)), ("spleen", (1,)), ("kidney", (2, 3)), ("stomach", (6,)),
    ("bowel", (18, 19, 20)), ("lung", (10, 11, 12, 13, 14)), ("heart", (51,)), ("aorta", (52,)),
    ("vena cava", (63,)), ("bone", (*range(25, 51), *range(69, 79), *range(91, 118))),
    ("gallbladder", (4,)), ("pancreas", (7,)),
)  # fmt: skip

# Mean HU that each tissue is moved to, drawn anew for every sample: contrast phases and patients.
CONTRAST_HU = {
    "liver": (35, 135), "spleen": (35, 160), "kidney": (20, 240), "stomach": (-20, 60),
    "bowel": (0, 60), "heart": (30, 250), "aorta": (30, 320), "vena cava": (30, 240),
    "gallbladder": (-5, 25), "pancreas": (20, 130),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One training scan on the network's spacing: stored int16 HU and tissue numbers, [D, H, W]."""

    hu: np.ndarray
    tissue: np.ndarray
    means_hu: np.ndarray


def torso_case(folder: Path) -> Case:
    """Reads the patient, turned to the patient's axes (z to the head, y to the back, x left)."""
    ct, labels = nibabel.load(folder / "ct.nii.gz"), nibabel.load(folder / "labels.nii.gz")
    geometry = Geometry.from_ras_xyz(ct.shape, ct.affine)
    grid = geometry.grid(SPEC.spacing_mm_zyx)
    matrix = torch.from_numpy(geometry.matrix_from(grid))
    table = np.zeros(256, dtype=np.uint8)
    for number, (_, sources) in enumerate(TISSUES, start=1):
        table[list(sources)] = number
    hu = np.ascontiguousarray(np.asarray(ct.dataobj).T.astype(np.int16))
    tissue = np.ascontiguousarray(table[np.asarray(labels.dataobj).T])
    return _case(*(_nearest(stored, matrix, grid.shape_zyx).numpy() for stored in (hu, tissue)))


def _nearest(stored: np.ndarray, matrix: Tensor, size) -> Tensor:
    """Resamples by nearest, in the array's own type: labels are never interpolated."""
    voxels = torch.from_numpy(stored)
    return window_resample(voxels, matrix, size, mode="nearest", dtype=voxels.dtype)


def phantom_case(seed: int) -> Case:
    """Makes a phantom on the network's spacing, cut to a random part of the trunk."""
    rng = np.random.default_rng([seed, 1])
    low, high = rng.uniform(-260, -150), rng.uniform(0, 60)
    shape = (int((high - low) / 3), 118, 140)
    geometry = Geometry.from_spacing(shape, (3, 3, 3), (-208.5, -170.0, low))
    volume, findings = phantom.abdomen(geometry, seed, organs=True)
    table = np.zeros(len(phantom.CLASSES) + 1, dtype=np.uint8)
    numbers = {name: number for number, (name, _) in enumerate(TISSUES, start=1)}
    for label in phantom.CLASSES:
        table[label.value] = (
            numbers["bone" if label.name == "marrow" else label.name]
            if (label.name in (*numbers, "marrow"))
            else 0
        )
    return _case(volume.hu().astype(np.int16), table[findings.labels])


def _case(hu: np.ndarray, tissue: np.ndarray) -> Case:
    counts = np.maximum(np.bincount(tissue.ravel(), minlength=len(TISSUES) + 1), 1)
    sums = np.bincount(tissue.ravel(), weights=hu.ravel(), minlength=len(TISSUES) + 1)
    return Case(hu, tissue, sums / counts)


def sample(case: Case, size: tuple[int, int, int], rng: np.random.Generator):
    """Draws one augmented piece: image float32 in 0..1 and tissue uint8, both [*size]."""
    offset = np.zeros(len(TISSUES) + 1)
    for number, (name, _) in enumerate(TISSUES, start=1):
        if name in CONTRAST_HU:
            offset[number] = rng.uniform(*CONTRAST_HU[name]) - case.means_hu[number]
    liver = np.flatnonzero((case.tissue == 1).any(axis=(1, 2)))
    centre = rng.integers(liver[0] - 6, liver[-1] + 7) if rng.random() < 0.5 else None
    depth = case.hu.shape[0]
    centre = int(np.clip(rng.integers(0, depth) if centre is None else centre, 0, depth - 1))
    # Thin slabs, repeated beyond their last slice, are what a short scan looks like.
    half = rng.integers(4, 9) if rng.random() < 0.5 else size[0]
    low, high = max(0, centre - half), min(depth, centre + half + 1)
    hu = case.hu[low:high] + offset.astype(np.int16)[case.tissue[low:high]]
    tissue = np.ascontiguousarray(case.tissue[low:high])

    angles = np.radians(rng.uniform(-1, 1, 3) * (12, 8, 8))  # about z, y, x
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        i, j = [k for k in range(3) if k != axis]
        plane = np.eye(3)
        plane[i, i], plane[i, j], plane[j, i], plane[j, j] = c, -s, s, c
        turn = turn @ plane
    turn = turn @ np.diag(rng.uniform(0.78, 1.25) * rng.uniform(0.9, 1.1, 3))
    focus = np.array(hu.shape) / 2 - 0.5 + rng.uniform(-1, 1, 3) * (3, 16, 16)
    matrix = np.concatenate([turn, (focus - turn @ ((np.array(size) - 1) / 2))[:, None]], axis=1)
    low_hu, high_hu = np.array(SPEC.window_hu) + rng.uniform(-20, 20, 2)
    matrix = torch.from_numpy(matrix)
    image = window_resample(
        torch.from_numpy(hu.astype(np.int16)), matrix, size, window=(low_hu, high_hu)
    )
    return image, _nearest(tissue, matrix, size)


def batch(cases: list[Case], size, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draws `count` pieces, bends them elastically and adds noise: [B, 1, *size], [B, *size]."""
    patient = rng.random(count) < 0.6
    drawn = [
        sample(cases[0] if p else cases[rng.integers(1, len(cases))], size, rng) for p in patient
    ]
    image = torch.stack([image for image, _ in drawn])[:, None]
    tissue = torch.stack([tissue for _, tissue in drawn])[:, None]
    knots = [max(3, round(n * 3 / 45) + 1) for n in size]
    bend_mm = rng.uniform(0, 8)
    bend = (
        torch.from_numpy(rng.standard_normal((count, 3, *knots)).astype(np.float32)) * bend_mm / 3
    )
    bend = F.interpolate(bend, size, mode="trilinear", align_corners=True)
    bend = bend * 2 / torch.tensor(size, dtype=torch.float32).view(1, 3, 1, 1, 1)
    still = torch.eye(3, 4).expand(count, 3, 4)
    grid = F.affine_grid(still, [count, 1, *size], align_corners=False)
    grid = grid + bend.flip(1).movedim(1, -1)
    image = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    tissue = F.grid_sample(
        tissue.float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    if rng.random() < 0.3:
        image = F.avg_pool3d(image, 3, 1, 1, count_include_pad=False)
    noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    image = image + noise * float(rng.uniform(0, 0.06))
    return image.clamp_(0, 1), tissue[:, 0].long()


def train(cases: list[Case], steps: int, seed: int, save: Callable[[nn.Module], None]) -> None:
    """Trains the network with an auxiliary head that is dropped; saves its moving average."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = models.build(SPEC.network.name, **SPEC.network.arguments)
    network = network.to(memory_format=torch.channels_last_3d)
    tissue_head = nn.Conv3d(network.head.in_channels, len(TISSUES) + 1, 1)
    parameters = [*network.parameters(), *tissue_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    ema = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    started = time.monotonic()
    running = None
    for step in range(1, steps + 1):
        size, count = [((16, 128, 128), 2), ((32, 112, 128), 1), ((48, 96, 112), 1)][
            rng.choice(3, p=[0.5, 0.25, 0.25])
        ]
        image, tissue = batch(cases, size, count, rng)
        features = network.features(image.to(memory_format=torch.channels_last_3d))
        logits = network.head(features)
        truth = (tissue == 1).long()
        p = logits.softmax(1)[:, 1]
        overlap = (p * truth).sum() * 2 + 1
        dice = 1 - overlap / (p.sum() + truth.sum() + 1)
        loss = F.cross_entropy(logits, truth) + dice
        loss = loss + 0.5 * F.cross_entropy(tissue_head(features), tissue)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        ema.update_parameters(network)
        running = dice.item() if running is None else 0.98 * running + 0.02 * dice.item()
        if step % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            print(f"step {step}/{steps}  Dice loss {running:.3f}  {minutes:.1f} min", flush=True)
        if step % 250 == 0 or step == steps:
            save(ema.module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torso", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("fastmed/bundles/demo-liver"))
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--phantoms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases = [torso_case(arguments.torso)]
    cases += [phantom_case(1000 + k) for k in range(arguments.phantoms)]
    train(
        cases,
        arguments.steps,
        arguments.seed,
        save=lambda network: bundle.write(arguments.output, SPEC, network),
    )
    exporter.export(arguments.output)


if __name__ == "__main__":
    main()
