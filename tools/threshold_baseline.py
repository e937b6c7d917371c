"""The best plain HU threshold on phantoms: python tools/threshold_baseline.py KIND --data DIR

KIND is liver (DIR as `fastmed phantom liver` writes it) or chest. What a network is compared with,
so every choice is made in the threshold's favour, on the very phantoms that it is scored on: the
window of HU, smoothing before it, opening after it, and which component to take.
Holes are not filled: they cost the liver's Dice a point or two at most.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy import ndimage

import fastmed

LIVER_LOW_HU = tuple(range(-10, 91, 20))
LIVER_HIGH_HU = tuple(range(80, 221, 20))
SMOOTHING_VOXELS = (0.0, 1.0)
OPENING_VOXELS = (0, 1, 2)
PICKS = ("largest", "best")  # best: the component of the highest Dice, which only truth can tell

CHEST_LOW_HU = (-650, -500, -350, -200, -50, 0)
CHEST_HIGH_HU = (-200, 60, 120, 3000)
AIR_BELOW_HU = -320


def liver_scores(pair: tuple[Path, Path]) -> dict[tuple, float]:
    """Dice of every choice on one scan: by (low, high, smoothing, opening, pick)."""
    image, label = pair
    (volume,) = fastmed.read(image)
    truth = _label_map(label) > 0
    scores = {}
    for smoothing in SMOOTHING_VOXELS:
        hu = ndimage.gaussian_filter(volume.hu(), smoothing)
        for low, high in itertools.product(LIVER_LOW_HU, LIVER_HIGH_HU):
            if high - low < 30:
                continue
            inside = (hu > low) & (hu < high)
            for opening in OPENING_VOXELS:
                opened = ndimage.binary_opening(inside, iterations=opening) if opening else inside
                dice = _component_dice(opened, truth)
                for pick in PICKS:
                    scores[low, high, smoothing, opening, pick] = dice[pick]
    return scores


def _component_dice(mask: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice of a mask's largest component and of its best one."""
    components, count = ndimage.label(mask)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    common = np.bincount(components[truth], minlength=count + 1)
    if not count:
        return dict.fromkeys(PICKS, 0.0)
    dice = (2 * common / (sizes + truth.sum()))[1:]
    return {"largest": float(dice[sizes[1:].argmax()]), "best": float(dice.max())}


def chest_features(path: Path) -> dict[tuple, float]:
    """What thresholds measure in the lungs of one scan: by (low, high, opening, feature)."""
    (volume,) = fastmed.read(path)
    hu = volume.hu()
    lungs = lung_mask(hu)
    where = ndimage.find_objects(lungs)[0]
    hu, lungs = hu[where], lungs[where]
    milliliters = volume.geometry.voxel_volume_mm3 / 1000
    features = {}
    for low, high in itertools.product(CHEST_LOW_HU, CHEST_HIGH_HU):
        if high <= low:
            continue
        inside = lungs & (hu > low) & (hu < high)
        for opening in OPENING_VOXELS:
            opened = ndimage.binary_opening(inside, iterations=opening) if opening else inside
            components, _ = ndimage.label(opened)
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            features[low, high, opening, "volume"] = sizes.sum() * milliliters
            features[low, high, opening, "share"] = sizes.sum() / lungs.sum()
            features[low, high, opening, "largest"] = sizes.max() * milliliters
    return features


def lung_mask(hu: np.ndarray) -> np.ndarray:
    """Air in the body, both lungs with what they hold: [D, H, W] uint8."""
    air = hu < AIR_BELOW_HU
    for plane in air:
        parts, _ = ndimage.label(plane)
        rim = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        plane[np.isin(parts, rim[rim > 0])] = False
    parts, count = ndimage.label(ndimage.binary_opening(air))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = np.isin(parts, np.flatnonzero(sizes > max(0.1 * sizes.max(), 1)))
    return np.stack([ndimage.binary_fill_holes(plane) for plane in kept]).astype(np.uint8)


def roc_auc(values: np.ndarray, is_positive: np.ndarray) -> float:
    """How often a positive has the higher value than a negative, ties counted half.

    A feature that is lower in positives counts as much: the better of the two directions.
    """
    positive, negative = values[is_positive][:, None], values[~is_positive][None, :]
    higher = float(((positive > negative) + 0.5 * (positive == negative)).mean())
    return max(higher, 1 - higher)


def _label_map(path: Path) -> np.ndarray:
    import nibabel

    return np.ascontiguousarray(np.asarray(nibabel.load(path).dataobj).T)


def liver(data: Path, count: int | None = None, workers: int = 2) -> float:
    """Prints a table; returns the mean Dice of the best choice that a program could make."""
    images = sorted((data / "image").glob("*.nii.gz"))[:count]
    pairs = [(image, data / "label" / image.name) for image in images]
    with ProcessPoolExecutor(workers) as pool:
        scores = list(pool.map(liver_scores, pairs))
    print(f"Dice of a HU window with connected components, {len(pairs)} scans of {data}")
    header = ("component", "low", "high", "smoothing", "opening", "mean", "worst", "best")
    print("".join(f"{name:>11}" for name in header))
    means = {}
    for pick in PICKS:
        choices = [choice for choice in scores[0] if choice[-1] == pick]
        best = max(choices, key=lambda choice: np.mean([s[choice] for s in scores]))
        dice = [s[best] for s in scores]
        low, high, smoothing, opening, _ = best
        means[pick] = float(np.mean(dice))
        row = f"{pick:>11}{low:>11}{high:>11}{smoothing:>11g}{opening:>11}"
        print(row + "".join(f"{v:>11.3f}" for v in (np.mean(dice), min(dice), max(dice))))
    print("largest: of each scan; best: of each scan by its truth, which no program could pick")
    return means["largest"]


def chest(data: Path, count: int | None = None, workers: int = 2) -> float:
    """Prints a table; returns the ROC AUC of the best choice."""
    with open(data / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    is_positive = np.array([row["label"] == "1" for row in rows])
    with ProcessPoolExecutor(workers) as pool:
        features = list(pool.map(chest_features, [data / row["path"] for row in rows]))
    auc = {
        choice: roc_auc(np.array([f[choice] for f in features]), is_positive)
        for choice in features[0]
    }
    print(
        f"ROC AUC of a HU window inside the lungs with connected components, {len(rows)} scans "
        f"of {data}, {is_positive.sum()} positive"
    )
    print("".join(f"{name:>11}" for name in ("feature", "low", "high", "opening", "AUC")))
    for feature in ("volume", "share", "largest"):
        best = max((c for c in auc if c[-1] == feature), key=auc.get)
        low, high, opening, _ = best
        print(f"{feature:>11}{low:>11}{high:>11}{opening:>11}{auc[best]:>11.3f}")
    print("volume: of all voxels in the window, ml; largest: of the largest component, ml")
    return max(auc.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("liver", "chest"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, metavar="N", help="the first N scans (default: all)")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    score = liver if arguments.kind == "liver" else chest
    score(arguments.data, arguments.count, arguments.workers)


if __name__ == "__main__":
    main()
