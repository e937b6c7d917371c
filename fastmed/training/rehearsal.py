"""Rehearsal: what a recipe names is built and run without data, before any scan is read."""

from __future__ import annotations

import torch

from fastmed import models
from fastmed.errors import UsageError
from fastmed.models.channels import channels_taken
from fastmed.training.box_loss import grid_defaults
from fastmed.training.recipe import Recipe
from fastmed.training.task_loss import build_loss

_UNKNOWN_SIZE_ZYX = (64, 64, 64)  # of a classification whose grid depends on the scan


def rehearse(recipe: Recipe, *, batch_size: int) -> int:
    """Tries a recipe's network, loss and sampling; returns the network's number of parameters.

    batch_size: of one process. The network runs on torch's meta device: shapes, no numbers.

    Raises UsageError that names the table of the recipe that is wrong: an unknown name or
    argument, logits that are not the labels', a patch that the network cannot take.
    """
    spec = recipe.spec
    try:
        recipe.sampling.check_fits(spec)
    except ValueError as error:
        raise UsageError(f"recipe {spec.name}: [sampling] {error}") from error
    _check_loss(recipe)
    try:
        with torch.device("meta"):
            network = models.build(spec.network.name, **spec.network.arguments)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise UsageError(f"recipe {spec.name}: [network] {_first_line(error)}") from error
    tile = spec.tile_zyx or spec.size_zyx or _UNKNOWN_SIZE_ZYX
    channels = _checked_channels(recipe, network)
    for size, batch, trains in ((recipe.sampling.patch_zyx or tile, batch_size, True),
                                (tile, 1, False)):  # fmt: skip
        space = size if spec.dimensions == 3 else size[1:]
        try:
            image = torch.empty(batch, channels, *space, device="meta")
            logits = network.train(trains)(image)
        except (ValueError, RuntimeError) as error:
            raise UsageError(
                f"recipe {spec.name}: {spec.network.name} cannot take {batch} of {tuple(space)} "
                f"voxels ({_first_line(error)}); change tiles.size_zyx, sampling.patch_zyx, "
                "grid.size_zyx or loop.batch_size"
            ) from error
        if spec.task == "detection":
            _check_boxes(recipe, logits, size)
        else:
            _check_logits(recipe, logits, space if spec.task == "segmentation" else ())
    return sum(parameter.numel() for parameter in network.parameters())


def _check_loss(recipe: Recipe) -> None:
    spec, loss = recipe.spec, recipe.loss
    if spec.task != "classification" and (loss.name == "auto" or loss.class_weights != "none"):
        raise UsageError("loss.name auto and loss.class_weights are for classifications")
    if loss.name == "auto":
        if loss.options:
            named = ", ".join(loss.options)
            raise UsageError(f"loss.options {named}: of one loss; name that loss, not auto")
        return
    try:
        build_loss(recipe, loss.name)
    except (ValueError, TypeError) as error:
        raise UsageError(f"recipe {spec.name}: [loss] {error}") from error


def _checked_channels(recipe: Recipe, network: torch.nn.Module) -> int:
    """The channels of the network's input, which are those that a scan gives it."""
    spec = recipe.spec
    wanted = channels_taken(network)
    repeats = spec.task == "detection" and spec.dimensions == 2 and spec.slices == 1
    if wanted is None or wanted == spec.slices or repeats:
        return wanted or spec.slices
    raise UsageError(
        f"recipe {spec.name}: {spec.network.name} takes {wanted} channels, a scan gives it "
        f"{spec.slices}: set network.in_channels" + (" to grid.slices" if spec.slices > 1 else "")
    )


def _check_logits(recipe: Recipe, logits: torch.Tensor, space: tuple[int, ...]) -> None:
    spec = recipe.spec
    allowed = {spec.num_classes}
    if spec.task == "segmentation" and spec.num_classes == 2:
        allowed.add(1)
    if logits.shape[1] in allowed and tuple(logits.shape[2:]) == tuple(space):
        return
    first = spec.negative if spec.task == "classification" else "the background"
    raise UsageError(
        f"recipe {spec.name}: {spec.network.name} returns logits {list(logits.shape)}; expected "
        f"{' or '.join(map(str, sorted(allowed)))} classes, {len(spec.labels)} labels and {first}: "
        "set network.num_classes, and a network of the task"
    )


def _check_boxes(recipe: Recipe, output: torch.Tensor, size_zyx) -> None:
    spec = recipe.spec
    defaults, _ = grid_defaults(spec, size_zyx)
    expected = [len(defaults), defaults.shape[1] + spec.num_classes]
    if output.dim() == 3 and list(output.shape[1:]) == expected:
        return
    raise UsageError(
        f"recipe {spec.name}: {spec.network.name} returns {list(output.shape)} for "
        f"{tuple(size_zyx)} voxels; expected {expected[0]} default boxes with {defaults.shape[1]} "
        f"coordinates and {spec.num_classes} classes each: network.strides, "
        "network.boxes_per_place and network.num_classes follow detection.strides, the number of "
        "diameters_mm and of labels"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
