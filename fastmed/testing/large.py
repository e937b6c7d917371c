"""Calls of the sizes that users have, for the benches and the long tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastmed.testing.case import OpCase
from fastmed.testing.grids import fitted_matrix, oblique_matrix
from fastmed.testing.resample import stored_voxels

LUNG = (-1000.0, 400.0)
TORSO_SHAPE = (112, 101, 122)

_PROJECT = Path(__file__).parents[2]
_SCANS = Path(os.environ.get("FASTMED_SCANS", _PROJECT.parent / "shared" / "data"))
_TORSO = _SCANS / "ct-torso-nifti" / "labels.nii.gz"


def torso_labels(num_classes: int) -> Tensor:
    """uint8 [112, 101, 122]: the organs of a real torso, or of a phantom of its shape.

    The most frequent num_classes - 1 labels are numbered from 1 by their size; the rest is 0.
    """
    if _TORSO.is_file():
        import nibabel

        stored = nibabel.load(_TORSO).dataobj
        found = torch.from_numpy(stored.get_unscaled().astype("uint8")).permute(2, 1, 0)
    else:
        from fastmed.geometry import Geometry
        from fastmed.phantom import abdomen

        geometry = Geometry.from_spacing(TORSO_SHAPE, (3.0,) * 3, (-181.5, -150.0, -250.0))
        found = torch.from_numpy(abdomen(geometry, 1, organs=True)[1].labels).to(torch.uint8)
    sizes = torch.bincount(found.flatten(), minlength=256)
    sizes[0] = 0
    order = sizes.argsort(descending=True, stable=True)[: num_classes - 1]
    numbers = torch.zeros(256, dtype=torch.uint8)
    numbers[order] = torch.arange(1, len(order) + 1, dtype=torch.uint8)
    return numbers[found.long()].contiguous()


def organ_labels(shape, num_classes: int, *, seed=0) -> Tensor:
    """uint8 labels [D, H, W] in smooth regions of about 20 voxels, label 0 twice as likely."""
    from fastmed.ops import resample_argmax

    generator = torch.Generator().manual_seed(seed)
    coarse = [max(2, length // 20) for length in shape]
    scores = torch.randn([num_classes, *coarse], generator=generator)
    scores[0] += 0.5
    return resample_argmax(scores, fitted_matrix(coarse, shape), shape)


def labels_to_logits(labels: Tensor, num_classes: int, *, noise=0.3, seed=0) -> Tensor:
    """float32 [C, D, H, W] as a network gives them: eight times the blurred one-hot, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = labels.shape
    # Every class reads its own stretch of one long row of noise.
    row = torch.randn(labels.numel() + 997 * num_classes, generator=generator).mul_(noise)
    logits = torch.empty([num_classes, *shape])
    for number, channel in enumerate(logits):
        one_hot = (labels == number).float()[None, None] * 8
        channel.copy_(torch.nn.functional.avg_pool3d(one_hot, 3, stride=1, padding=1)[0, 0])
        start = 997 * number
        channel += row[start : start + labels.numel()].view(shape)
    return logits


def strewn_boxes(count: int, spatial: int, extent: float, *, seed=0) -> tuple[Tensor, Tensor]:
    """float32 boxes [count, 2 * spatial] with sides of 8 to 40 in a cube, and their scores."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand([count, spatial], generator=generator) * extent
    halves = 4 + 16 * torch.rand([count, spatial], generator=generator)
    boxes = torch.cat([centres - halves, centres + halves], 1)
    return boxes, torch.rand([count], generator=generator)


def _case(op: str, name: str, make, keywords=None, *, tolerance=0.0, note="") -> OpCase:
    def reference(*arguments, **named):
        from fastmed import testing

        return getattr(testing, f"{op}_reference")(*arguments, **named)

    return OpCase(op, name, make, reference, keywords or {}, tolerance, True, note)


def _windows() -> Iterator[OpCase]:
    def case(name, shape, matrix, size, keywords):
        def make(device):
            return stored_voxels(shape, device=device), matrix.to(device), size

        return _case("window_resample", name, make, keywords, tolerance=1e-4)

    shape, size = (200, 512, 512), (250, 360, 360)
    yield case("lung", shape, fitted_matrix(shape, size), size, {"window": LUNG})
    shape, size = (173, 498, 511), (128, 160, 192)
    turned = oblique_matrix(shape, size, tilt=0.0, turn=0.17453292519943295)
    turned[:, 3] += turned[:, :3] @ (0.05 * (torch.tensor(size) - 1.0).double())
    turned[:, :3] *= 0.9
    yield case("rotated", shape, turned, size, {"window": LUNG, "fill": -1024.0})
    # A chest of 0.7 x 0.7 x 1.25 mm onto a grid of 1.5 mm, and its gantry tilt undone.
    shape, size = (300, 512, 512), (250, 239, 239)
    keywords = {"shift": -1024.0, "window": (-160.0, 240.0)}
    yield case("chest", shape, fitted_matrix(shape, size), size, keywords)
    yield case("tilted", shape, oblique_matrix(shape, size), size, keywords)
    patches = torch.stack(
        [oblique_matrix((96, 300, 300), (96,) * 3, turn=0.1 * turn) for turn in range(1, 5)]
    )
    patches[:, :, 3] += torch.tensor([20.0, 100.0, 100.0], dtype=torch.float64)
    yield case("4-patches", (140, 512, 512), patches, (96,) * 3, {"window": LUNG, "fill": -1024.0})


def _decodes() -> Iterator[OpCase]:
    def case(name, make_logits, shape, size, note):
        def make(device):
            return make_logits().to(device), fitted_matrix(shape, size).to(device), size

        return _case("resample_argmax", name, make, note=note)

    yield case(
        "14-classes",
        lambda: labels_to_logits(torso_labels(14), 14),
        TORSO_SHAPE,
        (336, 303, 366),
        f"labels of {'a real torso' if _TORSO.is_file() else 'a phantom'}",
    )
    shape = (160, 160, 160)
    yield case(
        "118-classes",
        lambda: labels_to_logits(organ_labels(shape, 118), 118),
        shape,
        (512, 512, 512),
        "synthetic organs",
    )
    slab = (80, 273, 273)
    yield case(
        "2-classes",
        lambda: labels_to_logits(organ_labels(slab, 2), 2),
        slab,
        (120, 512, 512),
        "synthetic organs",
    )


def _overlaps() -> Iterator[OpCase]:
    shape = (200, 256, 256)
    for classes in (2, 14, 118):

        def make(device, classes=classes):
            target = organ_labels(shape, classes).to(device)
            return target.roll((2, 2), (0, 1))[None], target[None], classes

        yield _case("overlap_counts", f"{classes}-classes", make, note="synthetic organs")


def _detections() -> Iterator[OpCase]:
    def boxes_on(device, count, spatial, extent):
        return tuple(each.to(device) for each in strewn_boxes(count, spatial, extent))

    def suppress(spatial, count, extent, threshold):
        return lambda device: (*boxes_on(device, count, spatial, extent), threshold)

    yield _case("nms", "3d-20000", suppress(3, 20_000, 200.0, 0.1))
    yield _case("nms", "2d-5000", suppress(2, 5_000, 200.0, 0.3))
    for count, number in ((100_000, 10_000), (100_000, 1_000), (1_000_000, 10_000)):

        def grouped(device, count=count, number=number):
            boxes, scores = boxes_on(device, count, 3, 100.0)
            generator = torch.Generator().manual_seed(1)
            # Every group has the same number of boxes, strewn over the list.
            groups = (torch.randperm(count, generator=generator) % number).to(device)
            return boxes, scores, groups, 0.1

        yield _case("batched_nms", f"{count}-in-{number}", grouped)

    for first, second in ((1_000, 1_000), (100_000, 20)):

        def pairs(device, first=first, second=second):
            boxes1 = strewn_boxes(first, 3, 100.0, seed=1)[0].to(device)
            return boxes1, strewn_boxes(second, 3, 100.0, seed=2)[0].to(device)

        for op in ("box_iou", "box_giou"):
            yield _case(op, f"{first}x{second}", pairs, tolerance=1e-6)


def _losses() -> Iterator[OpCase]:
    def make(device):
        shape = (96, 96, 96)
        target = torch.stack([organ_labels(shape, 14, seed=seed) for seed in (1, 2)])
        logits = torch.stack([labels_to_logits(each.roll(2, 0), 14) for each in target])
        return logits.to(device).requires_grad_(), target.long().to(device)

    yield _case("softmax_overlap", "backward-14-classes", make, tolerance=1e-4)


LARGE_CASES = (*_windows(), *_decodes(), *_overlaps(), *_detections(), *_losses())
