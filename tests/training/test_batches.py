"""Batches: what trains is what inference sees, drawn by seed alone, paired with its label."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import CHEST, LIVER, SLICES, organ, scan

import fastmed.training.batches as batches_module
from fastmed.geometry import Geometry
from fastmed.preprocessing import to_grid
from fastmed.spec import Spec
from fastmed.training.augment import Augmentation
from fastmed.training.batches import Batch, Sampling, TrainingSet
from fastmed.training.cases import Case
from fastmed.training.stored_case import StoredCase, prepare
from fastmed.volume import Volume

STRONG = Augmentation(
    rotation_p=1.0, zoom_p=1.0, shift_p=1.0, noise_p=1.0, brightness_p=1.0, contrast_p=1.0,
    elastic_p=0.5, window_p=1.0, window_jitter=0.1, flip_zyx=(True, True, True),
)  # fmt: skip


def oblique(shape, degrees: float) -> Geometry:
    """A grid turned about z and flipped along x, with spacings of no round numbers."""
    turn = np.radians(degrees)
    steps = np.array(
        [
            (0, 0, 2.4999),
            (-1.3717 * np.sin(turn), 1.3717 * np.cos(turn), 0),
            (-1.3717 * np.cos(turn), -1.3717 * np.sin(turn), 0),
        ]
    )
    return Geometry.from_axes(shape, (101.3, -33.77, 12.1), steps)


def tilted(shape) -> Geometry:
    return Geometry.from_axes(
        shape, (-20.0, -30.0, 100.0), [(0, 0.43, 2.5), (0, 1.5, -0.26), (1.5, 0, 0)]
    )


GEOMETRIES = {
    "upright": lambda shape: Geometry.from_spacing(shape, (2.5, 1.5, 1.5)),
    "uneven": lambda shape: Geometry.from_spacing(shape, (1.2345, 0.7421, 0.7421), (-9.9, 3, 7)),
    "oblique": lambda shape: oblique(shape, 17.0),
    "tilted": tilted,
}


@pytest.fixture
def given(monkeypatch):
    """Cases from volumes in memory: given(volume, labels=..., ...) -> StoredCase."""
    volumes, masks = {}, {}
    monkeypatch.setattr(
        "fastmed.training.stored_case.read_image", lambda case, spec: volumes[case.name]
    )
    monkeypatch.setattr(
        "fastmed.training.stored_case.read_label", lambda case, spec: (masks[case.name], None)
    )

    def make(volume: Volume, labels=None, *, spec: Spec = LIVER, crop="scan", target=None, name=""):
        name = name or f"case-{len(volumes)}"
        volumes[name], masks[name] = volume, labels
        label = None if labels is None else Path("label")
        return prepare(Case(name, name, Path("image"), label, target), spec, {}, crop)

    return make


def liver_cases(given, count=4) -> list[StoredCase]:
    return [given(scan(seed), organ()) for seed in range(count)]


def training_set(cases, augmentation=None, *, spec=LIVER, batch_size=2, seed=0, **sampling):
    return TrainingSet(
        cases, spec, Sampling(**sampling), augmentation, batch_size=batch_size, seed=seed
    )


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.target, b.target) and a.names == b.names


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
@pytest.mark.parametrize("crop", ["scan", "label", (8, 20)])
def test_unaugmented_patches_are_pieces_of_inferences_grid_bit_by_bit(name, dtype, crop, given):
    shape = (37, 71, 83)
    rng = np.random.default_rng(5)
    voxels = rng.integers(0, 255, shape)
    voxels = voxels + rng.random(shape) if dtype == "float32" else voxels
    volume = Volume(voxels.astype(dtype), GEOMETRIES[name](shape), 1.7, -130.3)
    spec = replace(LIVER, spacing_mm_zyx=(2.9, 1.9, 2.1))
    labels = organ(shape, first=(12, 30, 40), end=(18, 44, 52))
    stored = given(volume, labels, spec=spec, crop=crop)
    image, grid = to_grid(volume, spec)
    assert grid == stored.grid
    made = training_set([stored], spec=spec, samples_per_case=12, batch_size=12, foreground=0.5)
    batch = made.batch(1, 0)
    starts = set()
    for index in range(12):
        matrix, _ = made._sample(stored, 1, index)
        start = np.linalg.solve(stored.matrix[:, :3], matrix[:, 3] - stored.matrix[:, 3])
        start = np.rint(start).astype(int)
        starts.add(tuple(start))
        piece = tuple(slice(a, a + n) for a, n in zip(start, spec.tile_zyx, strict=True))
        assert torch.equal(batch.image[index, 0], image[piece])
    assert len(starts) > 6


@pytest.mark.parametrize("name", GEOMETRIES)
def test_an_unaugmented_classification_sees_inferences_grid_bit_by_bit(name, given):
    cases, images = [], []
    for seed in range(3):
        shape = (20 + seed, 30, 40)
        voxels = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
        volume = Volume(voxels, GEOMETRIES[name](shape))
        cases.append(given(volume, spec=CHEST, target=seed % 2))
        images.append(to_grid(volume, CHEST)[0])
    batch = training_set(cases, spec=CHEST, batch_size=3).batch(1, 0)
    assert batch.image.shape == (3, 1, 16, 16, 16)
    assert batch.target.dtype == torch.int64
    for image, target, case in zip(batch.image, batch.target, batch.names, strict=True):
        index = [c.case.name for c in cases].index(case)
        assert torch.equal(image[0], images[index])
        assert target == index % 2


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.3)])
def test_an_image_of_a_fixed_size_is_inferences_bit_by_bit(spacing, given):
    spec = replace(SLICES, spacing_mm_zyx=None, size_zyx=(1, 32, 32), tile_zyx=(1, 32, 32))
    pixels = np.random.default_rng(0).integers(0, 255, (1, 41, 53)).astype(np.uint8)
    volume = Volume(pixels, Geometry.from_spacing(pixels.shape, (1.0, *spacing)))
    case = given(volume, np.where(pixels > 99, 255, 0).astype(np.uint8), spec=spec)
    batch = training_set([case], spec=spec, batch_size=1).batch(1, 0)
    assert torch.equal(batch.image[0], to_grid(volume, spec)[0])


def chest() -> Volume:
    """A block of tissue in air with two lungs."""
    hu = np.full((40, 80, 100), -1000, np.int16)
    hu[:, 10:70, 10:90] = 40
    hu[6:34, 20:60, 20:45] = hu[6:34, 20:60, 55:80] = -850
    hu += np.random.default_rng(0).integers(-20, 20, hu.shape).astype(np.int16)
    return Volume(hu, oblique(hu.shape, 5.0))


def test_the_lungs_are_cut_as_inference_cuts_them(given):
    spec = replace(CHEST, region="lungs")
    case = given(chest(), spec=spec, target=1)
    image, grid = to_grid(chest(), spec)
    assert case.grid == grid
    batch = training_set([case], spec=spec, batch_size=1).batch(1, 0)
    assert torch.equal(batch.image[0, 0], image)
    whole_mm3 = chest().voxels.size * chest().geometry.voxel_volume_mm3
    assert 16**3 * grid.voxel_volume_mm3 < 0.5 * whole_mm3
    assert torch.equal(to_grid(case.volume(), spec)[0], image)


def test_one_call_resamples_the_images_of_a_batch_and_one_the_labels(given, monkeypatch):
    calls = []
    resample = batches_module.window_resample

    def counted(volume, matrix, size, **options):
        calls.append((len(volume), options.get("mode", "linear"), matrix))
        return resample(volume, matrix, size, **options)

    monkeypatch.setattr(batches_module, "window_resample", counted)
    training_set(liver_cases(given), STRONG, batch_size=4).batch(1, 0)
    assert [(count, mode) for count, mode, _ in calls] == [(4, "linear"), (4, "nearest")]
    assert torch.equal(calls[0][2], calls[1][2])


def test_the_label_follows_the_image_through_every_augmentation(given):
    labels = organ((40, 48, 56), first=(12, 14, 16), end=(28, 34, 40))
    volume = Volume(
        (labels.astype(np.int16) * 400 - 160).astype(np.int16),
        Geometry.from_spacing(labels.shape, (3.0, 2.0, 2.0)),
    )
    case = given(volume, labels)
    quiet = replace(STRONG, noise_p=0.0, brightness_p=0.0, contrast_p=0.0, window_p=0.0)
    made = training_set([case], quiet, batch_size=1, patch_zyx=(32, 40, 48))
    plain = training_set([case], None, batch_size=1, patch_zyx=(32, 40, 48)).batch(1, 0)
    moved = 0
    for epoch in range(1, 9):
        batch = made.batch(epoch, 0)
        assert set(batch.target.unique().tolist()) == {0, 1}
        assert batch.target.dtype == torch.uint8
        apart = ((batch.image[:, 0] > 0.5) != batch.target.bool()).float().mean()
        assert apart < 0.01
        moved += int((batch.target != plain.target).float().mean() > 0.02)
    assert moved == 8


def test_labels_are_never_interpolated(given):
    labels = np.random.default_rng(0).choice([0, 2], (20, 24, 28)).astype(np.uint8)
    spec = replace(LIVER, labels=(*LIVER.labels, replace(LIVER.labels[0], value=2, name="b")))
    case = given(scan(), labels, spec=spec)
    batch = training_set([case], STRONG, spec=spec, batch_size=1).batch(1, 0)
    assert set(batch.target.unique().tolist()) == {0, 2}


def test_validation_is_not_augmented_also_from_the_same_list(given):
    cases = liver_cases(given)
    volume = cases[1].volume()
    train = training_set(cases, STRONG, batch_size=1, foreground=0.0)
    val = training_set(cases[1:2], None, batch_size=1, foreground=0.0)
    list(train.epoch(1))
    for epoch in (1, 2):
        batch = val.batch(epoch, 0)
        grid, _ = to_grid(volume, LIVER)
        tile = LIVER.tile_zyx
        windows = grid.unfold(0, tile[0], 1).unfold(1, tile[1], 1).unfold(2, tile[2], 1)
        assert (windows == batch.image[0, 0]).all(dim=(3, 4, 5)).any()


def test_a_batch_depends_on_seed_epoch_and_step_alone(given):
    cases = liver_cases(given)
    made = training_set(cases, STRONG)
    first = made.batch(1, 1)
    made.batch(2, 0)
    torch.manual_seed(99)
    np.random.seed(99)
    assert same(first, made.batch(1, 1))
    assert same(first, training_set(cases, STRONG).batch(1, 1))
    assert not same(first, made.batch(2, 1))
    assert not same(first, training_set(cases, STRONG, seed=1).batch(1, 1))


def test_each_sample_of_a_case_and_each_epoch_is_varied_anew(given):
    made = training_set(liver_cases(given, 1), STRONG, samples_per_case=3, batch_size=3)
    images = [image for epoch in (1, 2) for image in made.batch(epoch, 0).image]
    for k, image in enumerate(images):
        assert not any(torch.equal(image, other) for other in images[:k])


def test_the_global_random_states_stay_untouched(given):
    made = training_set(liver_cases(given), STRONG)
    numpy_state = np.random.get_state()[1].copy()
    torch_state = torch.get_rng_state()
    list(made.epoch(1))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_ranks_see_together_what_one_process_would(given):
    made = training_set(liver_cases(given), STRONG, batch_size=4)
    whole = made.batch(3, 0)
    shares = [made.batch(3, 0, rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([share.image for share in shares]), whole.image)
    assert torch.equal(torch.cat([share.target for share in shares]), whole.target)
    assert shares[0].names + shares[1].names == whole.names
    with pytest.raises(ValueError, match="rank 0 of 3: expected equal shares"):
        made.batch(3, 0, rank=0, world=3)


def test_reading_ahead_gives_the_same_batches_from_any_step_on(given):
    made = training_set(liver_cases(given), STRONG, batch_size=1)
    ahead = list(made.epoch(2, first_step=1))
    assert len(ahead) == made.steps_per_epoch - 1
    for step, batch in enumerate(ahead, start=1):
        assert same(batch, made.batch(2, step))


def test_an_epoch_has_every_case_and_wraps_round_to_whole_batches(given):
    made = training_set(liver_cases(given, 5), samples_per_case=2, batch_size=4)
    assert made.steps_per_epoch == 3
    names = [name for batch in made.epoch(1) for name in batch.names]
    counts = [names[:10].count(f"case-{k}") for k in range(5)]
    assert counts == [2] * 5
    assert names[10:] == names[:2]
    again = [name for batch in made.epoch(2) for name in batch.names]
    assert again != names


def test_an_error_of_the_thread_reaches_the_one_who_trains(given, monkeypatch):
    made = training_set(liver_cases(given), batch_size=1)
    monkeypatch.setattr(made, "_made", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(made.epoch(1))


def test_leaving_an_epoch_early_ends_its_thread(given):
    made = training_set(liver_cases(given), batch_size=1)
    batches = made.epoch(1)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "fastmed-batches"]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_patches_centre_on_labels_as_often_as_asked(share, given):
    labels = organ((40, 60, 70), first=(30, 50, 60), end=(31, 51, 61))
    volume = scan(shape=(40, 60, 70), spacing=(3.0, 2.0, 2.0))
    made = training_set(
        [given(volume, labels)], samples_per_case=40, batch_size=40, foreground=share
    )
    hits = made.batch(1, 0).target.flatten(1).any(dim=1).float().mean()
    assert hits == 1.0 if share else hits < 0.5


def test_each_label_is_centred_on_as_often(given):
    labels = organ((40, 60, 70), first=(2, 2, 2), end=(12, 40, 60))
    labels[36, 50, 60] = 2
    spec = replace(LIVER, labels=(*LIVER.labels, replace(LIVER.labels[0], value=2, name="b")))
    volume = scan(shape=(40, 60, 70), spacing=(3.0, 2.0, 2.0))
    case = given(volume, labels, spec=spec)
    made = training_set([case], spec=spec, samples_per_case=100, batch_size=100, foreground=1.0)
    with_b = (made.batch(1, 0).target == 2).flatten(1).any(dim=1).float().mean()
    assert 0.35 < with_b < 0.65


def test_patches_lie_within_the_crop(given):
    volume = scan(shape=(60, 40, 44), spacing=(3.0, 2.0, 2.0))
    labels = np.zeros((60, 40, 44), np.uint8)
    labels[20:40] = 1
    case = given(volume, labels, crop=(20, 39))
    made = training_set([case], samples_per_case=30, batch_size=30, foreground=0.0)
    assert made.batch(1, 0).target.all()


def test_a_patch_larger_than_the_scan_repeats_its_edge(given):
    case = given(scan(spacing=(3.0, 2.0, 2.0)), organ())
    batch = training_set([case], batch_size=1, patch_zyx=(32, 32, 32)).batch(1, 0)
    grid, _ = to_grid(case.volume(), LIVER)
    assert torch.equal(batch.image[0, 0, :20, :24, :28], grid)
    assert torch.equal(batch.image[0, 0, 25, :24, :28], grid[19])


def test_types_that_differ_within_a_batch_keep_their_values(given):
    cases = [given(scan(0), organ(), name="int"), given(scan(1, dtype=np.float32), organ())]
    half = scan(2)
    cases.append(given(replace(half, voxels=half.voxels.astype(np.float32) + 0.5), organ()))
    alone = [
        training_set([case], spec=LIVER, batch_size=1, patch_zyx=(17, 18, 21)).batch(1, 0)
        for case in cases
    ]
    batch = training_set(cases, batch_size=3, patch_zyx=(17, 18, 21)).batch(1, 0)
    for image, name in zip(batch.image, batch.names, strict=True):
        own = next(one for one in alone if one.names[0] == name)
        torch.testing.assert_close(image, own.image[0], atol=1e-6, rtol=0)


def test_scans_with_and_without_a_fill_value_share_a_batch(given):
    """A tilted scan is surrounded by air, an upright one repeats its edge, in one call."""
    cases = [
        given(Volume(scan().voxels, tilted((20, 24, 28))), organ(), name="tilted"),
        given(scan(1), organ(), name="upright"),
    ]
    assert (cases[0].fill, cases[1].fill) == (-1024.0, None)
    turned = replace(STRONG, noise_p=0.0, elastic_p=0.0)
    patch = (16, 24, 32)
    mixed = training_set(cases, turned, batch_size=2, patch_zyx=patch)
    for step, name in enumerate(mixed.batch(1, 0).names):
        index = [case.case.name for case in cases].index(name)
        matrix, drawn = mixed._sample(cases[index], 1, step)
        alone = mixed._made([cases[index]], [(matrix, drawn)])
        torch.testing.assert_close(alone.image[0], mixed.batch(1, 0).image[step], atol=1e-5, rtol=0)


def test_2d_patches_are_slices(given):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 40, 50)).astype(np.uint8)
    mask = np.where(pixels > 128, 255, 0).astype(np.uint8)
    volume = Volume(pixels, Geometry.from_spacing((1, 40, 50), (1.0, 1.0, 1.0)))
    case = given(volume, mask, spec=SLICES)
    batch = training_set([case], spec=SLICES, batch_size=1).batch(1, 0)
    assert batch.image.shape == (1, 1, 16, 16)
    assert batch.target.shape == (1, 16, 16)
    assert torch.equal(batch.image[:, 0] > 128 / 255 + 1e-3, batch.target.bool())
    augmented = training_set([case], STRONG, spec=SLICES, batch_size=1).batch(1, 0)
    assert augmented.image.shape == (1, 1, 16, 16)
    assert set(augmented.target.unique().tolist()) == {0, 1}


def test_augmented_images_stay_between_0_and_1(given):
    for batch in training_set(liver_cases(given), STRONG).epoch(1):
        assert batch.image.dtype == torch.float32
        assert 0 <= batch.image.min() < batch.image.max() <= 1


def test_the_window_jitters_per_sample(given):
    voxels = np.full((20, 24, 28), 40, np.int16)
    case = given(Volume(voxels, Geometry.from_spacing(voxels.shape, (3.0, 2.0, 2.0))), organ())
    jitter = replace(
        STRONG, noise_p=0.0, brightness_p=0.0, contrast_p=0.0, elastic_p=0.0, window_p=1.0
    )
    batch = training_set([case], jitter, samples_per_case=8, batch_size=8).batch(1, 0)
    levels = batch.image.flatten(1).mean(dim=1)
    assert len(set(levels.tolist())) == 8
    assert ((levels - 0.5).abs() < 0.1).all()


def test_balance_repeats_the_small_class(given):
    pytest.importorskip("fastmed.training.balance")
    cases = [given(scan(k), spec=CHEST, target=int(k == 0)) for k in range(8)]
    made = training_set(cases, spec=CHEST, batch_size=2, balance="over")
    targets = torch.cat([batch.target for batch in made.epoch(1)])
    assert targets.float().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda cases: training_set([]), "expected at least 1"),
        (lambda cases: training_set(cases, balance="over"), "balance is for classifications"),
        (lambda cases: training_set(cases, spec=CHEST), "case-0: has no truth"),
        (lambda cases: training_set(cases).batch(1, 2), "step 2: an epoch has 2"),
        (lambda cases: Sampling(crop=(9, 3)), "crop"),
        (lambda cases: Sampling(crop="lung"), "crop"),
        (lambda cases: Sampling(foreground=1.5), "foreground"),
        (lambda cases: Sampling(patch_zyx=(0, 8, 8)), "patch_zyx"),
        (lambda cases: Sampling(samples_per_case=0), "samples_per_case"),
        (lambda cases: Sampling(balance="some"), "balance"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, message, given):
    with pytest.raises(ValueError, match=message):
        make(liver_cases(given))
