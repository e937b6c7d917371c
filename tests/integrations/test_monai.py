"""The MONAI transform and metric give what MONAI's own give."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("monai", reason="needs `pip install -c constraints.txt --no-deps monai`")

from monai.data import Dataset, MetaTensor, list_data_collate
from monai.metrics import DiceMetric, compute_dice
from monai.networks import one_hot
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Flipd,
    Invertd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

from fastmed.integrations.monai import FastDiceMetric, ResampleWindowd, fast_dice

KEYS = ("image", "label")
# No voxel of these grids lies midway between two others, where nearest is a matter of rounding.
PIXDIM = (1.3741, 1.1372, 2.0317)
TURNED = np.array([[0.6, -0.48, 0.64], [0.8, 0.36, -0.48], [0.0, 0.8, 0.6]])
DIRECTIONS = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "permuted": np.eye(3)[[2, 0, 1]],
    "oblique": TURNED,
    "sheared": np.eye(3) + 0.2 * np.eye(3, k=2),
}


def scan(direction="oblique", spacing=(0.8, 0.9, 3.1), channels=1, shape=(23, 31, 17)):
    affine = np.eye(4)
    affine[:3, :3] = DIRECTIONS[direction] * spacing
    affine[:3, 3] = (10.0, -20.0, 33.3)
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(-1024, 2000, (channels, *shape), generator=generator).to(torch.int16)
    label = torch.randint(0, 5, (1, *shape), generator=generator).to(torch.uint8)
    meta = {"pixdim": np.array([1.0, *spacing, 0, 0, 0, 0])}
    place = {"affine": torch.as_tensor(affine)}
    return {"image": MetaTensor(image, meta=meta, **place), "label": MetaTensor(label, **place)}


def both(window=(-175.0, 250.0), scaled=(0.0, 1.0), **settings) -> tuple[Compose, Compose]:
    settings = {"pixdim": PIXDIM, "mode": ("bilinear", "nearest"), **settings}
    limits = dict(zip(("a_min", "a_max", "b_min", "b_max"), (*window, *scaled), strict=True))
    theirs = [Spacingd(KEYS, **settings), ScaleIntensityRanged("image", **limits, clip=True)]
    return Compose(theirs), Compose([ResampleWindowd(KEYS, **settings, **limits)])


def assert_same(ours, theirs, tolerance):
    for key in KEYS:
        assert ours[key].shape == theirs[key].shape
        assert ours[key].dtype == theirs[key].dtype == torch.float32
        torch.testing.assert_close(ours[key].affine, theirs[key].affine, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ours[key].pixdim, theirs[key].pixdim)
    np.testing.assert_allclose(ours["image"].meta["pixdim"], theirs["image"].meta["pixdim"])
    assert (ours["image"] - theirs["image"]).abs().max() < tolerance
    assert torch.equal(ours["label"].as_tensor(), theirs["label"].as_tensor())


@pytest.mark.parametrize("padding_mode", ["border", "zeros"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_pass_gives_what_spacing_and_scale_intensity_range_give(direction, padding_mode):
    theirs, ours = both(padding_mode=padding_mode)
    data = scan(direction)
    assert_same(ours(data), theirs(data), 1e-4)
    assert data["image"].dtype == torch.int16
    assert not data["image"].applied_operations


SETTINGS = {
    "another range": {"scaled": (-1.0, 2.0)},
    "diagonal": {"diagonal": True, "pixdim": (1.2741, 1.1372, 2.0317)},
    "one spacing kept": {"pixdim": (1.37, -1.0, 2.03)},
    "spacing within limits": {"min_pixdim": (0.5, 0.5, 0.5), "max_pixdim": (0.85, 0.85, 3.5)},
    "a change below MONAI's tolerance": {"pixdim": (0.8002, 0.9001, 3.1)},
    "affine from the shape": {"recompute_affine": True},
    "extent": {"scale_extent": True, "align_corners": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_spacingd_arguments_keep_their_meaning(name):
    theirs, ours = both(**SETTINGS[name])
    data = scan(channels=2)
    assert_same(ours(data), theirs(data), 3e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64], ids=str)
def test_any_voxel_dtype(dtype):
    theirs, ours = both(window=(0.0, 90.0))
    data = scan()
    data = {**data, "image": (data["image"] % 100).to(dtype)}
    assert_same(ours(data), theirs(data), 1e-4)


def test_two_dimensions():
    data = scan(shape=(23, 31, 1))
    data = {
        key: MetaTensor(data[key][..., 0], affine=torch.diag(torch.tensor([0.8, 0.9, 1.0])))
        for key in KEYS
    }
    theirs, ours = both(pixdim=PIXDIM[:2])
    for transform in (theirs, ours):
        assert transform(data)["image"].ndim == 3
    torch.testing.assert_close(ours(data)["image"], theirs(data)["image"], rtol=0, atol=1e-4)


def test_the_inverse_returns_to_the_original_grid():
    _, ours = both()
    data = scan()
    back = ours.inverse(ours(data))
    for key in KEYS:
        assert back[key].shape == data[key].shape
        assert not back[key].applied_operations
        torch.testing.assert_close(back[key].affine, data[key].affine)


@pytest.mark.parametrize("nearest", [True, False])
def test_invertd_gives_what_monai_gives(nearest):
    before = (Orientationd(KEYS, axcodes="RAS", labels=None), Flipd(KEYS, 0))
    predictions = []
    for transform in both():
        every = Compose([*before, *transform.transforms])
        data = every(scan("LPS"))
        data["pred"] = MetaTensor(
            torch.arange(3 * data["image"].numel()).reshape(3, *data["image"].shape[1:])
        )
        predictions.append(
            Invertd("pred", every, orig_keys="image", nearest_interp=nearest)(data)["pred"]
        )
    theirs, ours = predictions
    torch.testing.assert_close(ours.affine, theirs.affine)
    torch.testing.assert_close(ours.affine, scan("LPS")["image"].affine)
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor(), rtol=1e-5, atol=0.02)


def test_a_lazy_pipeline_and_a_data_loader_take_it():
    _, ours = both()
    lazily = Compose([Flipd(KEYS, 0), *ours.transforms], lazy=True)
    eagerly = Compose([Flipd(KEYS, 0), *ours.transforms])
    torch.testing.assert_close(lazily(scan())["image"], eagerly(scan())["image"])
    loader = DataLoader(
        Dataset([scan(), scan()], eagerly),
        batch_size=2,
        num_workers=1,
        collate_fn=list_data_collate,
    )
    (batch,) = loader
    torch.testing.assert_close(batch["image"][1].as_tensor(), eagerly(scan())["image"].as_tensor())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"window": (3.0, 3.0)}, "a_min"),
        ({"mode": (3, "nearest")}, "mode"),
        ({"mode": "bicubic"}, "mode"),
        ({"padding_mode": "reflection"}, "padding_mode"),
    ],
)
def test_what_it_cannot_do_is_named(settings, named):
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        both(**settings)


def test_on_a_real_scan(scans):
    folder = scans / "ct-torso-nifti"
    read = Compose([LoadImaged(KEYS, dtype=np.int16), EnsureChannelFirstd(KEYS)])
    data = read({"image": folder / "ct.nii.gz", "label": folder / "labels.nii.gz"})
    assert data["image"].dtype == torch.int16
    theirs, ours = both()
    assert_same(ours(data), theirs(data), 1e-4)


def label_maps(classes=4, empty=()):
    generator = torch.Generator().manual_seed(2)
    y_pred, y = torch.randint(0, classes, (2, 3, 1, 9, 10, 11), generator=generator)
    for item, label in empty:
        y[item][y[item] == label] = 0
    return y_pred, y


@pytest.mark.parametrize("ignore_empty", [True, False])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("reduction", ["none", "mean", "mean_batch", "sum", "mean_channel"])
def test_dice_is_monais(reduction, include_background, ignore_empty):
    y_pred, y = label_maps(empty=[(0, 2), (1, 1), (1, 3)])
    y_pred[1][y_pred[1] == 3] = 0
    settings = {"include_background": include_background, "ignore_empty": ignore_empty}
    named = {"reduction": reduction, **settings}
    metrics = DiceMetric(**named), FastDiceMetric(num_classes=4, **named)
    raw = metrics[0](one_hot(y_pred, 4), one_hot(y, 4)), metrics[1](y_pred.float(), y.byte())
    torch.testing.assert_close(raw[1], raw[0], equal_nan=True)
    torch.testing.assert_close(
        raw[0], compute_dice(y_pred, y, num_classes=4, **settings), equal_nan=True
    )
    expected = metrics[0].aggregate()
    torch.testing.assert_close(metrics[1].aggregate(), expected, equal_nan=True)
    torch.testing.assert_close(fast_dice(y_pred, y, 4, **named), expected, equal_nan=True)


@pytest.mark.parametrize("ignore_index", [1, 7])
def test_ignored_labels(ignore_index):
    y_pred, y = label_maps()
    y[0, :, :4] = 7
    theirs = compute_dice(y_pred, y, num_classes=4, ignore_index=ignore_index)
    ours = fast_dice(y_pred, y, 4, ignore_index=ignore_index)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_dice_names_what_is_wrong():
    y_pred, y = label_maps()
    with pytest.raises(ValueError, match=r"^y_pred: expected label maps"):
        fast_dice(one_hot(y_pred, 4), one_hot(y, 4), 4)
    with pytest.raises(ValueError, match=r"^num_classes: expected"):
        fast_dice(y_pred, y, 1)
    for wrong in ({}, {"num_classes": 2, "per_component": True}):
        with pytest.raises(ValueError, match=r"^num_classes: expected"):
            FastDiceMetric(**wrong)
