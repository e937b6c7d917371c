"""The nnU-Net functions give what nnU-Net's own give, called directly and through nnU-Net."""

import contextlib

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip(
    "nnunetv2.inference.export_prediction",
    reason="needs nnU-Net v2, without torchvision: make .venv/integrations-ready",
    exc_type=ImportError,
)

from nnunetv2.inference import export_prediction, predict_from_raw_data
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling import default_resampling
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fastmed.integrations import nnunet

THEIRS = default_resampling.resample_data_or_seg_to_shape
CONVERT = export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape
NAME = THEIRS.__name__
SHAPE = (11, 37, 29)
# Spacings before and after: near-isotropic; then one coarse axis, first, unchanged, or last.
SPACINGS = {
    "isotropic": ((1.0, 1.0, 1.0), (0.7, 1.3, 0.9)),
    "coarse x": ((5.0, 1.0, 1.0), (1.1, 0.83, 0.83)),
    "coarse x kept": ((5.0, 1.0, 1.0), (5.0, 0.83, 1.21)),
    "coarse z": ((1.0, 1.0, 5.0), (1.27, 0.79, 2.0)),
}


def images(channels=2, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(channels, *SHAPE)).astype(dtype)


def smooth(channels: int, shape=SHAPE) -> np.ndarray:
    """Logits whose argmax forms regions."""
    coarse = torch.randn(1, channels, 4, 7, 6, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=shape, mode="trilinear")[0].numpy()


def label_maps(values=(0, 1, 2, -1, 17)) -> np.ndarray:
    return np.array(values, np.float32)[smooth(len(values)).argmax(0)][None]


def shape_at(spacing, new_spacing, shape=SHAPE):
    return default_resampling.compute_new_shape(shape, spacing, new_spacing)


@pytest.mark.parametrize("separate", [None, False, True])
@pytest.mark.parametrize(("order", "order_z"), [(1, 0), (1, 1), (0, 0)])
@pytest.mark.parametrize("spacings", SPACINGS.values(), ids=SPACINGS)
def test_images(spacings, order, order_z, separate):
    data, shape = images(), shape_at(*spacings)
    settings = (data, shape, *spacings, False, order, order_z, separate)
    if separate and spacings is SPACINGS["isotropic"]:
        settings = (data, shape, (2.0, 1.0, 1.0), *settings[3:])
    ours, theirs = nnunet.resample_data_or_seg_to_shape(*settings), THEIRS(*settings)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.ptp(data))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, torch.float32])
def test_arrays_and_tensors_of_any_floating_dtype(dtype):
    data = torch.from_numpy(images()) if dtype is torch.float32 else images(dtype=dtype)
    settings = (data, (9, 30, 41), (1, 1, 1), (1, 1, 1), False, 1)
    ours, theirs = nnunet.resample_data_or_seg_to_shape(*settings), THEIRS(*settings)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2 if dtype is np.float16 else 1e-5)


def test_an_unchanged_shape_is_left_alone():
    data = images()
    same = nnunet.resample_data_or_seg_to_shape(data, SHAPE, (1, 1, 1), (2, 2, 2))
    assert np.array_equal(same, data)


def tied(labels: np.ndarray, new_shape) -> np.ndarray:
    """Voxels where the two best interpolated indicators are as good as equal."""
    values = np.unique(labels)
    indicators = torch.from_numpy((labels[0] == values[:, None, None, None]).astype(np.float64))
    scores = F.interpolate(indicators[None], size=tuple(new_shape), mode="trilinear")[0]
    best = scores.topk(2, dim=0).values
    return (best[0] - best[1] < 1e-3).numpy()


@pytest.mark.parametrize("slab", [1 << 26, 1 << 13], ids=["one slab", "many slabs"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("spacings", SPACINGS.values(), ids=SPACINGS)
def test_label_maps(spacings, order, slab, monkeypatch):
    monkeypatch.setattr(nnunet, "_SLAB_VALUES", slab)
    labels, shape = label_maps(), shape_at(*spacings)
    settings = (labels, shape, *spacings, True, order, 0, None)
    ours, theirs = nnunet.resample_data_or_seg_to_shape(*settings), THEIRS(*settings)
    assert ours.dtype == theirs.dtype
    # Of order 1 a few voxels lie where two labels are as good as equal; see the next test.
    assert np.mean(ours != theirs) <= 1e-3 * order


def test_label_maps_differ_on_ties_alone():
    labels, shape = label_maps()[:, :10, :36, :28], (5, 18, 14)
    settings = (labels, shape, (1, 1, 1), (2, 2, 2), True, 1)
    ours, theirs = nnunet.resample_data_or_seg_to_shape(*settings), THEIRS(*settings)
    ties = tied(labels, shape)
    assert ties.mean() > 0.1
    assert np.array_equal(ours[0][~ties], theirs[0][~ties])
    assert np.mean(ours != theirs) < ties.mean() / 20


@pytest.mark.parametrize(
    ("is_seg", "order", "order_z"), [(False, 3, 0), (False, 1, 3), (False, 0, 1), (True, 1, 1)]
)
def test_orders_without_a_kernel_are_refused(is_seg, order, order_z):
    with pytest.raises(ValueError, match=r"^order: expected"):
        nnunet.resample_data_or_seg_to_shape(
            images(), (9, 9, 9), (1, 1, 1), (2, 2, 2), is_seg, order, order_z
        )


def plans(spacing=(1.5, 1.2, 1.1), order=3, transpose=(2, 0, 1), probabilities=1) -> PlansManager:
    """Plans as nnU-Net 2.8 writes them, of what preprocessing and export read."""
    fixed = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "architecture": {},
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": NAME,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": order, **fixed},
        "resampling_fn_seg": NAME,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **fixed},
        "resampling_fn_probabilities": NAME,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": probabilities, **fixed},
    }
    return PlansManager(
        {
            "configurations": {"3d_fullres": configuration},
            "transpose_forward": list(transpose),
            "transpose_backward": [list(transpose).index(axis) for axis in range(3)],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": {}},
            "image_reader_writer": "SimpleITKIO",
        }
    )


LABELS = {"labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3},
    "regions_class_order": [1, 2, 3],
}


def export_arguments(spacing=(0.9, 1.3, 2.0), dataset=LABELS, heads=4, **plan):
    manager = plans(**plan)
    forward = manager.transpose_forward
    before = np.array((41, 33, 27))
    properties = {
        "spacing": list(spacing),
        "shape_before_cropping": tuple(int(before[axis]) for axis in forward),
        "shape_after_cropping_and_before_resampling": (20, 36, 30),
        "bbox_used_for_cropping": [[3, 23], [2, 38], [1, 31]],
    }
    configuration = manager.get_configuration("3d_fullres")
    logits = smooth(heads)
    return logits, manager, configuration, manager.get_label_manager(dataset), properties


EXPORTS = {
    "labels": {},
    "regions": {"dataset": REGIONS, "heads": 3},
    "coarse z": {"spacing": (0.9, 1.3, 5.0)},
    "not transposed": {"transpose": (0, 1, 2)},
    "2d configuration": {"spacing": (0.9, 1.3, 1.0), "spacing_2d": (1.2, 1.1)},
    "order 0, left to nnU-Net": {"probabilities": 0},
}


@pytest.mark.parametrize("kind", [np.float32, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXPORTS)
def test_logits_become_nnunets_labels(name, kind):
    made = dict(EXPORTS[name])
    in_plane = made.pop("spacing_2d", None)
    arguments = export_arguments(**made)
    if in_plane:
        arguments[2].configuration["spacing"] = list(in_plane)
    logits = arguments[0] if kind is np.float32 else torch.from_numpy(arguments[0]).to(kind)
    ours = nnunet.convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, *arguments[1:]
    )
    # In float32: nnU-Net rounds its interpolated values back to the dtype of the logits.
    exact = logits if kind is np.float32 else logits.float()
    theirs = CONVERT(exact, *arguments[1:])
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert len(np.unique(ours)) == 4
    assert np.mean(ours != theirs) < 1e-4


def test_probabilities_come_from_nnunet():
    arguments = export_arguments()
    convert = nnunet.convert_predicted_logits_to_segmentation_with_correct_shape
    for ours, theirs in zip(
        convert(*arguments, return_probabilities=True),
        CONVERT(*arguments, return_probabilities=True),
        strict=True,
    ):
        assert np.array_equal(ours, theirs)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    convert = nnunet.convert_predicted_logits_to_segmentation_with_correct_shape
    convert(*export_arguments(), num_threads_torch=1)
    assert torch.get_num_threads() == before


def preprocessed(order: int, segmented: bool):
    manager = plans(order=order)
    labels = np.abs(label_maps()) if segmented else None
    properties = {"spacing": [0.9, 1.3, 2.0]}
    run = DefaultPreprocessor(verbose=False).run_case_npy
    dataset = LABELS | {"channel_names": {"0": "CT"}}
    data = images(1) + 5
    return run(data, labels, properties, manager, manager.get_configuration("3d_fullres"), dataset)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("segmented", [True, False])
def test_the_preprocessor_uses_it(order, segmented, monkeypatch):
    theirs = preprocessed(order, segmented)
    calls = []
    resample = nnunet.resample_data_or_seg_to_shape
    monkeypatch.setattr(
        nnunet,
        NAME,
        lambda *arguments, **named: calls.append(arguments[5]) or resample(*arguments, **named),
    )
    with nnunet.fastmed_resampling():
        ours = preprocessed(order, segmented)
    assert calls == [1] * (2 if order == 1 else 1)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-4 * np.ptp(theirs[0]))
    assert np.array_equal(ours[1], theirs[1])


def test_the_switch_leaves_nothing_behind():
    def state():
        return (
            recursive_find_resampling_fn_by_name(NAME),
            default_resampling.resample_data_or_seg_to_shape,
            *(
                vars(place)[function]
                for place in (export_prediction, predict_from_raw_data)
                for function in (CONVERT.__name__, "export_prediction_from_logits")
            ),
        )

    before = state()
    with nnunet.fastmed_resampling():
        inside = state()
        with nnunet.fastmed_resampling():
            assert state() == inside
        assert state() == inside
    assert not set(inside) & set(before)
    assert [each.__name__ for each in inside] == [each.__name__ for each in before]
    with contextlib.suppress(KeyError), nnunet.fastmed_resampling():
        raise KeyError
    assert state() == before


def test_a_spawned_worker_exports_with_the_kernels(tmp_path):
    logits, manager, configuration, _, properties = export_arguments()
    properties["sitk_stuff"] = {
        "spacing": (2.0, 1.3, 0.9),
        "origin": (0.0, 0.0, 0.0),
        "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    }
    dataset = LABELS | {"file_ending": ".nii.gz"}
    with nnunet.fastmed_resampling():
        export = predict_from_raw_data.export_prediction_from_logits
        assert export.__module__ == "fastmed.integrations.nnunet"
        with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(
                export,
                (logits, properties, configuration, manager, dataset, str(tmp_path / "case")),
            )
    written = np.asarray(nibabel.load(tmp_path / "case.nii.gz").dataobj).T
    labels = manager.get_label_manager(LABELS)
    expected = CONVERT(logits, manager, configuration, labels, properties)
    assert np.mean(written != expected) < 1e-4


def test_on_a_real_scan(scans):
    folder = scans / "ct-torso-nifti"
    scan = np.asarray(nibabel.load(folder / "ct.nii.gz").dataobj, np.float32)[None]
    labels = np.asarray(nibabel.load(folder / "labels.nii.gz").dataobj, np.int16)[None]
    spacings = (3.0, 3.0, 3.0), (2.03, 2.31, 2.47)
    shape = shape_at(*spacings, scan.shape[1:])
    ours = nnunet.resample_data_or_seg_to_shape(scan, shape, *spacings)
    theirs = THEIRS(scan, shape, *spacings, False, 1)
    assert np.abs(ours - theirs).max() < 1e-4 * np.ptp(scan)
    kept = np.where(labels > 6, 0, labels)
    ours = nnunet.resample_data_or_seg_to_shape(kept, shape, *spacings, True, 1)
    theirs = THEIRS(kept, shape, *spacings, True, 1)
    differ = ours != theirs
    assert not (differ[0] & ~tied(kept, shape)).any()
    assert differ.mean() < 1e-3
