"""Overlap of label maps in plain torch, and the calls it is held against."""

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


OVERLAP_CASES = (*_overlap_cases(),)
