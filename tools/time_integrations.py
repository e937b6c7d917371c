"""Times fastmed inside MONAI and nnU-Net v2: python tools/time_integrations.py [--scan FOLDER]

FOLDER holds ct.nii.gz and labels.nii.gz; without it the scan is a made one of
512 x 512 x 200 voxels. Prints the seconds of each step by the package's own functions and by
fastmed's (median of --repeats), and how far the results lie apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

WINDOW = (-175.0, 250.0)
CLASSES = 8  # of labels and logits


def scan_of(folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int16 [X, Y, Z] voxels, uint8 labels of CLASSES classes, and the affine."""
    if folder is not None:
        import nibabel

        file = nibabel.load(folder / "ct.nii.gz")
        labels = np.asarray(nibabel.load(folder / "labels.nii.gz").dataobj)
        labels = np.where(labels < CLASSES, labels, 0).astype(np.uint8)
        return np.asarray(file.dataobj).astype(np.int16), labels, file.affine
    shape = (512, 512, 200)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, CLASSES, 16, 16, 8, generator=generator)
    labels = torch.empty(shape, dtype=torch.uint8)
    for first in range(0, shape[0], 64):  # the whole tensor of classes would take 1.7 GB
        place = (torch.arange(first, first + 64) + 0.5) / shape[0] * 16 - 0.5
        low = place.floor().clamp(0, 14).long()
        weight = (place - low).clamp(0, 1)[:, None, None]
        rows = coarse[:, :, low] * (1 - weight) + coarse[:, :, low + 1] * weight
        labels[first : first + 64] = F.interpolate(rows, (64, *shape[1:]), mode="trilinear")[
            0
        ].argmax(0)
    voxels = labels.to(torch.int16) * 60 - 200
    voxels += torch.randint(-20, 20, shape, generator=generator, dtype=torch.int16)
    return voxels.numpy(), labels.numpy(), np.diag([0.75, 0.75, 1.25, 1.0])


def monai_steps(voxels, labels, affine, spacing):
    from monai.data import MetaTensor
    from monai.metrics import compute_dice
    from monai.transforms import Compose, ScaleIntensityRanged, Spacingd

    from fastmed.integrations.monai import ResampleWindowd, fast_dice

    place = {"affine": torch.as_tensor(affine)}
    data = {
        "image": MetaTensor(torch.from_numpy(voxels)[None], **place),
        "label": MetaTensor(torch.from_numpy(labels)[None], **place),
    }
    low, high = WINDOW
    scaled = ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True)
    for keys, mode in ((["image"], "bilinear"), (["image", "label"], ("bilinear", "nearest"))):
        theirs = Compose([Spacingd(keys, spacing, mode=mode), scaled])
        ours = ResampleWindowd(keys, spacing, low, high, mode=mode)
        name = "Spacingd + ScaleIntensityRanged, " + " and ".join(keys)
        used = {key: data[key] for key in keys}
        yield f"MONAI: {name}", lambda t=theirs, d=used: t(d), lambda t=ours, d=used: t(d)
    target = data["label"].as_tensor()[None]
    prediction = target.roll(1, -1)

    yield (
        f"MONAI: compute_dice, {CLASSES} classes",
        lambda: compute_dice(prediction, target, num_classes=CLASSES),
        lambda: fast_dice(prediction, target, CLASSES),
    )


def nnunet_steps(voxels, labels, affine, spacing):
    from nnunetv2.inference import export_prediction
    from nnunetv2.preprocessing.resampling import default_resampling
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from fastmed.integrations import nnunet

    # nnU-Net's arrays are (z, y, x).
    image = np.ascontiguousarray(voxels.T, np.float32)[None]
    target = np.ascontiguousarray(labels.T, np.float32)[None]
    own, spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))[::-1].tolist(), list(spacing)[::-1]
    resample = default_resampling.resample_data_or_seg_to_shape
    shape = default_resampling.compute_new_shape(image.shape[1:], own, spacing)
    for name, data, is_seg in (("data, order 1", image, False), ("seg, order 1", target, True)):
        arguments = (data, shape, own, spacing, is_seg, 1, 0, None)
        yield (
            f"nnU-Net: resample_data_or_seg_to_shape, {name}",
            lambda a=arguments: resample(*a),
            lambda a=arguments: nnunet.resample_data_or_seg_to_shape(*a),
        )
    how = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "architecture": {},
        "spacing": spacing,
        "resampling_fn_probabilities": resample.__name__,
        "resampling_fn_probabilities_kwargs": how,
    }
    plans = {
        "configurations": {"3d_fullres": configuration},
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
    }
    manager = PlansManager(plans)
    names = {"labels": {"background": 0} | {f"organ {i}": i for i in range(1, CLASSES)}}
    whole = image.shape[1:]
    properties = {
        "spacing": own,
        "shape_before_cropping": whole,
        "shape_after_cropping_and_before_resampling": whole,
        "bbox_used_for_cropping": [[0, length] for length in whole],
    }
    arguments = (
        logits_of(target[0], shape),
        manager,
        manager.get_configuration("3d_fullres"),
        manager.get_label_manager(names),
        properties,
        False,
        torch.get_num_threads(),
    )
    convert = "convert_predicted_logits_to_segmentation_with_correct_shape"
    yield (
        f"nnU-Net: logits to labels, {CLASSES} classes",
        lambda: getattr(export_prediction, convert)(*arguments),
        lambda: getattr(nnunet, convert)(*arguments),
    )


def logits_of(labels: np.ndarray, shape) -> np.ndarray:
    """[CLASSES, *shape] logits as smooth as a network's, whose argmax is near the labels."""
    logits = torch.empty(CLASSES, *[int(length) for length in shape])
    for label in range(CLASSES):
        mask = torch.from_numpy(labels == label)[None, None].float()
        small = F.avg_pool3d(mask, 3, stride=1, padding=1)
        logits[label] = F.interpolate(small, size=logits.shape[1:], mode="trilinear")[0, 0] * 10
    return logits.numpy()


def apart(theirs, ours) -> str:
    """The largest difference between images, or the share of labels that differ."""
    if isinstance(theirs, dict):
        return ", ".join(apart(theirs[key].numpy(), ours[key].numpy()) for key in theirs)
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    if len(np.unique(theirs[..., 0])) <= CLASSES and theirs.ndim > 2:
        return f"{np.mean(theirs != ours):.4%} of labels differ"
    return f"{np.nanmax(np.abs(theirs - ours)):.1e} apart"


def seconds(call) -> tuple[float, object]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 1.5, 1.5), help="x y z, mm")
    parser.add_argument("--only", default="", help="times the steps whose name contains this")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    voxels, labels, affine = scan_of(arguments.scan)
    print(
        f"{' x '.join(map(str, voxels.shape))} voxels to {arguments.spacing} mm; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"{'':62}{'its own':>10}{'fastmed':>10}{'ratio':>8}")
    for make in (monai_steps, nnunet_steps):
        for name, theirs, ours in make(voxels, labels, affine, arguments.spacing):
            if arguments.only not in name:
                continue
            ours()
            runs = [(seconds(theirs), seconds(ours)) for _ in range(arguments.repeats)]
            own, fast = (statistics.median(run[i][0] for run in runs) for i in (0, 1))
            difference = apart(runs[0][0][1], runs[0][1][1])
            print(f"{name:62}{own:8.3f} s{fast:8.3f} s{own / fast:7.1f}x  {difference}", flush=True)
            del runs


if __name__ == "__main__":
    main()
