"""nnU-Net v2 with fastmed's kernels: resampling to a shape, and logits to the scan's own labels."""

import sys
from contextlib import contextmanager
from functools import wraps

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.configuration import ANISO_THRESHOLD, default_num_processes
from nnunetv2.inference import export_prediction
from nnunetv2.preprocessing.resampling import default_resampling
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from fastmed.ops import overlap_counts, resample_argmax, window_resample

_RESAMPLE = default_resampling.resample_data_or_seg_to_shape
_CONVERT = export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape
_EXPORT = export_prediction.export_prediction_from_logits
_SLAB_VALUES = 1 << 26  # values of one-hot labels held at once
_TIE_SHIFT = 1e-4  # voxels: midway between two labels the nearest voxel's wins, as in nnU-Net


def resample_data_or_seg_to_shape(
    data, new_shape, current_spacing, new_spacing, is_seg=False, order=1, order_z=0,
    force_separate_z=False, separate_z_anisotropy_threshold=ANISO_THRESHOLD,
) -> np.ndarray:  # fmt: skip
    """nnU-Net's function of that name, for images of order 0 and 1 and for label maps.

    Images lie within 1e-4 of their range of nnU-Net's. Label maps of order 1 are, as there, the
    argmax of each label's interpolated indicator; they differ only where the two best indicators
    lie within 1e-3 of each other.

    Args:
        data: [C, X, Y, Z], array or CPU tensor; label maps hold integers of 16 bits.
        new_shape: three lengths; both grids span the same space, edge to edge.
        current_spacing, new_spacing: three each; they decide whether z is resampled apart.
        is_seg: label maps rather than images.
        order: 1 linear, 0 nearest. nnU-Net's plans ask for 3 (cubic) on images.
        order_z: 0, or for images also `order`; counts where z is resampled apart.
        force_separate_z, separate_z_anisotropy_threshold: as in nnU-Net.

    Raises:
        ValueError: the order named is none of these.
    """
    if not _has_kernel(is_seg, order, order_z):
        raise ValueError(
            f"order: expected 0 or 1, and order_z 0 or (images) the same; got {order} and {order_z}"
            "; change the plans' resampling_fn_*_kwargs or keep nnU-Net's own function"
        )
    volumes = data if isinstance(data, Tensor) else torch.from_numpy(np.ascontiguousarray(data))
    if tuple(volumes.shape[1:]) == tuple(new_shape):
        return volumes.numpy()
    matrix, size, pick = _plan(
        volumes.shape[1:], new_shape, current_spacing, new_spacing, order_z,
        force_separate_z, separate_z_anisotropy_threshold,
    )  # fmt: skip
    if is_seg and order == 1:
        return torch.stack([_labels(each, matrix, size) for each in volumes])[pick].numpy()
    mode = "linear" if order == 1 else "nearest"
    out = window_resample(list(volumes), matrix[None], size, mode=mode, dtype=volumes.dtype)
    return out[pick].numpy()


def convert_predicted_logits_to_segmentation_with_correct_shape(
    predicted_logits, plans_manager, configuration_manager, label_manager, properties_dict,
    return_probabilities=False, num_threads_torch=default_num_processes,
):  # fmt: skip
    """nnU-Net's function of that name in one pass, without a tensor of classes x scan voxels.

    Labels differ from nnU-Net's only where the two best logits lie within 1e-5 of each other,
    relatively (or, where they are float16, to which nnU-Net rounds again, within its precision).
    Regions are handled. Probabilities, and plans that resample logits otherwise than nnU-Net does
    by default, go to nnU-Net's own function.
    """
    plan = configuration_manager.configuration
    how = {"order": 3, "order_z": 0, "force_separate_z": False}
    how |= plan["resampling_fn_probabilities_kwargs"]
    by_name = plan["resampling_fn_probabilities"] == _RESAMPLE.__name__
    if return_probabilities or not by_name or how["order"] != 1 or how["order_z"] not in (0, 1):
        return _CONVERT(
            predicted_logits, plans_manager, configuration_manager, label_manager, properties_dict,
            return_probabilities, num_threads_torch,
        )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads_torch)
    try:
        spacing = [properties_dict["spacing"][axis] for axis in plans_manager.transpose_forward]
        shape = properties_dict["shape_after_cropping_and_before_resampling"]
        current = [*spacing[:1], *configuration_manager.spacing][-len(shape) :]
        logits = torch.as_tensor(predicted_logits)
        matrix, size, pick = _plan(
            logits.shape[1:], shape, current, spacing, how["order_z"], how["force_separate_z"],
            how.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD),
        )  # fmt: skip
        if label_manager.has_regions:
            labels = torch.zeros(size, dtype=torch.int16)
            for region, label in zip(logits, label_manager.regions_class_order, strict=True):
                labels[resample_argmax(region[None], matrix, size) > 0] = label
        else:
            labels = resample_argmax(logits, matrix, size)
        dtype = np.uint8 if len(label_manager.foreground_labels) < 255 else np.uint16
        whole = np.zeros(properties_dict["shape_before_cropping"], dtype)
        box = properties_dict["bbox_used_for_cropping"]
        whole = insert_crop_into_image(whole, labels[pick].numpy(), box)
        return whole.transpose(plans_manager.transpose_backward)
    finally:
        torch.set_num_threads(threads)


def export_prediction_from_logits(*arguments, **named) -> None:
    """nnU-Net's function of that name. Its spawned workers find this one, and so the kernels."""
    with fastmed_resampling():
        _EXPORT(*arguments, **named)


@contextmanager
def fastmed_resampling():
    """Inside, nnU-Net's plans, preprocessor, predictor and export use the functions above.

    Cubic resampling (order 3, which plans ask for on images) stays nnU-Net's own. Workers that
    nnU-Net spawns to export inherit this; those that it spawns to preprocess do not.
    """
    outermost = _swap(_THEIRS, _OURS)
    try:
        yield
    finally:
        if outermost:
            _swap(_OURS, _THEIRS)


@wraps(_RESAMPLE)
def _resample_or_leave(
    data, new_shape, spacing, new_spacing, is_seg=False, order=3, order_z=0, *rest, **named
):
    resample = resample_data_or_seg_to_shape if _has_kernel(is_seg, order, order_z) else _RESAMPLE
    return resample(data, new_shape, spacing, new_spacing, is_seg, order, order_z, *rest, **named)


_THEIRS = (_RESAMPLE, _CONVERT, _EXPORT)
_OURS = (
    _resample_or_leave,
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
)


def _swap(before: tuple, after: tuple) -> bool:
    """Exchanges functions in every loaded module of nnU-Net; False where none was found."""
    found = False
    for module in [each for name, each in sys.modules.items() if name.startswith("nnunetv2.")]:
        for old, new in zip(before, after, strict=True):
            if vars(module).get(old.__name__) is old:
                setattr(module, old.__name__, new)
                found = True
    for of in ("data", "seg", "probabilities"):
        vars(ConfigurationManager)[f"resampling_fn_{of}"].fget.cache_clear()
    return found


def _has_kernel(is_seg: bool, order: int, order_z: int) -> bool:
    return order in (0, 1) and order_z in ((0,) if is_seg else (0, order))


def _plan(shape, new_shape, spacing, new_spacing, order_z: int, separate, threshold: float):
    """Matrix and size for the kernel, and the index that picks the nearest slices of its output."""
    size, pick = [int(length) for length in new_shape], (...,)
    apart, axis = default_resampling.determine_do_sep_z_and_axis(
        separate, spacing, new_spacing, threshold
    )
    if apart and order_z == 0 and shape[axis] != size[axis]:
        places = shape[axis] / size[axis] * (np.arange(size[axis]) + 0.5) - 0.5
        rows = torch.from_numpy(np.floor(places + 0.5).astype(int).clip(0, shape[axis] - 1))
        pick = (..., rows, *[slice(None)] * (2 - int(axis)))
        size[axis] = shape[axis]
    steps = torch.tensor(shape, dtype=torch.float64) / torch.tensor(size)
    return torch.cat([torch.diag(steps), (steps[:, None] - 1) / 2], 1), size, pick


def _labels(labels: Tensor, matrix: Tensor, size: list[int]) -> Tensor:
    """Argmax of the interpolated indicators of each label, a slab of the first axis at a time."""
    whole = labels.to(torch.int16)
    low, high = int(whole.min()), int(whole.max())
    ranks = (whole - low)[None]
    present = overlap_counts(ranks, ranks, high - low + 1)[0, :, 1].nonzero()[:, 0] + low
    if len(present) == 1:
        return torch.full(size, low, dtype=labels.dtype)
    present = present.to(torch.int16)
    step, origin = float(matrix[0, 0]), float(matrix[0, 3])
    thickness = max(1, int(_SLAB_VALUES / (len(present) * whole[0].numel() * step)))
    out = torch.empty(size, dtype=labels.dtype)
    for first in range(0, size[0], thickness):
        last = min(first + thickness, size[0])
        start = max(int(np.floor(step * first + origin)), 0)
        stop = int(np.floor(step * (last - 1) + origin)) + 2
        indicators = (whole[start:stop] == present[:, None, None, None]).to(torch.float16)
        slab = matrix.clone()
        slab[0, 3] += step * first - start
        slab[:, 3] += _TIE_SHIFT
        winners = resample_argmax(indicators, slab, [last - first, *size[1:]])
        out[first:last] = torch.from_numpy(present.numpy()[winners.numpy()])
    return out
