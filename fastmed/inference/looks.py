"""Looks: how the network of each task sees a grid, and which of its outputs are an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmed.boxes import boxes_per_level
from fastmed.errors import SeriesError
from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.inference.sliding_window import answers, seen_and_void, sliding_window
from fastmed.spec import Spec
from fastmed.tasks import classification, detection, segmentation
from fastmed.tasks.candidates import Picked, default_boxes_of, pick, tiles_of
from fastmed.volume import Volume

_PICKED_AT_ONCE = 16  # tiles: of each alone a dozen small calls take longer than their work
_NEVER = -1e4  # the logit of each label where there is nothing to see: its softmax is 0


@dataclass(frozen=True)
class Task:
    """One line of the table of tasks.

    look: from the grid [D, H, W], the network, the spec, the batch and progress to what the network
        said of the scan. output: what that is called; output_axes: how many that of a batch has.
    check: raises SeriesError where that is no answer; takes it, the spec, the grid's shape and the
        engine's name.
    decode: from it, grid, Volume and spec to Findings.
    brief: as look, but returns no more than decode takes, checked; None where that is all of it.
    """

    look: Callable[..., Tensor]
    output: str
    output_axes: int
    check: Callable[[Tensor, Spec, tuple[int, int, int], str], None]
    decode: Callable[[Any, Geometry, Volume, Spec], Findings]
    brief: Callable[..., Any] | None = None


def _over_tiles(image: Tensor, network, spec: Spec, batch: int, progress) -> Tensor:
    return sliding_window(
        image,
        network,
        num_classes=spec.num_classes,
        tile_zyx=spec.tile_zyx,
        overlap=spec.overlap,
        size_multiple=spec.size_multiple,
        batch=batch,
        progress=progress,
    )


def _at_once(image: Tensor, network, spec: Spec, batch: int, progress) -> Tensor:
    if spec.dimensions == 2 and image.shape[0] != 1:
        raise SeriesError(
            f"the grid has {image.shape[0]} slices and the network sees one; "
            "a classification of 2 dimensions takes a single image"
        )
    logits = network(image[None, None])[0]
    progress(1, 1)
    return logits


def _for_boxes(image: Tensor, network, spec: Spec, batch: int, progress) -> Tensor:
    """Raw outputs [T, N, 2K + classes] of all tiles, or of all slices in 2 dimensions.

    A void tile (`seen_and_void`) never meets the network: nothing is found there.
    """
    seen, void, cut = _pieces(image, spec)
    total = len(seen) + len(void)
    raw: Tensor | None = None
    for number, output in _said_of(seen, total, network, cut, batch, progress):
        if raw is None:
            raw = output.new_empty(total, *output.shape)
        raw[number] = output
    if raw is None:
        defaults = len(default_boxes_of(spec, tiles_of(tuple(image.shape), spec).size_zyx))
        width = 2 * spec.dimensions + spec.num_classes
        raw = torch.zeros(total, defaults, width, device=image.device)
    raw[void] = 0
    raw[void, :, 2 * spec.dimensions + 1 :] = _NEVER
    return raw


def _for_the_best_boxes(image: Tensor, network, spec: Spec, batch: int, progress) -> Picked:
    """What is picked of each tile or slice soon after the network: all it says is a thousand times
    as much."""
    seen, void, cut = _pieces(image, spec)
    picked: list[Picked] = []
    waiting: Tensor | None = None
    numbers: list[int] = []
    for number, output in _said_of(seen, len(seen) + len(void), network, cut, batch, progress):
        if waiting is None:
            _check_boxes(output[None], spec, tuple(image.shape), "")
            waiting = output.new_empty(min(_PICKED_AT_ONCE, len(seen)), *output.shape)
        _store(output, waiting[len(numbers)])
        numbers.append(number)
        if len(numbers) == len(waiting):
            picked.append(pick(waiting, spec, numbers))
            numbers = []
    if waiting is None:
        return pick(_for_boxes(image, network, spec, batch, progress), spec)
    if numbers:
        picked.append(pick(waiting[: len(numbers)], spec, numbers))
    return Picked(*map(torch.cat, zip(*picked, strict=True)))


def _store(output: Tensor, slot: Tensor) -> None:
    if output.device.type == "cpu":
        # torch would wake its threads for each tile, which takes longer than the copy.
        np.copyto(slot.numpy(), output.numpy())
    else:
        slot.copy_(output)


def said_by_the_network(said: Tensor, spec: Spec) -> np.ndarray | None:
    """Which of T tiles or slices a detection's network has seen, bool [T]; None of other tasks."""
    if spec.task != "detection":
        return None
    return (said[..., 2 * spec.dimensions + 1 :] != _NEVER).flatten(1).any(1).cpu().numpy()


def _pieces(image: Tensor, spec: Spec) -> tuple[dict[int, Any], list[int], Callable]:
    """Tiles or slices to see by their number, the numbers of the void ones, and what cuts one."""
    if spec.dimensions == 2:
        cut = partial(_with_neighbours, image, spec.slices)
        return {z: z for z in range(image.shape[0])}, [], cut
    tiles = tiles_of(tuple(image.shape), spec)
    padded = tiles.extended(image)
    corners, _ = seen_and_void(padded, tiles)
    number_of = {corner: number for number, corner in enumerate(tiles.corners)}
    seen = {number_of[corner]: corner for corner in corners}
    void = sorted(set(number_of.values()) - set(seen))
    return seen, void, lambda corner: padded[tiles.window(corner)][None]


def _said_of(seen, total: int, network, cut, batch: int, progress) -> Iterator[tuple[int, Tensor]]:
    """The number of each piece and what the network said of it, valid until the next is asked."""
    said = answers(network, list(seen.values()), cut, batch, progress, total)
    for number, (_, output) in zip(seen, said, strict=True):
        yield number, output
    if len(seen) < total:
        progress(total, total)


def _with_neighbours(image: Tensor, count: int, z: int) -> Tensor:
    """Slice z with its neighbours as channels, [count, 1, H, W]; the outermost slices repeat."""
    last = image.shape[0] - 1
    neighbours = range(z - count // 2, z + count // 2 + 1)
    return torch.stack([image[min(max(k, 0), last)] for k in neighbours])[:, None]


def _check_logits(
    logits: Tensor, spec: Spec, shape_zyx, engine: str, *, one_logit_is_a_sigmoid: bool
) -> None:
    expected = spec.num_classes
    binary = expected == 2 and one_logit_is_a_sigmoid
    if logits.shape[0] not in ({1, 2} if binary else {expected}):
        first = spec.negative if spec.task == "classification" else "the background"
        raise SeriesError(
            f"the network returned {logits.shape[0]} classes; bundle.toml names "
            f"{expected - 1} labels and {first}"
        )
    # One pass that allocates nothing; NaN shows in the extremes as infinity does.
    if not torch.isfinite(torch.stack(logits.aminmax())).all():
        stored = "in HU" if spec.modality == "ct" else "sound"
        raise SeriesError(
            f"the network returned logits that are not finite (engine {engine}); "
            f"try --engine torch, and check that the scan is {stored}"
        )


def _check_boxes(raw: Tensor, spec: Spec, shape_zyx, engine: str) -> None:
    """Shapes alone; decoding says whether what is in them is finite, when the host waits for it."""
    code, width = 2 * spec.dimensions, raw.shape[2]
    if width != code + spec.num_classes:
        raise SeriesError(
            f"the network returns {width} numbers for each default box; a box of "
            f"{spec.dimensions} dimensions has {code}, and bundle.toml names {len(spec.labels)} "
            f"labels and the background: {code + spec.num_classes}"
        )
    if spec.dimensions == 2:
        expected, entry = len(default_boxes_of(spec)), "[grid] size_zyx (SSD300 sees 300 x 300)"
    else:
        tile, detection = tiles_of(shape_zyx, spec).size_zyx, spec.detection
        per_place = len(detection.diameters_mm[0])
        expected = sum(boxes_per_level(tile, detection.strides, per_place))
        entry = f"[detection] strides and diameters_mm, on a tile of {tile}"
    if raw.shape[1] != expected:
        raise SeriesError(
            f"the network answers for {raw.shape[1]} default boxes; bundle.toml's {entry} "
            f"make {expected}"
        )


TASKS = {
    "segmentation": Task(
        _over_tiles,
        "logits",
        5,
        partial(_check_logits, one_logit_is_a_sigmoid=True),
        segmentation.decode,
    ),
    "classification": Task(
        _at_once,
        "logits",
        2,
        partial(_check_logits, one_logit_is_a_sigmoid=False),
        classification.decode,
    ),
    "detection": Task(_for_boxes, "boxes", 3, _check_boxes, detection.decode, _for_the_best_boxes),
}
