"""Tally: what the training batches of an epoch say, added up on their device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastmed.errors import FastmedError
from fastmed.ops import overlap_counts
from fastmed.spec import Spec
from fastmed.training.batches import Batch
from fastmed.training.box_scores import best_ious


class Tally:
    """Adds up what an epoch's training batches say, without holding a graph."""

    def __init__(self, spec: Spec, device: torch.device | str):
        self._spec = spec
        self._losses = torch.zeros(2, dtype=torch.float64, device=device)  # sum, number
        classes = spec.num_classes
        self._counts = torch.zeros(classes, 3, dtype=torch.int64, device=device)
        self._ious = torch.zeros(2, dtype=torch.float64, device=device)  # sum, true boxes
        self._right = torch.zeros(2, dtype=torch.int64, device=device)  # and how many there are
        self.running = math.nan

    def add(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        value = float(loss)
        if not math.isfinite(value):
            raise FastmedError(
                f"the loss became {value} on {', '.join(batch.names)}; the state of the last "
                "epoch is kept: lower optimiser.learning_rate, or look at these cases"
            )
        self.running = value if math.isnan(self.running) else 0.95 * self.running + 0.05 * value
        self._losses += torch.tensor([value, 1.0], dtype=torch.float64, device=loss.device)
        if self._spec.task == "detection":
            self._add_boxes(logits, batch)
            return
        said = likeliest(logits)
        target = batch.target
        self._right[0] += (said == target).sum()
        self._right[1] += target.numel()
        if self._spec.task == "segmentation":
            self._counts += overlap_counts(said, target, len(self._counts)).sum(0)

    def _add_boxes(self, output: Tensor, batch: Batch) -> None:
        ious = best_ious(output, batch.target, batch.image.shape[2:], self._spec).double()
        self._ious += torch.stack([ious.sum(), ious.new_tensor(len(ious))])

    def row(self, fabric) -> dict[str, Any]:
        """Loss, accuracy and, of a segmentation, Dice and IoU over all voxels of the epoch.

        Of a detection loss and IoU: the mean over the true boxes of all patches of the best IoU of
        a finding (`box_scores.best_ious`), 0 where there is none.
        """
        losses = fabric.all_reduce(self._losses, reduce_op="sum")
        row = {"train_loss": float(losses[0] / losses[1])}
        if self._spec.task == "detection":
            total, boxes = fabric.all_reduce(self._ious, reduce_op="sum").tolist()
            return row | {"train_iou": total / boxes if boxes else None}
        right = fabric.all_reduce(self._right, reduce_op="sum")
        if self._spec.task == "segmentation":
            counts = fabric.all_reduce(self._counts, reduce_op="sum")[1:].double().cpu()
            both, said, true = counts.unbind(1)
            seen = said + true > 0
            if seen.any():
                row["train_dice"] = float((2 * both / (said + true))[seen].mean())
                row["train_iou"] = float((both / (said + true - both))[seen].mean())
        return row | {"train_accuracy": float(right[0] / right[1])}


def likeliest(logits: Tensor) -> Tensor:
    """The class of each voxel or sample, ties to the lowest; logits [B, K, ...], finite.

    K == 1 is a sigmoid. Comparing class after class takes a fraction of the time of torch's argmax
    along the classes, whose values lie far apart in memory.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    best = logits[:, 0]
    said = torch.zeros_like(best, dtype=torch.uint8 if logits.shape[1] <= 256 else torch.int16)
    for k in range(1, logits.shape[1]):
        said.masked_fill_(logits[:, k] > best, k)
        best = torch.maximum(best, logits[:, k])
    return said
