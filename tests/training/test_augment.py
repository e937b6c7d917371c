"""Augmentation: what may be drawn, where it puts things, and what it does to image and label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmed.training.augment import (
    NOTHING,
    Augmentation,
    Drawn,
    bend,
    draw,
    patch_matrix,
    shade,
)

PATCH = (12, 16, 20)
SPACING = (3.0, 1.5, 1.0)
OFF = Augmentation(
    rotation_p=0.0, zoom_p=0.0, shift_p=0.0, window_p=0.0, noise_p=0.0, brightness_p=0.0,
    contrast_p=0.0, elastic_p=0.0,
)  # fmt: skip


def drawn_many(augmentation: Augmentation, dimensions: int = 3, count: int = 400) -> list[Drawn]:
    return [
        draw(augmentation, np.random.default_rng(seed), PATCH, dimensions) for seed in range(count)
    ]


def test_defaults_are_the_documented_ones():
    a = Augmentation()
    assert (a.rotation_degrees, a.rotation_p) == (10.0, 0.5)
    assert (a.zoom, a.zoom_p) == ((0.9, 1.1), 0.5)
    assert (a.shift_voxels, a.shift_p) == (5.0, 0.5)
    assert (a.noise, a.noise_p) == (0.05, 0.3)
    assert (a.brightness, a.brightness_p) == (a.contrast, a.contrast_p) == ((0.9, 1.1), 0.3)
    assert a.elastic_p == 0.2
    assert a.flip_zyx == (False, False, False)


def test_one_generator_draws_the_same_twice():
    first, second = drawn_many(Augmentation(), count=20), drawn_many(Augmentation(), count=20)
    for a, b in zip(first, second, strict=True):
        assert (a.linear == b.linear).all()
        assert (a.shift_voxels == b.shift_voxels).all()
        assert (a.noise, a.noise_seed, a.contrast) == (b.noise, b.noise_seed, b.contrast)


# Field of Augmentation: how often it is seen in what is drawn.
SHARES = {
    "rotation_p": lambda d: bool(np.abs(d.linear - np.diag(np.diag(d.linear))).max() > 0),
    "zoom_p": lambda d: abs(np.linalg.det(d.linear) - 1) > 1e-9,
    "shift_p": lambda d: bool(d.shift_voxels.any()),
    "window_p": lambda d: any(d.window),
    "noise_p": lambda d: d.noise > 0,
    "brightness_p": lambda d: d.brightness != 1,
    "contrast_p": lambda d: d.contrast != 1,
    "elastic_p": lambda d: d.elastic is not None,
}


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_each_kind_happens_as_often_as_asked_and_no_other_does(name, p):
    augmentation = replace(OFF, window_jitter=0.1, **{name: p})
    samples = drawn_many(augmentation)
    for other, seen in SHARES.items():
        share = np.mean([seen(sample) for sample in samples])
        assert share == pytest.approx(p if other == name else 0.0, abs=0.08 if 0 < p < 1 else 0)


def test_what_is_drawn_stays_within_its_ranges():
    samples = drawn_many(replace(Augmentation(), rotation_p=1.0, zoom_p=1.0, shift_p=1.0))
    factors = [np.cbrt(1 / np.linalg.det(d.linear)) for d in samples]
    assert 0.9 <= min(factors) < 0.91
    assert 1.09 < max(factors) <= 1.1
    shifts = np.abs([d.shift_voxels for d in samples])
    assert 4.9 < shifts.max() <= 5.0
    turns = []
    for d in samples:
        turn = d.linear / np.cbrt(np.linalg.det(d.linear))
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        turns.append(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    assert 12 < max(turns) < 10 * np.sqrt(3) + 1


def test_2d_turns_and_moves_in_the_plane_alone():
    augmentation = replace(Augmentation(), rotation_p=1.0, zoom_p=1.0, shift_p=1.0, elastic_p=1.0)
    for d in drawn_many(augmentation, dimensions=2, count=50):
        assert d.linear[0].tolist() == [1, 0, 0]
        assert d.linear[:, 0].tolist() == [1, 0, 0]
        assert abs(d.linear[1, 2]) > 0
        assert d.shift_voxels[0] == 0
        assert not d.elastic[0].any()
        assert d.elastic[1:].any()


def test_flips_happen_on_the_axes_asked_for():
    samples = drawn_many(replace(OFF, flip_zyx=(False, True, False)))
    signs = np.array([np.diag(d.linear) for d in samples])
    assert (signs[:, [0, 2]] == 1).all()
    assert np.mean(signs[:, 1] == -1) == pytest.approx(0.5, abs=0.08)


def test_nothing_drawn_is_a_shift_by_whole_voxels():
    matrix = patch_matrix((3, 4, 5), PATCH, SPACING, NOTHING)
    assert matrix.tolist() == [[1, 0, 0, 3], [0, 1, 0, 4], [0, 0, 1, 5]]


def test_turning_zooming_and_flipping_keep_the_centre_and_act_in_mm():
    d = replace(drawn_many(replace(OFF, rotation_p=1.0))[3], shift_voxels=np.zeros(3))
    matrix = patch_matrix((3, 4, 5), PATCH, SPACING, d)
    centre = (np.array(PATCH) - 1) / 2
    np.testing.assert_allclose(matrix[:, :3] @ centre + matrix[:, 3], np.add(centre, (3, 4, 5)))
    in_mm = np.array(SPACING)[:, None] * matrix[:, :3] / SPACING
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)


def test_zooming_in_makes_things_larger():
    d = drawn_many(replace(OFF, zoom_p=1.0, zoom=(2.0, 2.0)))[0]
    assert np.diag(patch_matrix((0, 0, 0), PATCH, SPACING, d)).tolist() == [0.5, 0.5, 0.5]


def ball(shape=(32, 40, 48)) -> torch.Tensor:
    axes = [torch.arange(n) - (n - 1) / 2 for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return (z * z + y * y + x * x).sqrt()


def test_elastic_deformation_moves_image_and_label_together():
    distance = ball()
    image = (1 - distance / 40).clamp(0, 1)[None].clone()
    labels = (distance < 10).to(torch.uint8)[None].clone()
    before, labels_before = image.clone(), labels.clone()
    rng = np.random.default_rng(0)
    bend(image, labels, [draw(replace(OFF, elastic_p=1.0), rng, image.shape[1:], 3)])
    assert not torch.equal(labels, labels_before)
    assert not torch.equal(image, before)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == {0, 1}
    from_image = image > 1 - 10 / 40
    assert (from_image != labels.bool()).float().mean() < 0.01
    assert (labels_before != labels).float().mean() > 0.01


def test_elastic_deformation_touches_only_the_samples_that_drew_it():
    image = torch.rand(2, 1, 24, 24)
    before = image.clone()
    rng = np.random.default_rng(0)
    bend(image, None, [NOTHING, draw(replace(OFF, elastic_p=1.0), rng, (1, 24, 24), 2)])
    assert torch.equal(image[0], before[0])
    assert not torch.equal(image[1], before[1])


def test_shading_does_what_it_says_and_stays_in_range():
    image = torch.linspace(0.2, 0.6, 100).reshape(1, 4, 5, 5)
    for change, expected in (
        ({"brightness": 1.1}, image * 1.1),
        ({"contrast": 0.5}, (image - image.mean()) * 0.5 + image.mean()),
        ({"brightness": 3.0}, (image * 3).clamp(0, 1)),
        ({}, image),
    ):
        shaded = image.clone()
        shade(shaded, [replace(NOTHING, **change)])
        torch.testing.assert_close(shaded, expected)


def test_noise_has_its_width_and_its_own_generator():
    noisy, again, other = (torch.full((1, 16, 32, 32), 0.5) for _ in range(3))
    state = torch.get_rng_state()
    shade(noisy, [replace(NOTHING, noise=0.05, noise_seed=7)])
    shade(again, [replace(NOTHING, noise=0.05, noise_seed=7)])
    shade(other, [replace(NOTHING, noise=0.05, noise_seed=8)])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("rotation_p", 1.5),
        ("zoom", (1.1, 0.9)),
        ("zoom", (0.0, 1.0)),
        ("noise", -0.1),
        ("window_jitter", 0.6),
        ("flip_zyx", (True, False)),
        ("elastic_spacing", 1),
        ("contrast", (0.9,)),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(entry, value):
    with pytest.raises(ValueError, match=entry):
        Augmentation(**{entry: value})
