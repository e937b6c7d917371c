"""Batches: patches of stored cases, cut, turned and windowed by one resampling each batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from fastmed.losses import Targets
from fastmed.ops import window_resample
from fastmed.spec import Spec
from fastmed.training.augment import (
    NOTHING,
    Augmentation,
    Drawn,
    after,
    bend,
    draw,
    patch_matrix,
    shade,
)
from fastmed.training.box_targets import (
    as_channels,
    input_channels,
    patch_size,
    patch_start,
    patch_targets,
)
from fastmed.training.stored_case import StoredCase

BALANCES = ("none", "over", "under", "both")
_AHEAD = 2  # batches that are made before they are asked for
_ORDER, _SAMPLE = 0, 1  # what a stream of random numbers is for


@dataclass(frozen=True)
class Sampling:
    """What is taken from the training cases.

    patch_zyx: voxels of a patch; None takes the spec's tile. A classification has its whole grid,
        a detection of 2 dimensions whole slices.
    samples_per_case: in one epoch.
    foreground: share of patches whose centre is a voxel of a label, each label as often; of a
        detection, share of patches (or slices) that have a finding.
    crop: what patches lie in: "scan", "label" (its extent and a margin) or (first, last) slice.
    balance: of the classes of a classification: "none", "over" (small classes are repeated),
        "under" (large ones cut) or "both".

    Raises ValueError that names the entry.
    """

    patch_zyx: tuple[int, int, int] | None = None
    samples_per_case: int = 1
    foreground: float = 0.5
    crop: str | tuple[int, int] = "scan"
    balance: str = "none"

    def __post_init__(self) -> None:
        patch, crop = self.patch_zyx, self.crop
        if patch is not None and (len(patch) != 3 or not all(_is_whole(n, 1) for n in patch)):
            raise ValueError(f"patch_zyx {patch}: expected three sizes of at least 1")
        if not _is_whole(self.samples_per_case, 1):
            raise ValueError(f"samples_per_case {self.samples_per_case}: expected at least 1")
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"foreground {self.foreground}: expected 0 to 1")
        is_range = isinstance(crop, tuple) and len(crop) == 2 and all(_is_whole(n, 0) for n in crop)
        if crop not in ("scan", "label") and not (is_range and crop[0] <= crop[1]):
            raise ValueError(f"crop {crop!r}: expected scan, label or [first, last] slice")
        if self.balance not in BALANCES:
            raise ValueError(f"balance {self.balance!r}: expected one of {', '.join(BALANCES)}")

    def check_fits(self, spec: Spec) -> None:
        """Raises ValueError where a model of this spec cannot be trained on such samples."""
        classifies = spec.task == "classification"
        if classifies and (self.patch_zyx or self.crop != "scan"):
            raise ValueError("sampling: a classification has its whole grid: no patch, no crop")
        if spec.task == "detection" and spec.dimensions == 2:
            if self.patch_zyx or self.crop != "scan":
                raise ValueError(
                    "sampling: a detection of slices has whole ones: no patch, no crop"
                )
        elif spec.task == "detection" and self.crop == "label":
            raise ValueError("sampling: crop label is for label maps; see foreground")
        if not classifies and self.balance != "none":
            raise ValueError("sampling: balance is for classifications; see foreground")
        patch = self.patch_zyx or spec.tile_zyx
        if spec.dimensions == 2 and patch is not None and patch[0] != 1:
            raise ValueError(f"patch_zyx {patch}: expected 1 slice for a 2D network")


def _is_whole(value, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's input.

    image: [B, 1, D, H, W] (2D: [B, C, H, W]) float32 in 0..1.
    target: classes, [B, D, H, W] (2D: [B, H, W]) uint8 or int16; of a classification [B] int64;
        of a detection the boxes of each sample, in voxels of its patch.
    names: of the cases.
    """

    image: Tensor
    target: Tensor | list[Targets]
    names: tuple[str, ...]


class TrainingSet:
    """Batches of the training cases: a function of seed, epoch and step, and of nothing else.

    augmentation: None takes patches as they are; they equal inference's grid bit by bit then.
    batch_size: over all processes. device: where batches are made and stay.

    An epoch has every case samples_per_case times, in a new order each, and wraps round to fill
    its last batch. Raises ValueError where a case has no truth, or the sampling does not fit.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        spec: Spec,
        sampling: Sampling,
        augmentation: Augmentation | None,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if not cases or batch_size < 1:
            raise ValueError(f"{len(cases)} cases, batch_size {batch_size}: expected at least 1")
        self._classifies = spec.task == "classification"
        self._detects = spec.task == "detection"
        for stored in cases:
            if _truth(stored, spec) is None:
                raise ValueError(f"{stored.case.name}: has no truth, so it cannot train")
        sampling.check_fits(spec)
        self._patch = sampling.patch_zyx or spec.tile_zyx
        if self._detects:
            self._patch = patch_size(spec, sampling.patch_zyx)
            self._channels = input_channels(spec) if spec.dimensions == 2 else None
        self.cases = tuple(cases)
        self.spec, self.sampling, self.augmentation = spec, sampling, augmentation
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self._orders: dict[int, np.ndarray] = {}
        self.steps_per_epoch = -(-len(self._drawn_order(1)) // batch_size)

    def batch(self, epoch: int, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """Batch `step` of an epoch: this rank's share of the batch of all ranks together."""
        if self.batch_size % world or not 0 <= rank < world:
            raise ValueError(
                f"batch_size {self.batch_size}, rank {rank} of {world}: expected equal shares"
            )
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"step {step}: an epoch has {self.steps_per_epoch}")
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        order = self._order(epoch)
        chosen = [self.cases[order[i % len(order)]] for i in range(first, first + share)]
        samples = [self._sample(c, epoch, first + i) for i, c in enumerate(chosen)]
        return self._made(chosen, samples)

    def epoch(
        self, epoch: int, *, first_step: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on, made ahead of time in a thread."""
        ready: queue.Queue = queue.Queue(maxsize=_AHEAD)
        stop = threading.Event()

        def work() -> None:
            try:
                for step in range(first_step, self.steps_per_epoch):
                    made = self.batch(epoch, step, rank=rank, world=world)
                    if not _put(ready, made, stop):
                        return
                _put(ready, None, stop)
            except BaseException as error:  # goes on in the thread that trains
                _put(ready, error, stop)

        thread = threading.Thread(target=work, name="fastmed-batches", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _order(self, epoch: int) -> np.ndarray:
        """Index of the case of each sample of an epoch."""
        known = self._orders.get(epoch)
        if known is None:
            known = self._drawn_order(epoch)
            self._orders = {epoch: known}
        return known

    def _drawn_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, _ORDER, epoch])
        order = np.arange(len(self.cases))
        if self.sampling.balance != "none":
            from fastmed.training.balance import resample

            targets = [stored.case.target for stored in self.cases]
            order = np.asarray(resample(targets, self.sampling.balance, rng))
        order = np.tile(order, self.sampling.samples_per_case)
        return order[rng.permutation(len(order))]

    def _sample(self, stored: StoredCase, epoch: int, index: int) -> tuple[np.ndarray, Drawn]:
        """Where a sample lies, as [3, 4] from its voxels to the stored ones, and its shading."""
        rng = np.random.default_rng([self.seed, _SAMPLE, epoch, index])
        patch = self._patch or stored.grid.shape_zyx
        start = self._start(stored, rng)
        drawn = NOTHING
        if self.augmentation is not None:
            drawn = draw(self.augmentation, rng, patch, self.spec.dimensions)
        placed = patch_matrix(start, patch, stored.grid.spacing_mm_zyx, drawn)
        return after(stored.matrix, placed), drawn

    def _start(self, stored: StoredCase, rng: np.random.Generator) -> list[int]:
        """First grid voxel of a patch: within the region where that is large enough."""
        if self._classifies:
            return [0, 0, 0]
        if self._detects:
            return patch_start(stored, self._patch, self.spec, self.sampling.foreground, rng)
        wants_label = rng.random() < self.sampling.foreground
        shares = rng.random(3)
        centre = None
        if wants_label and len(stored.points):
            values = np.unique(stored.points[:, 0])
            own = stored.points[stored.points[:, 0] == rng.choice(values)]
            voxel = own[rng.integers(len(own)), 1:]
            centre = np.rint(stored.grid.to_index(stored.geometry.to_world(voxel)))
        start = []
        for axis, (first, end) in enumerate(stored.region):
            last = max(end - self._patch[axis], first)
            if centre is None:
                start.append(min(first + int(shares[axis] * (last - first + 1)), last))
            else:
                start.append(int(np.clip(centre[axis] - self._patch[axis] // 2, first, last)))
        return start

    def _made(self, chosen: list[StoredCase], samples: list[tuple[np.ndarray, Drawn]]) -> Batch:
        matrices = [matrix for matrix, _ in samples]
        drawn = [each for _, each in samples]
        shapes = [self._patch or stored.grid.shape_zyx for stored in chosen]
        size = tuple(np.max(shapes, axis=0).tolist())
        fills = [stored.fill for stored in chosen]
        # One call takes one rule for the outside: where they differ, edges are repeated by hand.
        mixed = None in fills and any(fill is not None for fill in fills)
        boxes = [
            _reached(matrix, size, stored.voxels.shape, open_ended=mixed and stored.fill is None)
            for stored, matrix in zip(chosen, matrices, strict=True)
        ]
        moved = np.stack(
            [_moved(matrix, first) for matrix, (first, _) in zip(matrices, boxes, strict=True)]
        )
        on_device = torch.from_numpy(moved).to(self.device)
        voxels = self._sent([s.voxels for s in chosen], boxes)
        given = [fill for fill in fills if fill is not None]
        image = window_resample(
            voxels,
            on_device,
            size,
            scale=_per_item([stored.slope for stored in chosen]),
            shift=_per_item([stored.intercept for stored in chosen]),
            window=self._windows(drawn),
            fill=_per_item([given[0] if f is None else f for f in fills]) if given else None,
        )
        names = tuple(stored.case.name for stored in chosen)
        if self._classifies:
            target = torch.tensor([stored.case.target for stored in chosen], device=self.device)
            bend(image, None, drawn)
        elif self._detects:
            target = [
                patch_targets(stored, matrix, size, self.spec, self.device)
                for stored, matrix in zip(chosen, matrices, strict=True)
            ]
        else:
            target = self._labels(chosen, boxes, on_device, size, bool(given))
            bend(image, target, drawn)
        shade(image, drawn)
        if self._detects and self.spec.dimensions == 2:
            return Batch(as_channels(image, self._channels), target, names)
        if self.spec.dimensions == 2:
            image = image.squeeze(1)
            target = target if self._classifies else target.squeeze(1)
        return Batch(image.unsqueeze(1), target, names)

    def _labels(self, chosen, boxes, matrices: Tensor, size, has_fill: bool) -> Tensor:
        labels = self._sent([stored.labels for stored in chosen], boxes)
        return window_resample(
            labels,
            matrices,
            size,
            fill=0.0 if has_fill else None,
            mode="nearest",
            dtype=labels[0].dtype,
        )

    def _windows(self, drawn: list[Drawn]):
        low, high = self.spec.window_hu
        if not any(any(each.window) for each in drawn):
            return low, high
        width = high - low
        ends = [(low + each.window[0] * width, high + each.window[1] * width) for each in drawn]
        return torch.tensor(ends, dtype=torch.float64)

    def _sent(self, arrays: list[np.ndarray], boxes) -> list[Tensor]:
        """The pieces of the stored arrays that are needed, on the device, in one type."""
        pieces = [_cut(array, *box) for array, box in zip(arrays, boxes, strict=True)]
        dtype = np.result_type(*pieces)
        dtype = np.dtype(np.float32) if dtype == np.float64 else dtype
        tensors = []
        for piece in pieces:
            if self.device.type == "cpu":
                tensors.append(torch.from_numpy(piece.astype(dtype, copy=False)))
                continue
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            pinned = torch.empty(piece.shape, dtype=kind, pin_memory=True)
            np.copyto(pinned.numpy(), piece)
            tensors.append(pinned.to(self.device, non_blocking=True))
        return tensors


def _truth(stored: StoredCase, spec: Spec):
    """What the task learns from; None where the case does not say."""
    if spec.task == "detection":
        return stored.boxes
    return stored.case.target if spec.task == "classification" else stored.labels


def _put(ready: queue.Queue, item, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _per_item(values: list[float]):
    """One number where all are equal: it needs no copy to the device."""
    return values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=torch.float64)


def _moved(matrix: np.ndarray, first) -> np.ndarray:
    moved = matrix.copy()
    moved[:, 3] -= first
    return moved


def _reached(matrix: np.ndarray, size, shape, *, open_ended: bool):
    """First and end of the voxels that a patch of this size reads.

    open_ended: they may lie outside the array, else they end at its edges.
    """
    corners = np.array(list(product(*((0, n - 1) for n in size))))
    at = corners @ matrix[:, :3].T + matrix[:, 3]
    first = np.floor(at.min(axis=0)).astype(int) - 1
    end = np.ceil(at.max(axis=0)).astype(int) + 2
    if not open_ended:
        first = np.clip(first, 0, np.subtract(shape, 1))
        end = np.clip(end, first + 1, shape)
    return tuple(first.tolist()), tuple(end.tolist())


def _cut(array: np.ndarray, first, end) -> np.ndarray:
    """Voxels first .. end of an array; what lies outside repeats its edge."""
    if all(a >= 0 and b <= n for a, b, n in zip(first, end, array.shape, strict=True)):
        return array[tuple(slice(a, b) for a, b in zip(first, end, strict=True))]
    for axis, (a, b, n) in enumerate(zip(first, end, array.shape, strict=True)):
        array = np.take(array, np.arange(a, b).clip(0, n - 1), axis=axis)
    return array
