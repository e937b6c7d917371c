"""The loss of networks that answer in boxes: which class at each default box, and which box."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmed.boxes import BACKGROUND, IGNORED, coding, decode, encode, match_atss, match_iou
from fastmed.losses.labels import at_least_float32, at_least_zero, power
from fastmed.ops import box_giou, box_iou

_UNSURE_IOU = 0.1  # what overlaps a box that counts neither way by so much counts neither way


class Targets(NamedTuple):
    """The truth of one sample.

    boxes: [n, 2K] float corners of positive sides, in voxels of the patch; n may be 0.
    labels: [n] int64, 1 to num_classes - 1, or -1: what is found there counts neither way.
    """

    boxes: Tensor
    labels: Tensor


class DetectionLoss(nn.Module):
    """The loss of a network's [B, N, 2K + num_classes] box codes and logits, K = 2 or 3.

    A matcher of `fastmed.boxes` says which default boxes are to answer for which true box. Those
    learn its class and its box, the others the background, but for those that the matcher leaves
    out or that lie on a true box of label -1. The sum of both losses is divided by the number of
    matched default boxes in the batch (1 where there are none), so that, unlike the other losses',
    its gradients over processes average to those of the whole batch only where all have as many.

    num_classes: with the background, class 0; at least 2.
    kind: "focal": every default box counts, by softmax and (1 - p) ** gamma, times alpha where
        matched and 1 - alpha where not. "hard_negative": cross entropy of the matched ones and, in
        each sample, of the `negatives` times as many others that are most wrong.
    matcher: "atss", with `nearest` candidates, or "iou", with `high` and `low`.
    box_loss: "smooth_l1" of the codes, summed over them, or "giou": 1 - GIoU of the decoded boxes.
    box_weight: by which the loss of boxes is multiplied.
    empty_negatives: how many negatives count in a sample without a match ("hard_negative" alone).

    With "hard_negative", "iou", "smooth_l1" and empty_negatives 0 it is torchvision's SSD loss.

    Raises ValueError for a bad value.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; Liu et al., "SSD: Single
    Shot MultiBox Detector", ECCV 2016; Rezatofighi et al., "Generalized Intersection over Union",
    CVPR 2019.
    """

    def __init__(
        self,
        num_classes: int,
        kind: str = "focal",
        matcher: str = "atss",
        box_loss: str = "giou",
        *,
        box_weight: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        negatives: float = 3.0,
        empty_negatives: int = 3,
        nearest: int = 16,
        high: float = 0.5,
        low: float = 0.5,
    ):
        super().__init__()
        for name, value, known in (
            ("kind", kind, ("focal", "hard_negative")),
            ("matcher", matcher, ("atss", "iou")),
            ("box_loss", box_loss, ("smooth_l1", "giou")),
        ):
            if value not in known:
                names = " or ".join(map(repr, known))
                raise ValueError(f"detection loss: {name} {value!r}: expected {names}")
        if num_classes < 2:
            raise ValueError(f"detection loss: num_classes {num_classes}: expected at least 2")
        if not 0 < alpha < 1:
            raise ValueError(f"detection loss: alpha {alpha}: expected above 0 and below 1")
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"detection loss: low {low}, high {high}: expected 0 <= low <= high <= 1"
            )
        if nearest < 1:
            raise ValueError(f"detection loss: nearest {nearest}: expected at least 1")
        self.num_classes, self.kind = num_classes, kind
        self.matcher, self.box_loss = matcher, box_loss
        self.alpha, self.nearest, self.high, self.low = alpha, nearest, high, low
        self.box_weight = at_least_zero("detection", "box_weight", box_weight)
        self.gamma = at_least_zero("detection", "gamma", gamma)
        self.negatives = at_least_zero("detection", "negatives", negatives)
        self.empty_negatives = at_least_zero("detection", "empty_negatives", empty_negatives)

    def forward(
        self,
        output: Tensor,
        defaults: Tensor,
        per_level: Sequence[int],
        targets: Sequence[Targets],
    ) -> Tensor:
        """The loss of a batch, a scalar of at least float32: the two `parts`, weighted and summed.

        output: [B, N, 2K + num_classes], codes first. defaults: [N, 2K] corners, level after level;
        per_level: how many each level has. targets: one per sample.

        Raises ValueError for shapes that do not fit, and on CPU for a label or a box out of range.
        """
        classes, boxes = self.parts(output, defaults, per_level, targets)
        return classes + self.box_weight * boxes

    def parts(
        self,
        output: Tensor,
        defaults: Tensor,
        per_level: Sequence[int],
        targets: Sequence[Targets],
    ) -> tuple[Tensor, Tensor]:
        """The losses of the classes and of the boxes, of what `forward` takes."""
        self._check(output, defaults, targets)
        output = at_least_float32(output)
        codes, logits = output.split([defaults.shape[1], self.num_classes], -1)
        with torch.no_grad():
            answers = [self._answers(defaults, per_level, target) for target in targets]
            labels = torch.stack([labels for labels, _ in answers])
            truth = torch.cat([boxes for _, boxes in answers]).to(output.dtype)
        sample, place = (labels > 0).nonzero(as_tuple=True)
        box_loss = self._of_boxes(codes[sample, place], truth, defaults[place])
        of_kind = self._focal if self.kind == "focal" else self._hard_negative
        matched = max(1, len(place))
        return of_kind(logits, labels) / matched, box_loss / matched

    def _answers(
        self, defaults: Tensor, per_level: Sequence[int], target: Targets
    ) -> tuple[Tensor, Tensor]:
        """What default boxes are to say: labels [N] (-1: anything), and boxes of those above 0."""
        counts = target.labels > 0
        boxes, unsure = target.boxes[counts], target.boxes[~counts]
        match = self._match(defaults, per_level, boxes)
        matched = match >= 0
        labels = torch.where(match == IGNORED, -1, 0)
        labels[matched] = target.labels[counts][match[matched]]
        if len(unsure):
            near = (box_iou(unsure, defaults) >= _UNSURE_IOU).any(0)
            near |= self._match(defaults, per_level, unsure) != BACKGROUND
            labels[near & ~matched] = -1
        return labels, boxes[match[matched]]

    def _match(self, defaults: Tensor, per_level: Sequence[int], boxes: Tensor) -> Tensor:
        if self.matcher == "atss":
            return match_atss(defaults, per_level, boxes, self.nearest)
        return match_iou(defaults, boxes, self.high, self.low)

    def _of_boxes(self, codes: Tensor, truth: Tensor, defaults: Tensor) -> Tensor:
        weights = coding.WEIGHTS_3D if defaults.shape[1] == 6 else coding.WEIGHTS_2D
        if self.box_loss == "smooth_l1":
            return F.smooth_l1_loss(codes, encode(truth, defaults, weights), reduction="sum")
        found = decode(codes, defaults, weights)
        return (1 - box_giou(found[:, None], truth[:, None])).sum()

    def _focal(self, logits: Tensor, labels: Tensor) -> Tensor:
        surprise = _surprise(logits, labels)
        values = power(-torch.expm1(-surprise), self.gamma) * surprise
        values = torch.where(labels > 0, self.alpha, 1 - self.alpha) * values
        return values.masked_fill(labels < 0, 0).sum()

    def _hard_negative(self, logits: Tensor, labels: Tensor) -> Tensor:
        surprise = _surprise(logits, labels)
        positive = labels > 0
        matched = positive.sum(1, keepdim=True)
        number = torch.where(matched > 0, matched * self.negatives, self.empty_negatives)
        wrong = surprise.detach().masked_fill(labels != 0, -torch.inf)
        rank = wrong.argsort(1, descending=True).argsort(1)
        chosen = positive | ((labels == 0) & (rank < number))
        return surprise.masked_fill(~chosen, 0).sum()

    def _check(self, output: Tensor, defaults: Tensor, targets: Sequence[Targets]) -> None:
        if defaults.dim() != 2 or defaults.shape[1] not in (4, 6):
            raise ValueError(
                f"detection loss: defaults {list(defaults.shape)}: expected [N, 4] or [N, 6]"
            )
        expected = [len(targets), len(defaults), defaults.shape[1] + self.num_classes]
        if list(output.shape) != expected:
            raise ValueError(
                f"detection loss: output {list(output.shape)}: expected {expected}, for "
                f"{len(targets)} targets, {len(defaults)} default boxes of {defaults.shape[1]} "
                f"corners and {self.num_classes} classes"
            )
        for number, (boxes, labels) in enumerate(targets):
            name = f"detection loss: target {number}"
            if list(boxes.shape) != [len(labels), defaults.shape[1]] or labels.dim() != 1:
                raise ValueError(
                    f"{name}: boxes {list(boxes.shape)}, labels {list(labels.shape)}: expected "
                    f"[n, {defaults.shape[1]}] and [n]"
                )
            if boxes.device.type == "cpu":
                self._check_values(name, boxes, labels)

    def _check_values(self, name: str, boxes: Tensor, labels: Tensor) -> None:
        wrong = (labels == 0) | (labels < -1) | (labels >= self.num_classes)
        if wrong.any():
            raise ValueError(
                f"{name}: label {labels[wrong][0]}: expected 1 to {self.num_classes - 1}, or -1"
            )
        low, high = boxes.chunk(2, -1)
        wrong = ~((high > low) & boxes.isfinite().all(-1, keepdim=True)).all(-1)
        if wrong.any():
            raise ValueError(
                f"{name}: box {boxes[wrong][0].tolist()}: expected finite corners, the second "
                "beyond the first along each axis"
            )


class _DetectionLossHere(nn.Module):
    """A DetectionLoss with the default boxes of one size of patch, which move with it."""

    def __init__(self, loss: DetectionLoss, defaults: Tensor, per_level: Sequence[int]):
        super().__init__()
        self.loss, self.per_level = loss, tuple(per_level)
        self.register_buffer("defaults", defaults, persistent=False)

    def forward(self, output: Tensor, targets: Sequence[Targets]) -> Tensor:
        return self.loss(output, self.defaults, self.per_level, targets)


LOSSES = {
    "detection_focal": {"kind": "focal", "box_loss": "giou"},
    "detection_hard_negative": {"kind": "hard_negative", "box_loss": "smooth_l1"},
}


def build(
    name: str, *, num_classes: int, defaults: Tensor, per_level: Sequence[int], **options
) -> nn.Module:
    """Builds a DetectionLoss for patches of one size, called as loss(output, targets).

    name: "detection_focal" (its box_loss is "giou") or "detection_hard_negative" ("smooth_l1").
    defaults: [N, 2K], the default boxes of the patch; per_level: how many each level has.
    options: those of DetectionLoss but the kind.

    Raises ValueError for a bad value, TypeError for an unknown option.
    """
    known = list(inspect.signature(DetectionLoss).parameters)[2:]
    for option in options.keys() - set(known):
        raise TypeError(f"loss {name}: option {option!r} is unknown; it has {', '.join(known)}")
    return _DetectionLossHere(
        DetectionLoss(num_classes, **LOSSES[name] | options), defaults, per_level
    )


def _surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of the probability given to the label, [B, N]; of the background where it is -1."""
    return F.cross_entropy(logits.mT, labels.clamp_min(0), reduction="none")
