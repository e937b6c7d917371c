"""Overlap of label maps, and of probabilities, in plain torch, and the calls it is held against."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastmed.testing.case import OpCase


def overlap_counts_reference(prediction, target, num_classes, *, ignore_index=None) -> Tensor:
    """overlap_counts by one bincount per column."""

    def histogram(labels, counted):
        known = labels[counted & (labels >= 0) & (labels < num_classes)]
        return torch.bincount(known, minlength=num_classes)

    items = []
    for labels, truth in zip(prediction.long().flatten(1), target.long().flatten(1), strict=True):
        counted = truth == truth if ignore_index is None else truth != ignore_index
        both = counted & (labels == truth)
        columns = [histogram(labels, both), histogram(labels, counted), histogram(truth, counted)]
        items.append(torch.stack(columns, 1))
    return torch.stack(items)


def softmax_overlap_reference(
    logits, target, *, ignore_index=None
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax_overlap by way of softmax and one-hot, in float64."""
    values, truth = logits.double().flatten(2), target.long().flatten(1)
    single = values.shape[1] == 1
    classes = torch.arange(values.shape[1], device=truth.device) + single
    probability = values.sigmoid() if single else values.softmax(1)
    counted = (truth == truth if ignore_index is None else truth != ignore_index)[:, None]
    member = (truth[:, None] == classes[:, None]) & counted
    sums = (
        torch.where(member, probability, 0).sum(2),
        torch.where(counted, probability, 0).sum(2),
        member.sum(2),
    )
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return tuple(each.to(dtype) for each in sums)


def label_map(shape, num_labels, dtype=torch.uint8, *, device="cpu", seed=0) -> Tensor:
    """Random labels in runs of eight, with single voxels strewn in."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    runs = torch.randint(0, num_labels, [count // 8 + 1], generator=generator).repeat_interleave(8)[
        :count
    ]
    single = torch.randint(0, num_labels, [count], generator=generator)
    labels = torch.where(torch.rand([count], generator=generator) < 0.05, single, runs)
    return labels.reshape(shape).to(dtype).to(device)


def random_logits(shape, dtype=torch.float32, *, device="cpu", seed=0) -> Tensor:
    """Logits [B, C, *spatial], independent and normal with a deviation of 3."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).to(dtype).to(device)


def _overlap_cases() -> Iterator[OpCase]:
    for dtype in (torch.uint8, torch.int16, torch.int64):
        for ignore_index in (None, 2):
            yield OpCase(
                "overlap_counts",
                f"{dtype}-{'all' if ignore_index is None else 'ignore'}".removeprefix("torch."),
                lambda device, dtype=dtype: (
                    label_map((2, 9, 100, 100), 7, dtype, device=device, seed=1),
                    label_map((2, 9, 100, 100), 7, torch.uint8, device=device, seed=2),
                    5,
                ),
                overlap_counts_reference,
                {"ignore_index": ignore_index},
            )


def _softmax_cases() -> Iterator[OpCase]:
    shapes = {"3d": (9, 20, 21), "2d": (33, 41), "1d": (7,)}
    calls = [(classes, "3d", torch.float32, None) for classes in (1, 2, 5, 118)]
    calls += [(3, shape, torch.float32, 1) for shape in shapes]
    calls += [(4, "2d", dtype, 0) for dtype in (torch.float16, torch.bfloat16, torch.float64)]
    for classes, shape, dtype, ignore_index in calls:
        ending = "all" if ignore_index is None else "ignore"
        yield OpCase(
            "softmax_overlap",
            f"{classes}-{shape}-{dtype}-{ending}".replace("torch.", ""),
            lambda device, classes=classes, shape=shapes[shape], dtype=dtype: (
                random_logits((2, classes, *shape), dtype, device=device),
                label_map((2, *shape), classes + 2, device=device),
            ),
            softmax_overlap_reference,
            {"ignore_index": ignore_index},
            1e-9 if dtype == torch.float64 else 5e-3,
        )


OVERLAP_CASES = (*_overlap_cases(), *_softmax_cases())
