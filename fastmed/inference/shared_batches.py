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

    batch: tiles that the engine is given each time. Tiles of another shape than those that wait go
    by themselves. Use it as a context manager; each scan runs inside `scan()`.
    """

    def __init__(self, engine: Engine, batch: int) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.say = engine.say
        self._engine, self.batch = engine, batch
        self._orders: deque[_Order] = deque()
        self._changed = threading.Condition()
        self._scans = self._waiting = 0
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

    def __call__(self, tiles: Tensor) -> Tensor:
        order = _Order(tiles)
        with self._changed:
            self._orders.append(order)
            self._waiting += 1
            self._changed.notify_all()
        order.is_done.wait()
        if order.error is not None:
            raise order.error
        return order.said[0] if len(order.said) == 1 else torch.cat(order.said)

    def network_input(self, tiles: Tensor) -> Tensor:
        return self._engine.network_input(tiles)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._is_ready():
                    if self._is_closed:
                        return
                    self._changed.wait()
                parts = self._next_parts()
            try:
                self._run(parts)
            except BaseException as error:
                for order, _ in parts:
                    order.error = error
            with self._changed:
                for order, _ in parts:
                    if order.error is not None or order.done == len(order.tiles):
                        self._end(order)

    def _end(self, order: _Order) -> None:
        if not order.is_done.is_set():
            self._waiting -= 1
            if order in self._orders:
                self._orders.remove(order)
            order.is_done.set()

    def _is_ready(self) -> bool:
        """Whether a batch is full, or nobody at work could still add to it."""
        queued = sum(len(order.tiles) - order.taken for order in self._alike())
        return queued >= self.batch or (queued > 0 and self._waiting >= self._scans)

    def _alike(self) -> list[_Order]:
        """The orders whose tiles are of the shape of those that came first."""
        return [o for o in self._orders if o.tiles.shape[1:] == self._orders[0].tiles.shape[1:]]

    def _next_parts(self) -> list[tuple[_Order, Tensor]]:
        parts, room = [], self.batch
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

    def _run(self, parts: list[tuple[_Order, Tensor]]) -> None:
        first = parts[0][1]
        tiles = first
        if len(parts) > 1 or len(first) < self.batch:
            tiles = first.new_zeros(self.batch, *first.shape[1:])
            torch.cat([part for _, part in parts], out=tiles[: sum(len(p) for _, p in parts)])
        said, at = self._engine(tiles), 0
        for order, part in parts:
            # What an engine returns is valid until its next call.
            order.said.append(said[at : at + len(part)].clone())
            order.done += len(part)
            at += len(part)
