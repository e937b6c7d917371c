"""Classification: the logits of one scan become the probability of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmed.findings import Findings, Score
from fastmed.geometry import Geometry
from fastmed.spec import Spec
from fastmed.volume import Volume


def decode(logits: Tensor, grid: Geometry, volume: Volume, spec: Spec) -> Findings:
    """Turns logits [classes] into scores: their softmax, `spec.negative` first. Labels no voxels.

    grid: where the network looked; the findings keep the scan's own geometry.
    """
    names = (spec.negative, *(label.name for label in spec.labels))
    probabilities = torch.softmax(logits.double().cpu(), dim=0).tolist()
    return Findings(
        series=volume.name,
        source=volume.source,
        model=spec.name,
        geometry=volume.geometry,
        labels=None,
        classes=spec.labels,
        warnings=volume.warnings,
        scores=tuple(Score(name, p) for name, p in zip(names, probabilities, strict=True)),
        modality=spec.modality,
    )
