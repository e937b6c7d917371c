"""Surface scores: literal shapes, brute force, and MONAI where the definitions agree."""

import math

import numpy as np
import pytest

from fastmed.geometry import Geometry
from fastmed.metrics.surface import surface_distances, surface_scores


def box(shape, low, high):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


SHAPE = (12, 12, 12)
CUBE = box(SHAPE, (3, 3, 3), (7, 7, 7))


def upright(spacing, shape=SHAPE):
    return Geometry.from_spacing(shape, spacing)


PLATES = {  # two plates, one voxel thick, `gap` voxels apart along an axis
    "along z of thick slices": ((5.0, 0.7, 0.7), 0, 2, 10.0),
    "along y": ((5.0, 0.7, 0.7), 1, 2, 1.4),
    "along x": ((5.0, 0.7, 0.9), 2, 3, 2.7),
}


@pytest.mark.parametrize(("spacing", "axis", "gap", "mm"), PLATES.values(), ids=PLATES.keys())
def test_shifted_plates_are_as_far_apart_as_they_were_shifted(spacing, axis, gap, mm):
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    np.moveaxis(first, axis, 0)[4] = True
    np.moveaxis(second, axis, 0)[4 + gap] = True
    for distances in surface_distances(first, second, upright(spacing)):
        np.testing.assert_allclose(distances, np.full(144, mm))
    exact = surface_scores(first, second, upright(spacing), tolerance_mm=mm)
    assert exact.hausdorff_95_mm == pytest.approx(mm)
    assert exact.surface_dice == 1
    assert surface_scores(first, second, upright(spacing), mm - 1e-3).surface_dice == 0


def test_a_cube_and_one_moved_by_a_voxel():
    moved = box(SHAPE, (3, 3, 4), (7, 7, 8))
    shared = sum(d == 0 for d in surface_distances(CUBE, moved, upright((1, 1, 1)))[0])
    assert shared == 3 * (4 * 4 - 2 * 2)  # 3 common layers, each less what is inside a cube
    scores = surface_scores(CUBE, moved, upright((1, 1, 1)), tolerance_mm=0)
    assert scores.surface_dice == pytest.approx(shared / 56)
    assert scores.hausdorff_95_mm == 1
    assert surface_scores(CUBE, moved, upright((1, 1, 1)), tolerance_mm=1).surface_dice == 1


def test_the_95th_percentile_is_the_worse_direction_and_not_the_pooled_one():
    row = np.zeros((1, 3, 200), bool)
    row[0, 1] = True
    point = np.zeros_like(row)
    point[0, 1, 0] = True
    scores = surface_scores(point, row, upright((1, 1, 1), row.shape))
    assert scores.hausdorff_95_mm == pytest.approx(0.95 * 199)


EMPTY = np.zeros(SHAPE, bool)


@pytest.mark.parametrize(
    ("prediction", "target", "distance", "share"),
    [
        (EMPTY, EMPTY, math.nan, math.nan),
        (CUBE, EMPTY, math.inf, 0),
        (EMPTY, CUBE, math.inf, 0),
        (CUBE, CUBE, 0, 1),
    ],
    ids=["both empty", "truth empty", "prediction empty", "equal"],
)
def test_empty_masks(prediction, target, distance, share):
    scores = surface_scores(prediction, target, upright((1, 1, 1)))
    assert scores.hausdorff_95_mm == pytest.approx(distance, nan_ok=True)
    assert scores.surface_dice == pytest.approx(share, nan_ok=True)


def test_a_slice_has_an_outline_and_no_faces():
    disc = box((1, 9, 9), (0, 2, 2), (1, 7, 7))
    outline, _ = surface_distances(disc, disc, upright((1, 1, 1), disc.shape))
    assert len(outline) == 5 * 5 - 3 * 3
    plate = box((3, 9, 9), (1, 2, 2), (2, 7, 7))
    faces, _ = surface_distances(plate, plate, upright((1, 1, 1), plate.shape))
    assert len(faces) == 5 * 5


def test_a_mask_at_the_border_of_the_grid_has_its_surface_there():
    full = np.ones((4, 4, 4), bool)
    surface, _ = surface_distances(full, full, upright((1, 1, 1), full.shape))
    assert len(surface) == 56


def test_a_tilted_scan_is_measured_in_the_patient():
    lean = np.radians(30)
    steps = [(0, 0, 4), (0, np.cos(lean), -np.sin(lean)), (1, 0, 0)]
    sheared = Geometry.from_axes(SHAPE, (0, 0, 0), steps)
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[2, 5, 5] = True
    second[3, 7, 5] = True  # 4 mm up, 2 rows along the lean: 2 cos(30) back and 2 sin(30) down
    mm = math.hypot(2 * np.cos(lean), 4 - 2 * np.sin(lean))
    assert surface_scores(first, second, sheared).hausdorff_95_mm == pytest.approx(mm)


@pytest.mark.parametrize("seed", range(5))
def test_distances_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    shape = (6, 7, 8)
    geometry = Geometry.from_axes(shape, rng.normal(size=3), rng.normal(size=(3, 3)))
    masks = [rng.random(shape) < 0.3 for _ in range(2)]
    surfaces = []
    for mask in masks:
        padded = np.pad(mask, 1)
        inside = np.ones(shape, bool)
        for axis in range(3):
            for step in (-1, 1):
                inside &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        surfaces.append(geometry.to_world(np.argwhere(mask & ~inside)))
    between = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=-1)
    found = surface_distances(*masks, geometry)
    np.testing.assert_allclose(found[0], between.min(axis=1), atol=1e-9)
    np.testing.assert_allclose(found[1], between.min(axis=0), atol=1e-9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.8)], ids=["cubic", "thick"])
@pytest.mark.parametrize("seed", range(3))
def test_monai_finds_the_same(spacing, seed):
    metrics = pytest.importorskip("monai.metrics")
    import torch
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(20, 24, 28))
    masks = [gaussian_filter(noise + 0.7 * rng.normal(size=noise.shape), 2) > 0.05 for _ in "pt"]
    prediction, target = (torch.from_numpy(m)[None, None].float() for m in masks)
    ask = {"include_background": True, "spacing": spacing}
    distance = metrics.compute_hausdorff_distance(prediction, target, percentile=95, **ask)
    share = metrics.compute_surface_dice(prediction, target, class_thresholds=[2.0], **ask)
    mine = surface_scores(*masks, upright(spacing, noise.shape), tolerance_mm=2.0)
    assert mine.hausdorff_95_mm == pytest.approx(float(distance), abs=1e-4)
    assert mine.surface_dice == pytest.approx(float(share), abs=1e-6)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="target: has shape"):
        surface_scores(CUBE, CUBE[1:], upright((1, 1, 1)))
    with pytest.raises(ValueError, match="tolerance_mm -1"):
        surface_scores(CUBE, CUBE, upright((1, 1, 1)), -1)
