"""The best plain nodule finders: python tools/nodule_baseline.py --tune DIR --data DIR

Both folders as `fastmed phantom nodules` writes them. What a network is compared with: of every
finder, the choices that score highest on --tune are scored on --data. Two finders inside the lungs,
walls and all that clings to them closed in:
threshold: connected components above a HU, opened or not, ranked by how round and how dense.
blobs: maxima of the Laplacian of Gaussians of many widths, ranked by their strength and by how
    alike the second derivatives are in all directions (Li et al., Medical Physics 30, 2003).
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
from fastmed.geometry import Geometry
from fastmed.metrics.detection import detection_scores
from fastmed.phantom.fields import on_grid
from fastmed.preprocessing.lungs import lung_mask

CLOSING_MM = 9.0
THRESHOLDS_HU = (-650, -500, -350, -200)
OPENING_VOXELS = (0, 1, 2)
CEILINGS_HU = (-400, 50)  # what is denser counts as this dense, so that no vessel outshines
SIGMAS_MM = (1.2, 1.6, 2.1, 2.8, 3.7, 4.9)
ROUNDNESS_POWERS = (0, 1, 2, 4)
OTHER_POWERS = (0, 0.5, 2)
STRONGEST = 4000  # blobs that are ranked; the others are noise
MARKS = 40  # of a scan, at most

Candidates = np.ndarray  # [N, 7]: x, y, z, diameter in mm, roundness, flatness, strength


def candidates(path: Path) -> dict[tuple, Candidates]:
    """What each finder sees in a scan, by its choices."""
    (volume,) = fastmed.read(path)
    found = {}
    hu, lungs, geometry = _inside(volume)
    for opening in OPENING_VOXELS:
        parts = [_components(hu, geometry, low, opening) for low in THRESHOLDS_HU]
        for low, part in zip(THRESHOLDS_HU, parts, strict=True):
            found["threshold", low, opening] = part
        # Of every threshold together, so that the one at which a nodule is roundest wins.
        found["thresholds", opening] = np.concatenate(parts)
    for ceiling in CEILINGS_HU:
        found["blobs", ceiling] = _blobs(hu, lungs, geometry, ceiling)
    return found


def _inside(volume) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """HU around the lungs, where they are, and the grid; what lies outside of them is as lung."""
    coarse, own = lung_mask(volume)
    reach = round(CLOSING_MM / float(np.mean(own.spacing_mm_zyx)))
    away = ndimage.distance_transform_edt(~np.pad(coarse, reach))
    coarse = (ndimage.distance_transform_edt(away <= reach) > reach)[(slice(reach, -reach),) * 3]
    lungs = on_grid(coarse.astype(np.float32), own, volume.geometry) > 0.5
    box = ndimage.find_objects(lungs.astype(np.uint8))[0]
    geometry = volume.geometry.crop([s.start for s in box], [s.stop - s.start for s in box])
    hu, lungs = volume.hu()[box], lungs[box]
    return np.where(lungs, hu, np.median(hu[lungs])), lungs, geometry


def _components(hu, geometry: Geometry, threshold: float, opening: int) -> Candidates:
    mask = hu > threshold
    if opening:
        mask = ndimage.binary_opening(mask, iterations=opening)
    labels, count = ndimage.label(mask)
    at = np.argwhere(mask)
    label = labels[mask]
    sizes = np.bincount(label, minlength=count + 1).astype(float)
    world = geometry.to_world(at)
    means = np.stack([np.bincount(label, world[:, k], count + 1) for k in range(3)], axis=1)
    means /= np.maximum(sizes, 1)[:, None]
    offset = world - means[label]
    spread = np.zeros((count + 1, 3, 3))
    for a, b in itertools.product(range(3), range(3)):
        total = np.bincount(label, offset[:, a] * offset[:, b], count + 1)
        spread[:, a, b] = total / np.maximum(sizes, 1)
    spread += np.diag(np.square(geometry.spacing_mm_zyx[::-1])) / 12
    axes = np.sqrt(np.maximum(np.linalg.eigvalsh(spread), 1e-6))  # short to long
    volumes = sizes * geometry.voxel_volume_mm3
    diameters = np.cbrt(6 / np.pi * volumes)
    dense = np.bincount(label, hu[mask], count + 1) / np.maximum(sizes, 1) + 1000
    # An ellipsoid of these axes has this volume; branches and hollows leave it emptier.
    filled = volumes / (4 / 3 * np.pi * 5**1.5 * axes.prod(axis=1))
    roundness = axes[:, 0] / axes[:, 2] * np.clip(filled, 0, 1)
    keep = (diameters > 3) & (diameters < 24) & (np.arange(count + 1) > 0)
    columns = (means, diameters[:, None], roundness[:, None], (axes[:, 1] / axes[:, 2])[:, None])
    return np.concatenate([*columns, dense[:, None]], axis=1)[keep]


def _blobs(hu, lungs, geometry: Geometry, ceiling: float) -> Candidates:
    hu = np.minimum(hu, ceiling).astype(np.float32)
    found = []
    for sigma in SIGMAS_MM:
        step = 2 if sigma > 3 else 1
        spacing = np.array(geometry.spacing_mm_zyx)
        smooth = ndimage.gaussian_filter(hu, sigma / spacing, truncate=3)
        smooth, within = (a[::step, ::step, ::step] for a in (smooth, lungs))
        spacing = spacing * step
        strength = np.zeros_like(smooth)
        core = (slice(1, -1),) * 3
        for axis in range(3):
            moved = np.roll(smooth, 1, axis) + np.roll(smooth, -1, axis)
            strength[core] -= ((moved - 2 * smooth) / spacing[axis] ** 2)[core]
        strength *= sigma**2
        peak = (strength == ndimage.maximum_filter(strength, 3)) & (strength > 40) & within
        at = np.argwhere(peak)
        if not len(at):
            continue
        curves = -np.linalg.eigvalsh(_hessian(smooth, at, spacing))[:, ::-1] * sigma**2
        curves = np.maximum(curves, 0)  # weak to strong
        roundness = curves[:, 0] / np.maximum(curves[:, 2], 1e-6)
        flatness = curves[:, 1] / np.maximum(curves[:, 2], 1e-6)
        world = geometry.to_world(at * step)
        diameter = np.full(len(at), 2 * np.sqrt(3) * sigma)
        columns = (diameter, roundness, flatness, strength[peak])
        found.append(np.concatenate([world, np.stack(columns, axis=1)], axis=1))
    found = np.concatenate(found)
    return found[np.argsort(-found[:, 6], kind="stable")[:STRONGEST]]


def _hessian(smooth: np.ndarray, at: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """[N, 3, 3] second derivatives per mm squared at inner voxels, by differences."""
    steps = np.eye(3, dtype=int)
    last = np.array(smooth.shape) - 1

    def value(places):
        return smooth[tuple(np.clip(places, 0, last).T)].astype(float)

    hessian = np.zeros((len(at), 3, 3))
    for a, b in itertools.product(range(3), range(3)):
        p, q = steps[a], steps[b]
        if a == b:
            second = value(at + p) + value(at - p) - 2 * value(at)
            hessian[:, a, a] = second / spacing[a] ** 2
        else:
            cross = value(at + p + q) + value(at - p - q) - value(at + p - q) - value(at - p + q)
            hessian[:, a, b] = cross / (4 * spacing[a] * spacing[b])
    return hessian


def ranked(found: Candidates, powers: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 6] in LPS mm and scores [n] of the best candidates, none inside a better one."""
    score = np.prod(np.maximum(found[:, 4:], 1e-6) ** np.array(powers), axis=1)
    order = np.argsort(-score, kind="stable")[: 6 * MARKS]
    kept: list[int] = []
    for k in order:
        apart = np.linalg.norm(found[kept, :3] - found[k, :3], axis=1)
        if (apart > np.maximum(found[kept, 3], found[k, 3]) / 2).all():
            kept.append(int(k))
        if len(kept) == MARKS:
            break
    half = found[kept, 3:4] / 2
    return np.concatenate([found[kept, :3] - half, found[kept, :3] + half], axis=1), score[kept]


def cpm(scans: list[Candidates], truth: list[np.ndarray], powers) -> tuple[float, tuple]:
    """CPM and the seven sensitivities of one finder with one ranking."""
    marks = [ranked(found, powers) for found in scans]
    marks = [(boxes, scores, np.ones(len(scores), int)) for boxes, scores in marks]
    known = [(boxes, np.ones(len(boxes), int)) for boxes in truth]
    curve = detection_scores(marks, known).froc
    return curve.cpm, curve.sensitivities


def read_set(data: Path, count: int | None, pool) -> tuple[list[dict], list[np.ndarray]]:
    """Candidates and true boxes [n, 6] of each scan of a set."""
    boxes: dict[str, list] = {}
    with open(data / "boxes.csv", newline="") as file:
        for row in csv.DictReader(file):
            known = boxes.setdefault(row["path"], [])
            if row["label"]:
                known.append([float(row[k]) for k in ("x1", "y1", "z1", "x2", "y2", "z2")])
    paths = list(boxes)[:count]
    found = list(pool.map(candidates, [data / path for path in paths]))
    return found, [np.array(boxes[path]).reshape(-1, 6) for path in paths]


def best_finder(tune: Path, data: Path, count: int | None = None, workers: int = 2) -> float:
    """Prints what each finder, chosen on `tune`, scores on `data`; returns the highest CPM."""
    with ProcessPoolExecutor(workers) as pool:
        tuning, tuning_truth = read_set(tune, count, pool)
        scans, truth = read_set(data, count, pool)
    nodules = sum(map(len, truth))
    print(f"CPM of plain finders, {len(scans)} scans of {data}, {nodules} nodules")
    print(f"chosen on {len(tuning)} scans of {tune}, {sum(map(len, tuning_truth))} nodules")
    best = 0.0
    for finder in ("threshold", "thresholds", "blobs"):
        choices = [
            (key, powers)
            for key in tuning[0]
            if key[0] == finder
            for powers in itertools.product(ROUNDNESS_POWERS, OTHER_POWERS, OTHER_POWERS)
            if sum(powers)
        ]
        scored = {
            choice: cpm([s[choice[0]] for s in tuning], tuning_truth, choice[1])[0]
            for choice in choices
        }
        key, powers = max(scored, key=scored.get)
        value, sensitivities = cpm([s[key] for s in scans], truth, powers)
        print(
            f"{finder:>11}  CPM {value:.3f} (tuned {scored[key, powers]:.3f})  {key[1:]} {powers}"
        )
        print("             sensitivities " + " ".join(f"{v:.2f}" for v in sensitivities))
        best = max(best, value)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", type=Path, required=True, help="scans to choose by")
    parser.add_argument("--data", type=Path, required=True, help="scans to score")
    parser.add_argument("--count", type=int, metavar="N", help="the first N scans of each")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    best_finder(arguments.tune, arguments.data, arguments.count, arguments.workers)


if __name__ == "__main__":
    main()
