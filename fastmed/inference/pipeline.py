"""The pipeline of one process: scans are read ahead, seen by the network, and finished behind it.

Three stages overlap, each in a thread of its own: reading (with the resampling), the network, and
finishing (decoding, writing, the journal). What a stage says of a scan does not depend on what
runs beside it, so that the results are the same bytes in any order.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from fastmed.errors import FastmedError
from fastmed.geometry import Geometry
from fastmed.inference.case import Model, StageClock
from fastmed.inference.content import content_sha256
from fastmed.inference.journal import DiskFull, Journal
from fastmed.inference.journal_units import Unit
from fastmed.inference.manifest import model_facts
from fastmed.inference.memory_budget import MemoryBudget, cost_of
from fastmed.inference.out_of_memory import is_device_lost
from fastmed.inference.pinned import pinned
from fastmed.inference.recovery import recover
from fastmed.inference.run_network import RunNetwork
from fastmed.inference.run_settings import RunSettings
from fastmed.inference.run_tables import table_row
from fastmed.inference.series_folder import SeriesFolder, is_whole
from fastmed.readers.index import read_series
from fastmed.readers.reread import opened
from fastmed.readers.series import Series
from fastmed.readers.series_json import series_from_dict
from fastmed.volume import Volume
from fastmed.writers.atomic import is_full

_POLL_SECONDS = 0.2
_LOOK_FOR_THE_DEAD_SECONDS = 2.0
_GRACE_SECONDS = 5.0
_BEHIND = 1  # scans that are finished while the network sees others
_STOP_SECONDS = 2.0  # for the network to come to the end of a batch, when the run stops
_TILES_SECONDS = 0.1  # no more often than this it is said how many tiles are done

Report = Callable[[dict[str, Any]], None]


class DeviceLost(FastmedError):
    """A GPU answers no more in this process; another process may go on."""


class _Dropped(Exception):
    """The run was stopped while the network saw this scan."""


@dataclass
class _Case:
    """One scan on its way through the stages."""

    unit: Unit
    entry: Series
    cost: int
    clock: StageClock = field(default_factory=StageClock)
    content: str = ""
    volume: Volume | None = None
    image: Tensor | None = None
    grid: Geometry | None = None
    said: Any = None
    model: Model | None = None
    warnings: tuple[str, ...] = ()
    tiles: int = 0
    has_place: bool = False


class Pipeline:
    """Does the units of a journal that wait, until none is left or it is stopped.

    report: receives what happens, as plain dicts: "stage" (read, wait, network, finish), "tiles",
        "done", "unchanged", "failed" and "full", each with the unit's name. It is called from
        several threads.
    stopped: set it to stop: scans in finishing are finished, all others in hand wait again.
    """

    def __init__(
        self,
        journal: Journal,
        owner: str,
        model: Model,
        settings: RunSettings,
        report: Report,
        stopped: threading.Event,
    ) -> None:
        self._journal, self._owner, self._model = journal, owner, model
        self._settings, self._report, self._stopped = settings, report, stopped
        self._output = settings.output_path
        self._results = settings.results_key(model_facts(model))
        self._formats = set(settings.formats)
        self._budget = MemoryBudget(settings.memory_bytes)
        self._ready: queue.Queue[_Case | None] = queue.Queue()
        self._network = RunNetwork(model)
        # As many as the network sees at once are being read, or wait for it.
        self._ahead = threading.Semaphore(self._network.at_once)
        self._places = threading.Semaphore(self._network.at_once + _BEHIND)
        self._allocate = np.empty if model.engine.device == "cpu" else pinned
        self._claiming = threading.Lock()
        self._in_hand: dict[str, Unit] = {}
        self._full: DiskFull | None = None
        self._broken: BaseException | None = None

    def run(self) -> None:
        """Returns when all units are done, set aside, or stopped.

        Raises DiskFull where there is no room left, and what went wrong with the journal.
        """
        # Daemons: what the network takes long to say need not be waited for when the run stops.
        reader = threading.Thread(target=self._read_all, name="read", daemon=True)
        reader.start()
        try:
            with self._network, ThreadPoolExecutor(1, "finish") as finisher:
                lookers = [
                    threading.Thread(target=self._look_at_all, args=(finisher,), daemon=True)
                    for _ in range(self._network.at_once)
                ]
                for looker in lookers:
                    looker.start()
                try:
                    while any(looker.is_alive() for looker in lookers):
                        for looker in lookers:
                            looker.join(_POLL_SECONDS / len(lookers))
                        if self._stopped.is_set():
                            break
                finally:
                    self._stopped.set()
                    for looker in lookers:
                        looker.join(_STOP_SECONDS)
        finally:
            self._stopped.set()
            reader.join()
            # With the process that lost its GPU the scans in hand are judged by who looks after it.
            if not isinstance(self._broken, DeviceLost):
                self._journal.release(self._owner)
        for error in (self._full, self._broken):
            if error is not None:
                raise error

    def _next_case(self) -> _Case | None:
        """The next scan that is read, when there is room for it behind the network."""
        while not self._places.acquire(timeout=_POLL_SECONDS):
            if self._stopped.is_set():
                return None
        while True:
            try:
                case = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self._stopped.is_set():
                    return None
                continue
            if case is None:
                self._ready.put(None)  # for the others who look
                return None
            case.has_place = True
            self._ahead.release()
            return case

    def _read_all(self) -> None:
        try:
            while not self._stopped.is_set():
                if not self._ahead.acquire(timeout=_POLL_SECONDS):
                    continue
                unit = self._claim()
                if unit is None:
                    break
                case = self._read(unit)
                if case is None:
                    self._ahead.release()
                else:
                    self._ready.put(case)
                case = None
            self._ready.put(None)
        except BaseException as error:  # of the journal, or Ctrl-C: the run ends with it
            self._broken = error
            self._stopped.set()

    def _claim(self) -> Unit | None:
        """The next unit, waiting for what may still come back from here or another process."""
        looked, dead = 0.0, {}
        while not self._stopped.is_set():
            with self._claiming:
                alone = any(unit.alone for unit in self._in_hand.values())
                if not alone:
                    unit = self._journal.claim(self._owner, self._results, alone=not self._in_hand)
                    if unit is not None:
                        self._in_hand[unit.name] = unit
                        return unit
            if not self._in_hand and not self._journal.is_at_work():
                return None
            now = time.monotonic()
            if now - looked > _LOOK_FOR_THE_DEAD_SECONDS:
                # Who looks after the dead, and counts what they died of, goes first.
                dead = {token: dead.get(token, now) for token in self._journal.dead_owners()}
                fresh = {t for t, since in dead.items() if now - since < _GRACE_SECONDS}
                recover(self._journal, fresh)
                looked = now
            self._stopped.wait(_POLL_SECONDS)
        return None

    def _read(self, unit: Unit) -> _Case | None:
        entry = series_from_dict(unit.entry)
        case = _Case(unit, entry, cost_of(entry, self._model.spec))
        if not self._budget.take(case.cost, self._stopped):
            self._in_hand.pop(unit.name, None)
            return None
        self._stage(unit, "read")
        try:
            with case.clock("read"), opened(entry) as there:
                case.content = content_sha256(there)
                if self._is_made(unit, case.content):
                    self._journal.done(unit.name, self._owner)
                    self._let_go(case)
                    self._report({"event": "unchanged", "name": unit.name})
                    return None
                case.volume = read_series(there, allocate=self._allocate)
            case.image, case.grid = self._model.prepare(case.volume, clock=case.clock)
        except Exception as error:
            self._failed(case, error)
            return None
        self._stage(unit, "wait")
        return case

    def _is_made(self, unit: Unit, content: str) -> bool:
        """Whether what lies there was made from the same bytes in the same way."""
        same = unit.made_key == unit.key and unit.content == content
        return same and is_whole(self._output / "series" / unit.name, unit.files)

    def _look_at_all(self, finisher: ThreadPoolExecutor) -> None:
        try:
            while (case := self._next_case()) is not None:
                if self._look(case) and not self._stopped.is_set():
                    finisher.submit(self._finish, case)
                case = None
        except BaseException as error:  # of the journal
            self._broken = error
            self._stopped.set()

    def _look(self, case: _Case) -> bool:
        """Shows a scan to the network; returns whether there is something to finish."""
        unit = case.unit
        if self._stopped.is_set():
            self._let_go(case)
            return False
        self._stage(unit, "network")
        said_last = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal said_last
            if self._stopped.is_set():
                raise _Dropped
            case.tiles = total
            if time.monotonic() - said_last > _TILES_SECONDS or done == total:
                said_last = time.monotonic()
                tiles = {"event": "tiles", "name": unit.name, "done": done, "total": total}
                self._report(tiles)

        def fallback(words: str) -> None:
            self._report({"event": "fallback", "name": unit.name, "reason": words})

        try:
            said = self._network.look(
                case.volume, case.image, case.grid, case.clock, progress, fallback
            )
            case.said, case.grid, case.model, case.warnings = said
            case.image = None
            return True
        except _Dropped:
            self._let_go(case)
        except Exception as error:
            self._failed(case, error)
        return False

    def _finish(self, case: _Case) -> None:
        try:
            self._finish_or_fail(case)
        except BaseException as error:  # of the journal, or Ctrl-C: the run ends with it
            self._broken = error
            self._stopped.set()

    def _finish_or_fail(self, case: _Case) -> None:
        unit = case.unit
        folder = SeriesFolder(self._output, unit.name, self._owner)
        self._stage(unit, "finish")
        try:
            findings = case.model.decode(case.said, case.grid, case.volume, clock=case.clock)
            findings = replace(findings, warnings=(*findings.warnings, *case.warnings))
            case.said = None
            with case.clock("write"):
                findings, files = folder.write(
                    case.entry, case.volume, findings, self._formats, self._model.spec
                )
                row = table_row(case.volume, findings, self._model.spec)
            is_mine = self._journal.written(
                unit.name,
                self._owner,
                content=case.content,
                files=files,
                row=row,
                seconds=case.clock.seconds,
            )
            if not is_mine:  # the run was stopped meanwhile: the scan waits, or is another's
                folder.take_back()
                self._let_go(case)
                return
            folder.put_in_place()
            self._journal.done(unit.name, self._owner)
        except Exception as error:
            with suppress(OSError):
                folder.take_back()
            self._failed(case, error)
            return
        self._let_go(case)
        done = {"event": "done", "name": unit.name, "tiles": case.tiles}
        self._report(done | {"seconds": case.clock.seconds})

    def _failed(self, case: _Case, error: Exception) -> None:
        """Counts a failed attempt; a full disk is no fault of the scan's and ends the run."""
        unit = case.unit
        if is_device_lost(error):  # every further call fails, whatever the scan
            raise DeviceLost(f"{self._model.engine.device} is lost: {error}") from error
        self._let_go(case)
        if is_full(error) or isinstance(error, DiskFull):
            self._full = self._full or DiskFull(str(error))
            self._stopped.set()
            self._journal.release(self._owner)
            self._report({"event": "full", "name": unit.name, "reason": str(error)})
            return
        reason = str(error)
        if not isinstance(error, FastmedError | OSError | MemoryError):
            reason = f"unexpected {type(error).__name__}: {error}"
        again = self._journal.failed(
            unit.name,
            self._owner,
            reason or type(error).__name__,
            attempts=self._settings.attempts,
            alone=isinstance(error, MemoryError),
        )
        if again is not None:
            self._report({"event": "failed", "name": unit.name, "reason": reason, "again": again})

    def _let_go(self, case: _Case) -> None:
        case.volume = case.image = case.said = None
        if case.has_place:
            case.has_place = False
            self._places.release()
        self._budget.give_back(case.cost)
        self._in_hand.pop(case.unit.name, None)

    def _stage(self, unit: Unit, stage: str) -> None:
        self._report({"event": "stage", "name": unit.name, "source": unit.source, "stage": stage})
