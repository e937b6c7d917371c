"""Shared batches: the tiles of several scans go through the network together.

A GPU wants full batches, and the last of a scan is seldom full. Scans that are at work at the same
time hand their tiles in here; what is missing to a full batch when all of them wait is filled up
with zeros. The network always sees batches of one size, so that what it says of a tile does not
depend on how many came with it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmed.errors import SeriesError
from fastmed.inference.engines import Engine


@dataclass(eq=False)
class _Order:
    """Tiles [n, C, D, H, W] of one scan, and what the network said of them so far."""

    tiles: Tensor
    said: list[Tensor] = field(default_factory=list)
    taken: int = 0
    done: int = 0
    error: BaseException | None = None
    is_done: threading.Event = field(default_factory=threading.Event)


class SharedBatches:
    """An engine for several threads at once; one thread of its own calls the engine it wraps.

    batch: tiles that the engine is given each time; `halve` has it be fewer. Tiles of another shape
    than those that wait go by themselves. Use it as a context manager; each scan runs inside
    `scan()`.
    """

    def __init__(self, engine: Engine, batch: int) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.say = engine.say
        self._engine, self.batch = engine, batch
        self._orders: deque[_Order] = deque()
        self._changed = threading.Condition()
        self._scans = 0
        self._waiting: set[_Order] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="network", daemon=True)
        self._thread.start()

    def __enter__(self) -> SharedBatches:
        return self

    def __exit__(self, *_) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(2.0)  # a daemon: a long call of the engine ends with the process

    @contextmanager
    def scan(self) -> Iterator[None]:
        """While a scan hands in tiles, others' batches wait for them."""
        with self._changed:
            self._scans += 1
        try:
            yield
        finally:
            with self._changed:
                self._scans -= 1
                self._changed.notify_all()

    def halve(self, batch: int) -> int:
        """Halves the batch, unless it is smaller than `batch` already; returns what it then is.

        batch: what the scan that asks began with. Of two scans that shared a batch which was too
        large, the second finds it halved.
        """
        with self._changed:
            if self.batch >= batch:
                self.batch = max(batch // 2, 1)
                self._changed.notify_all()
            return self.batch

    def __call__(self, tiles: Tensor) -> Tensor:
        order = _Order(tiles)
        with self._changed:
            self._orders.append(order)
            self._waiting.add(order)
            self._changed.notify_all()
        order.is_done.wait()
        if order.error is not None:
            # Else the error and its traceback hold each other, and the tiles, on the GPU.
            error, order.error = order.error, None
            try:
                raise error
            finally:
                del error
        return order.said[0] if len(order.said) == 1 else torch.cat(order.said)

    def network_input(self, tiles: Tensor) -> Tensor:
        return self._engine.network_input(tiles)

    def _serve(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._serve_one()
            except BaseException as error:  # nobody else would tell those who wait
                with self._changed:
                    for order in tuple(self._waiting):
                        order.error = error
                        self._end(order)
                    self._orders.clear()

    def _serve_one(self) -> bool:
        """Waits for one batch and serves it; False when there is none to come."""
        with self._changed:
            while not self._is_ready():
                if self._is_closed:
                    return False
                self._changed.wait()
            batch = self.batch  # others may halve it while the engine is at work
            parts = self._next_parts(batch)
        try:
            self._run(parts, batch)
        except BaseException as error:
            for order, _ in parts:
                order.error = error
        with self._changed:
            for order, _ in parts:
                if order.error is not None or order.done == len(order.tiles):
                    self._end(order)
        return True

    def _end(self, order: _Order) -> None:
        if order in self._waiting:
            self._waiting.remove(order)
            if order in self._orders:
                self._orders.remove(order)
            order.is_done.set()

    def _is_ready(self) -> bool:
        """Whether a batch is full, or nobody at work could still add to it."""
        queued = sum(len(order.tiles) - order.taken for order in self._alike())
        return queued >= self.batch or (queued > 0 and len(self._waiting) >= self._scans)

    def _alike(self) -> list[_Order]:
        """The orders whose tiles are of the shape of those that came first."""
        return [o for o in self._orders if o.tiles.shape[1:] == self._orders[0].tiles.shape[1:]]

    def _next_parts(self, batch: int) -> list[tuple[_Order, Tensor]]:
        parts, room = [], batch
        for order in self._alike():
            part = order.tiles[order.taken : order.taken + room]
            order.taken += len(part)
            room -= len(part)
            parts.append((order, part))
            if order.taken == len(order.tiles):
                self._orders.remove(order)
            if not room:
                break
        return parts

    def _run(self, parts: list[tuple[_Order, Tensor]], batch: int) -> None:
        tiles = [part for _, part in parts]
        sizes = [len(part) for part in tiles]
        missing = batch - sum(sizes)
        if missing:
            tiles.append(tiles[0].new_zeros(missing, *tiles[0].shape[1:]))
        said = self._engine(tiles[0] if len(tiles) == 1 else torch.cat(tiles))
        if len(said) != batch:
            raise SeriesError(
                f"the network answered for {len(said)} tiles of {batch} (engine {self.name}); "
                "its answer has to be of as many as it is given: check that it takes batches, "
                "or try --engine torch"
            )
        for (order, part), answer in zip(parts, said[: sum(sizes)].split(sizes), strict=True):
            # What an engine returns is valid until its next call.
            order.said.append(answer.clone())
            order.done += len(part)
