"""Scores the demo bundle on a patient it never saw: python tools/score_demo.py [--scans FOLDER]

Prints the liver's Dice in world space, and how far the engines' logits and labels lie apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel
import numpy as np
import torch

import fastmed
from fastmed import bundle as bundles
from fastmed.geometry import Geometry
from fastmed.inference.sliding_window import sliding_window
from fastmed.ops import dice_score, overlap_counts, window_resample
from fastmed.preprocessing import to_grid

LIVER = 5  # TotalSegmentator's class number in the truth
ENGINES = ("torch", "ort", "ov")


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
            tile_zyx=spec.tile_zyx,
            overlap=spec.overlap,
            size_multiple=spec.size_multiple,
        )
        labels[name] = torch.from_numpy(model(volume).labels)
        counts = overlap_counts(labels[name][None], truth[None], 2)
        dice = float(dice_score(counts)[0, 1])
        difference = (logits[name] - logits["torch"]).abs().max() / logits["torch"].abs().max()
        equal = float((labels[name] == labels["torch"]).double().mean())
        print(
            f"{name:6} liver Dice {dice:.4f}   beside torch: logits within {float(difference):.1e} "
            f"of the largest, labels equal on {equal:.5%} of voxels"
        )


if __name__ == "__main__":
    main()
