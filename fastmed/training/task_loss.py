"""The loss of a recipe, whatever its task."""

from __future__ import annotations

import torch
from torch import nn

from fastmed import losses
from fastmed.training.box_loss import PREFIX, BoxLoss
from fastmed.training.box_targets import patch_size
from fastmed.training.recipe import Recipe


def build_loss(recipe: Recipe, name: str, weights: tuple[float, ...] | None = None) -> nn.Module:
    """Builds the loss `name`, which is recipe.loss.name unless that is "auto".

    weights: of the classes; None where they are alike. It is called with a network's output and
    `Batch.target`. Raises ValueError or TypeError for a name, option or value that is wrong.
    """
    spec, options = recipe.spec, dict(recipe.loss.options or {})
    if spec.task == "detection":
        if not name.startswith(PREFIX):
            raise ValueError(
                f"loss {name!r}: a detection takes {PREFIX}focal or {PREFIX}hard_negative"
            )
        patch = patch_size(spec, recipe.sampling.patch_zyx)
        if recipe.loss.matcher is not None:
            options["matcher"] = recipe.loss.matcher
        return BoxLoss(name, spec, patch, **options)
    if name.startswith(PREFIX) or recipe.loss.matcher is not None:
        raise ValueError(
            f"loss {name!r}, matcher {recipe.loss.matcher}: {PREFIX}* is for detections"
        )
    weights = None if weights is None else torch.tensor(weights)
    return losses.build(name, num_classes=spec.num_classes, class_weights=weights, **options)
