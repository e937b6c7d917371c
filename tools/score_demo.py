"""Scores the demo bundle: python tools/score_demo.py [--scans FOLDER] [--model BUNDLE]

Prints the liver's Dice in world space on a patient it never saw, and how far the engines' logits
and labels lie apart there; then, for comparison, its Dice on the patient it learnt from and on
phantoms it never saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel
import numpy as np
import torch

import fastmed
from fastmed import bundle as bundles
from fastmed import phantom
from fastmed.geometry import Geometry
from fastmed.inference.case import StageClock
from fastmed.inference.sliding_window import sliding_window
from fastmed.ops import dice_score, overlap_counts, window_resample
from fastmed.preprocessing import to_grid

LIVER = 5  # TotalSegmentator's class number in the truth
ENGINES = ("torch", "ort", "ov")
PHANTOM_SEEDS = (1, 2, 3)  # training took 1000 and above


def truth_on(geometry: Geometry, path: Path) -> torch.Tensor:
    """The liver of a label file as [D, H, W] bool on another grid, nearest voxel in world space."""
    file = nibabel.load(path)
    labels = np.ascontiguousarray(np.asarray(file.dataobj).T.astype(np.uint8))
    own = Geometry.from_ras_xyz(file.shape, file.affine)
    placed = window_resample(
        torch.from_numpy(labels),
        torch.from_numpy(own.matrix_from(geometry)),
        geometry.shape_zyx,
        fill=0,
        mode="nearest",
        dtype=torch.uint8,
    )
    return placed == LIVER


def dice(labels: np.ndarray, truth: torch.Tensor) -> float:
    """Dice of label 1 against a truth of 0 and 1, both [D, H, W]."""
    counts = overlap_counts(torch.from_numpy(labels)[None], truth[None], 2)
    return float(dice_score(counts)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, default=bundles.demo_path())
    arguments = parser.parse_args()
    (volume,) = fastmed.read(arguments.scans / "ct-abdomen-dicom")
    truth = truth_on(volume.geometry, arguments.scans / "ct-abdomen-dicom-labels.nii.gz")
    mean_hu = volume.hu()[truth.numpy()].mean()
    print(f"truth: {int(truth.sum())} liver voxels, mean {mean_hu:.0f} HU")

    spec = bundles.read(arguments.model).spec
    image, _ = to_grid(volume, spec)
    logits, labels = {}, {}
    for name in ENGINES:
        model = fastmed.load(arguments.model, engine=name, device="cpu")
        logits[name] = sliding_window(
            image,
            model.engine,
            num_classes=spec.num_classes,
            tile_zyx=spec.tile_zyx,
            overlap=spec.overlap,
            size_multiple=spec.size_multiple,
        )
        clock = StageClock()
        labels[name] = model(volume, clock=clock).labels
        difference = (logits[name] - logits["torch"]).abs().max() / logits["torch"].abs().max()
        equal = np.mean(labels[name] == labels["torch"])
        print(
            f"{name:6} liver Dice {dice(labels[name], truth):.4f}   beside torch: logits within "
            f"{float(difference):.1e} of the largest, labels equal on {equal:.5%} of voxels; "
            f"network {clock.seconds['network']:.2f} s"
        )

    model = fastmed.load(arguments.model, device="cpu")
    torso = arguments.scans / "ct-torso-nifti"
    (volume,) = fastmed.read(torso / "ct.nii.gz")
    truth = truth_on(volume.geometry, torso / "labels.nii.gz")
    print(f"the patient it learnt from: liver Dice {dice(model(volume).labels, truth):.4f}")
    scores = []
    for seed in PHANTOM_SEEDS:
        geometry = Geometry.from_spacing((80, 192, 224), (2.5, 1.9, 1.9), (-212, -181, -160))
        volume, found = phantom.abdomen(geometry, seed)
        scores.append(dice(model(volume).labels, torch.from_numpy(found.labels)))
    print(f"phantoms it never saw: liver Dice {', '.join(f'{score:.4f}' for score in scores)}")


if __name__ == "__main__":
    main()
