"""Losses by name: of label maps and of a class per sample, and of boxes."""

from torch import nn

from fastmed.losses import detection, labels
from fastmed.losses.detection import DetectionLoss, Targets

__all__ = ["DetectionLoss", "Targets", "build"]


def build(name: str, *, num_classes: int, **options) -> nn.Module:
    """Builds the loss `name`, called as loss(output, target), which returns a scalar.

    name: one of `fastmed.losses.labels.build`, which says what its logits, target and options are,
        or "detection_focal" or "detection_hard_negative", for which
        `fastmed.losses.detection.build` does.
    num_classes: with the background or the negative class, at least 2.

    Raises ValueError for an unknown name or a bad value, TypeError for an unknown option.
    """
    if name in detection.LOSSES:
        return detection.build(name, num_classes=num_classes, **options)
    if name not in labels.LOSSES:
        known = ", ".join([*labels.LOSSES, *detection.LOSSES])
        raise ValueError(f"loss {name!r} is unknown; known are {known}")
    return labels.build(name, num_classes=num_classes, **options)
