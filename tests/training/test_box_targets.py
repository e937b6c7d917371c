"""Boxes in training samples: they move with the image, and the border of a patch is fair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import scan
from test_batches import GEOMETRIES
from test_truth_tables import FLAT, GREY, NODULES

from fastmed.boxes import boxes_to_lps
from fastmed.geometry import Geometry
from fastmed.preprocessing import to_grid
from fastmed.training.augment import Augmentation
from fastmed.training.batches import Sampling, TrainingSet
from fastmed.training.box_targets import slice_targets, tile_targets
from fastmed.training.cases import Case, TruthBox
from fastmed.training.stored_case import StoredCase, prepare
from fastmed.volume import Volume

CUBES = replace(NODULES, spacing_mm_zyx=(2.0, 1.5, 1.5), tile_zyx=(24, 32, 32))
TURNED = Augmentation(
    rotation_degrees=25.0, rotation_p=1.0, zoom=(0.8, 1.25), zoom_p=1.0, shift_voxels=3.0,
    shift_p=1.0, flip_zyx=(True, True, True), noise_p=0.0, brightness_p=0.0, contrast_p=0.0,
    elastic_p=0.0,
)  # fmt: skip


@pytest.fixture
def given(monkeypatch):
    """Cases from volumes in memory: given(volume, boxes, spec, slices) -> StoredCase."""
    volumes = {}
    monkeypatch.setattr(
        "fastmed.training.stored_case.read_image", lambda case, spec: volumes[case.name]
    )

    def make(volume: Volume, boxes=(), spec=CUBES, slices=(), crop="scan") -> StoredCase:
        name = f"case-{len(volumes)}"
        volumes[name] = volume
        case = Case(name, name, Path("image"), boxes=tuple(boxes), slices=tuple(slices))
        return prepare(case, spec, {}, crop)

    return make


def ellipsoid(geometry, middle, half) -> tuple[Volume, tuple[float, ...]]:
    """Air with a bright ellipsoid, and the upright box around it in LPS mm.

    middle, half: voxels along z, y, x.
    """
    index = np.indices(geometry.shape_zyx, dtype=np.float64)
    away = [(index[k] - middle[k]) / half[k] for k in range(3)]
    voxels = np.where(sum(np.square(a) for a in away) < 1, 400, -1000).astype(np.int16)
    box = np.concatenate([np.subtract(middle, half)[::-1], np.add(middle, half)[::-1]])
    return Volume(voxels, geometry), tuple(boxes_to_lps(box[None], geometry)[0])


def extent(image: torch.Tensor) -> np.ndarray:
    """(x1, y1, z1, x2, y2, z2) of what is bright; voxel i spans i - 0.5 to i + 0.5."""
    at = (image > 0.5).nonzero().double().numpy()
    return np.concatenate([at.min(0)[::-1] - 0.5, at.max(0)[::-1] + 0.5])


@pytest.mark.parametrize("name", GEOMETRIES)
def test_boxes_move_with_the_image(name, given):
    volume, box = ellipsoid(GEOMETRIES[name]((24, 48, 56)), (12.3, 25.2, 27.6), (4.2, 9.1, 6.3))
    stored = given(volume, [TruthBox(2, box)])
    made = TrainingSet(
        [stored],
        CUBES,
        Sampling(samples_per_case=24, foreground=1.0),
        TURNED,
        batch_size=24,
        seed=3,
    )
    batch = made.batch(1, 0)
    off = []
    for image, (boxes, labels) in zip(batch.image, batch.target, strict=True):
        if len(labels) != 1 or labels[0] != 2:
            continue
        low, high = boxes[0].double().numpy().reshape(2, 3)
        if (low < 0.5).any() or (high > np.array([32, 32, 24]) - 1.5).any():
            continue  # the border cuts it
        at = (image[0] > 0.5).nonzero().double().mean(0).flip(0).numpy()
        off.append(at - (low + high) / 2)
        # A voxel for what is bright at half of one, and half a one for a tilted scan's ellipsoid.
        np.testing.assert_allclose(extent(image[0]), np.concatenate([low, high]), atol=1.5)
    assert len(off) >= 8
    assert np.abs(off).mean(0).max() < 0.2, "voxels; half of one would be the wrong convention"


def test_unaugmented_boxes_are_where_inferences_grid_has_them(given):
    volume, box = ellipsoid(GEOMETRIES["uneven"]((30, 60, 60)), (14, 30, 28), (5, 8, 8))
    stored = given(volume, [TruthBox(1, box)])
    image, _ = to_grid(volume, CUBES)
    np.testing.assert_allclose(stored.boxes[0, :6], extent(image), atol=1.0)
    assert stored.boxes.dtype == np.float32
    assert stored.boxes[0, 6] == 1


TILE = (8, 16, 16)
BORDER = {  # a box (x1, y1, z1, x2, y2, z2) -> what a tile of TILE that begins at 0 has of it
    "inside": ((2, 2, 2, 6, 6, 6), [((2, 2, 2, 6, 6, 6), 1)]),
    "clipped": ((-1.5, 2, 2, 4.5, 6, 6), [((-0.5, 2, 2, 4.5, 6, 6), 1)]),
    "centre outside": ((-4, 2, 2, 2, 6, 6), [((-0.5, 2, 2, 2, 6, 6), -1)]),
    "less than half": ((-3, -3, 2, 4, 4, 6), [((-0.5, -0.5, 2, 4, 4, 6), -1)]),
    "outside": ((16, 2, 2, 20, 6, 6), []),
    "touching": ((-4, 2, 2, -0.5, 6, 6), []),
}


@pytest.mark.parametrize(("box", "expected"), BORDER.values(), ids=BORDER)
def test_what_the_border_cuts_deep_is_ignored(box, expected):
    boxes, labels = tile_targets(np.array([[*box, 1]], np.float32), (0, 0, 0), TILE, "cpu")
    found = [(tuple(b), int(v)) for b, v in zip(boxes.tolist(), labels, strict=True)]
    assert found == expected


def test_a_tile_has_boxes_in_its_own_voxels():
    rows = np.array([[22, 12, 12, 26, 16, 16, 2]], np.float32)
    boxes, labels = tile_targets(rows, (10, 8, 20), TILE, "cpu")
    assert boxes.tolist() == [[2, 4, 2, 6, 8, 6]]
    assert labels.tolist() == [2]


def test_batches_mix_samples_of_many_boxes_and_of_none(given):
    volume, box = ellipsoid(GEOMETRIES["upright"]((24, 48, 56)), (12, 25, 27), (3, 5, 5))
    other = tuple(np.add(box, [9, 9, 0, 9, 9, 0]))
    cases = [given(volume, [TruthBox(1, box), TruthBox(2, other)]), given(scan(1, (24, 48, 56)))]
    made = TrainingSet(
        cases, CUBES, Sampling(samples_per_case=4, foreground=1.0), None, batch_size=8, seed=0
    )
    batch = made.batch(1, 0)
    assert batch.image.shape == (8, 1, 24, 32, 32)
    for name, (boxes, labels) in zip(batch.names, batch.target, strict=True):
        assert boxes.shape == (len(labels), 6)
        assert (boxes.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert (labels > 0).any() == (name == "case-0")


def test_findings_stand_anywhere_in_their_patches_and_whole(given):
    volume, box = ellipsoid(GEOMETRIES["upright"]((40, 120, 120)), (20, 60, 60), (3, 5, 5))
    stored = given(volume, [TruthBox(1, box)], replace(CUBES, tile_zyx=(16, 32, 32)))
    made = TrainingSet(
        [stored], replace(CUBES, tile_zyx=(16, 32, 32)),
        Sampling(samples_per_case=64, foreground=1.0), None, batch_size=64, seed=0,
    )  # fmt: skip
    boxes = torch.stack([target.boxes[0] for target in made.batch(1, 0).target])
    assert all(target.labels.tolist() == [1] for target in made.batch(1, 0).target)
    whole = boxes[:, 3:] - boxes[:, :3]
    assert torch.allclose(whole, whole[:1].expand_as(whole), atol=1e-3), "none is cut"
    room = torch.tensor([32.0, 32.0, 16.0]) - whole[0]
    low = boxes[:, :3] + 0.5
    assert (low.amin(0) < 0.2 * room).all()
    assert (low.amax(0) > 0.8 * room).all()


def test_a_crop_chooses_among_the_findings_in_it(given):
    geometry = GEOMETRIES["upright"]((60, 48, 56))
    boxes = []
    for label, middle in ((1, (8, 8, 8)), (2, (50, 40, 47))):
        volume, box = ellipsoid(geometry, middle, (3, 5, 5))
        boxes.append(TruthBox(label, box))
    stored = given(volume, boxes, crop=(40, 59))
    made = TrainingSet(
        [stored], CUBES, Sampling(samples_per_case=12, foreground=1.0, crop=(40, 59)), None,
        batch_size=12, seed=0,
    )  # fmt: skip
    assert all(target.labels.tolist() == [2] for target in made.batch(1, 0).target)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_foreground_share_chooses_slices_with_findings(share, given):
    spec = replace(FLAT, size_zyx=(1, 32, 32))
    stored = given(scan(0), [TruthBox(1, slice=5, box_px=(4, 4, 12, 14))], spec, (2, 5, 9, 11))
    made = TrainingSet(
        [stored], spec, Sampling(samples_per_case=16, foreground=share), None, batch_size=16, seed=0
    )
    image, _ = to_grid(scan(0), spec)
    batch = made.batch(1, 0)
    assert batch.image.shape == (16, 3, 32, 32), "the grey slice fills all channels"
    seen = set()
    for sample, (boxes, _) in zip(batch.image, batch.target, strict=True):
        (at,) = [z for z in range(len(image)) if torch.equal(sample[1], image[z])]
        seen.add(at)
        assert len(boxes) == (at == 5)
    assert seen == ({5} if share else {2, 5, 9, 11})


def test_neighbouring_slices_are_channels_and_the_outermost_repeat(given):
    spec = replace(FLAT, size_zyx=(1, 32, 32), slices=3)
    stored = given(scan(0), [], spec, (0, 7, 19))
    made = TrainingSet([stored], spec, Sampling(samples_per_case=12), None, batch_size=12, seed=0)
    image, _ = to_grid(scan(0), spec)
    expected = [image[[0, 0, 1]], image[[6, 7, 8]], image[[18, 19, 19]]]
    batch = made.batch(1, 0)
    which = {next(k for k in range(3) if torch.equal(s, expected[k])) for s in batch.image}
    assert which == {0, 1, 2}


def test_boxes_on_slices_move_with_the_image(given):
    spec = replace(FLAT, size_zyx=(1, 64, 64), labels=FLAT.labels[:1])
    volume, _ = ellipsoid(GEOMETRIES["upright"]((3, 48, 56)), (1, 25, 27), (9, 7.2, 5.4))
    box = (27 - 5.4, 25 - 7.2, 27 + 5.4, 25 + 7.2)
    stored = given(volume, [TruthBox(1, slice=1, box_px=box)], spec, (1,))
    made = TrainingSet([stored], spec, Sampling(samples_per_case=16), TURNED, batch_size=16, seed=1)
    batch = made.batch(1, 0)
    compared = 0
    for image, (boxes, labels) in zip(batch.image, batch.target, strict=True):
        assert labels.tolist() == [1]
        low, high = boxes[0].double().numpy().reshape(2, 2)
        if (low < 0.5).any() or (high > 62.5).any():
            continue
        compared += 1
        found = extent(image[:1])[[0, 1, 3, 4]]
        np.testing.assert_allclose(found, np.concatenate([low, high]), atol=1.5)
    assert compared >= 8


def test_every_single_image_comes_once_an_epoch(given):
    spec = replace(GREY, size_zyx=(1, 32, 32))
    geometry = Geometry.from_spacing((1, 20, 30), (1.0, 1.0, 1.0))
    box = TruthBox(1, slice=0, box_px=(2, 2, 8, 8))
    cases = [
        given(
            Volume(np.full((1, 20, 30), k, np.uint8), geometry), [box] if k % 2 else [], spec, (0,)
        )
        for k in range(6)
    ]
    made = TrainingSet(cases, spec, Sampling(), None, batch_size=3, seed=0)
    names = [name for step in range(made.steps_per_epoch) for name in made.batch(1, step).names]
    assert sorted(names) == [f"case-{k}" for k in range(6)]


def test_a_slice_has_its_own_boxes_alone():
    rows = np.array([[3, 1, 2, 5, 6, 1], [4, 1, 1, 2, 2, 2]], np.float32)
    boxes, labels = slice_targets(rows, 3, (1, 32, 32), "cpu")
    assert boxes.tolist() == [[1, 2, 5, 6]]
    assert labels.tolist() == [1]


NO_SAMPLING = {
    "label crop": (NODULES, {"crop": "label"}, "crop label is for label maps"),
    "patch of slices": (FLAT, {"patch_zyx": (1, 8, 8)}, "has whole ones: no patch, no crop"),
    "balance": (NODULES, {"balance": "over"}, "balance is for classifications"),
}


@pytest.mark.parametrize(("spec", "options", "words"), NO_SAMPLING.values(), ids=NO_SAMPLING)
def test_a_sampling_that_detections_cannot_have_is_named(spec, options, words):
    with pytest.raises(ValueError, match=words):
        Sampling(**options).check_fits(spec)
