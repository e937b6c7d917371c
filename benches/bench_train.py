"""fastmed's training steps beside MONAI's usual loop, on the same scans, patches and network.

python benches/bench_train.py [--steps N]

Everything but the network: data (crop, rotation, zoom, shift, intensity), loss with its gradient,
and metric. MONAI: CacheDataset (its scans decoded, oriented and resampled once), then in each step
RandCropByPosNegLabeld, RandAffined and intensity transforms, DiceCELoss, DiceMetric. fastmed: its
cache, TrainingSet, losses "dice_ce" and the counts that the loop keeps. Steps of both sides are
taken in turns; the figures are medians. The network (UNet3d) is timed beside them, once for both.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from statistics import median

import nibabel
import numpy as np
import torch
from kernel_meter import observe

from fastmed import losses, models, phantom
from fastmed.geometry import Geometry
from fastmed.ops import overlap_counts
from fastmed.training.augment import Augmentation
from fastmed.training.batches import Sampling, TrainingSet
from fastmed.training.cache import Cache
from fastmed.training.layouts import discover
from fastmed.training.recipe import read_recipe
from fastmed.training.tally import likeliest

HERE = Path(__file__).parent
CORES, SCANS, BATCH = 2, 4, 2
PATCH = (96, 96, 96)
SPACING_MM = (1.5, 1.5, 1.5)
WINDOW_HU = (-160.0, 240.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each side")
    steps = parser.parse_args().steps
    torch.set_num_threads(CORES)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory() as folder:
        data = _write_scans(Path(folder) / "data")
        sides = {"fastmed": Fastmed(data, Path(folder) / "cache"), "MONAI": Monai(data)}
        for side in sides.values():
            side.step(0)
        seconds = {name: [] for name in sides}
        for step in range(1, steps + 1):
            for name, side in sides.items():
                seconds[name].append(side.step(step))
    memory = {name: side.loss_memory_mb() for name, side in sides.items()}
    network = _network_seconds()
    return _report(seconds, memory, network)


class Fastmed:
    """fastmed's own step without its network."""

    def __init__(self, data: Path, cache: Path):
        recipe = read_recipe("liver-unet3d", [
            f"grid.spacing_mm_zyx={list(SPACING_MM)}", f"tiles.size_zyx={list(PATCH)}",
        ])  # fmt: skip
        store = Cache(cache, limit_bytes=10**10)
        cases = [store.stored(c, recipe.spec, {}, "scan") for c in discover(data, recipe.spec)]
        self._set = TrainingSet(
            cases, recipe.spec, Sampling(), Augmentation(), batch_size=BATCH, seed=0, device="cpu"
        )
        self._loss = losses.build("dice_ce", num_classes=2)

    def step(self, number: int) -> dict[str, float]:
        started = time.perf_counter()
        batch = self._set.batch(
            1 + number // self._set.steps_per_epoch, number % self._set.steps_per_epoch
        )
        data = time.perf_counter()
        logits = _logits(batch.image)
        made = time.perf_counter()
        self._loss(logits, batch.target).backward()
        lost = time.perf_counter()
        overlap_counts(likeliest(logits.detach()), batch.target, 2)
        return _parts(started, data, made, lost, time.perf_counter())

    def loss_memory_mb(self) -> float:
        logits, target = _logits(torch.rand(BATCH, 1, *PATCH)), _target()
        return observe(lambda: self._loss(logits, target).backward()).extra / 1e6


class Monai:
    """MONAI's usual step without its network."""

    def __init__(self, data: Path):
        from monai import transforms as t
        from monai.data import CacheDataset, DataLoader
        from monai.losses import DiceCELoss
        from monai.metrics import DiceMetric
        from monai.utils import set_determinism

        set_determinism(0)
        keys = ("image", "label")
        files = [
            {"image": str(p), "label": str(data / "label" / p.name)}
            for p in sorted((data / "image").iterdir())
        ]
        low, high = WINDOW_HU
        prepare = [
            t.LoadImaged(keys), t.EnsureChannelFirstd(keys), t.Orientationd(keys, axcodes="RAS"),
            t.Spacingd(keys, pixdim=SPACING_MM, mode=("bilinear", "nearest")),
            t.ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
        ]  # fmt: skip
        turn = np.radians(10)
        draw = [
            t.RandCropByPosNegLabeld(keys, label_key="label", spatial_size=PATCH, pos=1, neg=1),
            t.RandAffined(
                keys, prob=0.5, rotate_range=(turn,) * 3, scale_range=(0.1,) * 3,
                translate_range=(5,) * 3, mode=("bilinear", "nearest"), padding_mode="border",
            ),
            t.RandGaussianNoised("image", prob=0.3, std=0.05),
            t.RandScaleIntensityd("image", 0.1, prob=0.3),
            t.RandShiftIntensityd("image", 0.1, prob=0.3),
        ]  # fmt: skip
        dataset = CacheDataset(files, t.Compose(prepare + draw), progress=False)
        self._loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
        self._batches = iter(self._loader)
        self._loss = DiceCELoss(to_onehot_y=True, softmax=True)
        self._metric = DiceMetric(include_background=False)
        self._prediction = t.AsDiscrete(argmax=True, to_onehot=2)
        self._truth = t.AsDiscrete(to_onehot=2)

    def step(self, number: int) -> dict[str, float]:
        from monai.data import decollate_batch

        started = time.perf_counter()
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self._loader)
            batch = next(self._batches)
        image, label = batch["image"], batch["label"]
        data = time.perf_counter()
        logits = _logits(image.as_tensor())
        made = time.perf_counter()
        self._loss(logits, label).backward()
        lost = time.perf_counter()
        said = [self._prediction(one) for one in decollate_batch(logits.detach())]
        true = [self._truth(one) for one in decollate_batch(label)]
        self._metric(y_pred=said, y=true)
        return _parts(started, data, made, lost, time.perf_counter())

    def loss_memory_mb(self) -> float:
        logits, target = _logits(torch.rand(BATCH, 1, *PATCH)), _target()[:, None]
        return observe(lambda: self._loss(logits, target).backward()).extra / 1e6


def _logits(image: torch.Tensor) -> torch.Tensor:
    """Stands for a network's output, [B, 2, *patch], so that loss and metric have work to do."""
    logits = torch.cat([0.5 - image, image - 0.5], dim=1).mul_(8)
    return logits.requires_grad_()


def _target() -> torch.Tensor:
    index = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in PATCH), indexing="ij"))
    return (index.norm(dim=0) < 0.6).long().expand(BATCH, *PATCH).contiguous()


def _parts(started: float, data: float, made: float, lost: float, end: float) -> dict[str, float]:
    parts = {"data": data - started, "loss": lost - made, "metric": end - lost}
    return parts | {"all": sum(parts.values())}


def _network_seconds() -> float:
    """Forward and backward of the recipe's network on one batch, the median of three."""
    network = models.build("unet3d", in_channels=1, num_classes=2, base_channels=24)
    network = network.to(memory_format=torch.channels_last_3d)
    image = torch.rand(BATCH, 1, *PATCH).contiguous(memory_format=torch.channels_last_3d)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        network(image).square().mean().backward()
        taken.append(time.perf_counter() - started)
    return median(taken)


def _write_scans(folder: Path) -> Path:
    """Phantoms of 0.9 x 0.9 x 1.5 mm as NIfTI, image/ and label/."""
    shape, spacing = (150, 352, 400), (1.5, 0.9, 0.9)
    for number in range(SCANS):
        origin = (-0.5 * spacing[2] * (shape[2] - 1), -0.5 * spacing[1] * (shape[1] - 1), -180.0)
        geometry = Geometry.from_spacing(shape, spacing, origin)
        volume, truth = phantom.abdomen(geometry, 100 + number)
        hu = (volume.voxels - 1024).astype(np.int16)
        for part, array in (("image", hu), ("label", truth.labels)):
            path = folder / part / f"phantom-{number}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array.T, geometry.to_ras_xyz()), path)
    return folder


def _report(seconds: dict[str, list], memory: dict[str, float], network: float) -> int:
    middle = {
        name: {part: median(step[part] for step in steps) for part in steps[0]}
        for name, steps in seconds.items()
    }
    ours, theirs = middle["fastmed"], middle["MONAI"]
    print(f"\n{BATCH} patches of {PATCH} at {SPACING_MM} mm, {CORES} threads; ms per step\n")
    print(f"| {'':22} | fastmed | MONAI | times less |\n| --- | --: | --: | --: |")
    for part in ours:
        label = "all but the network" if part == "all" else part
        ratio = theirs[part] / ours[part]
        print(f"| {label:22} | {ours[part] * 1e3:.1f} | {theirs[part] * 1e3:.1f} | {ratio:.1f}x |")
    mb = memory["fastmed"], memory["MONAI"]
    print(f"| loss, extra memory, MB | {mb[0]:.0f} | {mb[1]:.0f} | {mb[1] / max(mb[0], 1):.1f}x |")
    print(f"\nthe network, forward and backward: {network * 1e3:.0f} ms, ", end="")
    print(f"{network / ours['data']:.0f} times what the batch takes that is made beside it")
    found = {
        "network_over_data": network / ours["data"],
        "data_loss_metric": theirs["all"] / ours["all"],
        "loss_memory": mb[1] / max(mb[0], 1),
    }
    gates = tomllib.loads((HERE / "train_gates.toml").read_text(encoding="utf-8"))
    fallen = [
        f"{name}: {found[name]:.2f} is below its gate {low}"
        for name, low in gates.items()
        if found[name] < low
    ]
    for sentence in fallen:
        print(f"bench_train: {sentence}", file=sys.stderr)
    return int(bool(fallen))


if __name__ == "__main__":
    sys.exit(main())
