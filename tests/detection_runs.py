"""Tiny data sets and recipes of detections, so that a whole training run takes seconds."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

TINY_3D = (
    "network.base_channels=8",
    "network.strides=[4,8]",
    "network.boxes_per_place=1",
    "detection.strides=[4,8]",
    "detection.diameters_mm=[[12.0],[20.0]]",
    "grid.spacing_mm_zyx=[2.0,2.0,2.0]",
    "tiles.size_zyx=[16,16,16]",
    "sampling.patch_zyx=[16,16,16]",
    "sampling.samples_per_case=2",
    "loop.shares=[0.5,0.25,0.25]",
    "loop.batch_size=2",
    "loop.epochs=2",
    "loop.validate_every=1",
)
TINY_2D = (
    "loop.shares=[0.5,0.25,0.25]",
    "loop.batch_size=2",
    "loop.epochs=2",
    "grid.modality=grey",
    "grid.window_hu=[0.0,255.0]",
)


def nodules(folder: Path, count: int = 4, side: int = 24, seed: int = 0) -> Path:
    """Writes `count` lungs of side^3 voxels of 2 mm with a nodule each, the last without, and
    boxes.csv."""
    rng = np.random.default_rng(seed)
    index = np.indices((side,) * 3)
    rows = ["path,patient,label,x1,y1,z1,x2,y2,z2"]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        middle, radius = rng.uniform(6, side - 6, 3), rng.uniform(2.5, 4)
        hu = rng.normal(-850, 20, (side,) * 3)
        name = f"scan-{number}.nii.gz"
        if number == count - 1 and count > 3:
            rows.append(f"{name},p{number}" + "," * 7)
        else:
            hu[np.square(index - middle.reshape(3, 1, 1, 1)).sum(0) < radius**2] = 0
            # NIfTI's x and y run against LPS.
            z, y, x = middle
            low, high = (
                ",".join(f"{v:.3f}" for v in at)
                for at in (
                    (-2 * (x + radius), -2 * (y + radius), 2 * (z - radius)),
                    (-2 * (x - radius), -2 * (y - radius), 2 * (z + radius)),
                )
            )
            rows.append(f"{name},p{number},nodule,{low},{high}")
        image = nibabel.Nifti1Image(hu.T.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
        nibabel.save(image, folder / name)
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return folder


def spots(folder: Path, count: int = 4, seed: int = 0) -> Path:
    """Writes `count` grey images with a bright spot each, the last without, and slices.csv."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((60, 80))
    rows = ["path,patient,slice,label,x1,y1,x2,y2"]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        r, cy, cx = rng.uniform(6, 9), *rng.uniform(15, 45, 2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < r * r
        name = f"image-{number}.png"
        box = f"nodule,{cx - r:.2f},{cy - r:.2f},{cx + r:.2f},{cy + r:.2f}"
        if number == count - 1:
            inside, box = np.zeros_like(inside), ",,,,"
        rows.append(f"{name},p{number},0,{box}")
        Image.fromarray(np.where(inside, 220, 40).astype(np.uint8)).save(folder / name)
    (folder / "slices.csv").write_text("\n".join(rows) + "\n")
    return folder


class TinySSD300(nn.Module):
    """Answers as ssd300_vgg16 does, in a thousandth of its time."""

    dimensions = 2

    def __init__(self, in_channels: int = 3, num_classes: int = 2):
        super().__init__()
        self.sizes = ((38, 4), (19, 6), (10, 6), (5, 6), (3, 4), (1, 4))
        self.first = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(8, n * (4 + num_classes), 1) for _, n in self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for (size, boxes), head in zip(self.sizes, self.heads, strict=True):
            small = nn.functional.adaptive_avg_pool2d(x, size)
            answer = head(torch.relu(self.first(small)))
            levels.append(answer.unflatten(1, (boxes, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3))
        return torch.cat(levels, 1)
