"""The workers of a run, looked after: who crashes or hangs costs one scan, not the run.

Which scan brought a process down is known where one alone was in hand. Where several were, each
waits to be run with nothing beside it, after all others; the next crash then names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fastmed
from fastmed.errors import FastmedError
from fastmed.inference.journal import DiskFull, Journal
from fastmed.inference.recovery import recover
from fastmed.inference.run_settings import RunSettings
from fastmed.inference.worker import KINDS_OF_ERROR

COMMAND = [sys.executable, "-P", "-m", "fastmed.inference.worker"]
_STOP_SECONDS = 10.0  # for what is being written when a run is stopped
_POLL_SECONDS = 0.25
_CRASHES_IN_A_ROW = 5  # that no scan was in hand for
_ASLEEP_SECONDS = 30.0  # longer than any look at the clock lasts
_DECISIVE = ("model", "engine", "device", "precision", "seen_by")
_AT_WORK = ("read", "network", "finish")


@dataclass
class _Worker:
    """One process: where each of its scans is, and since when nothing was heard of it."""

    process: subprocess.Popen
    owner: str = ""
    stages: dict[str, tuple[str, float]] = field(default_factory=dict)
    is_known_to_hang: bool = False
    has_ended_well: bool = False


class Workers:
    """The processes of a run.

    settings: of the run; before: the model's facts of the run before in the same folder.
    on_event: receives what workers report; say: sentences for the user.
    hang_seconds: a scan of which nothing is heard for so long is stopped with its process.
    """

    def __init__(
        self,
        settings: RunSettings,
        before: dict[str, Any] | None,
        count: int,
        say: Callable[[str], None],
        hang_seconds: float,
    ) -> None:
        self._settings, self._before, self._count = settings, before, count
        self._say, self._hang_seconds = say, hang_seconds
        self._events: queue.Queue[tuple[_Worker, dict | None]] = queue.Queue()
        self._workers: list[_Worker] = [self._start()]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def facts(self) -> dict[str, Any]:
        """The model's facts, as soon as the first worker has loaded it.

        Raises what the worker met: UsageError, BundleError or FastmedError.
        """
        while True:
            worker, event = self._events.get()
            if event is None:
                raise FastmedError(
                    f"the process that loads the model {_how_it_ended(worker.process)}; "
                    "--workers 0 runs it in this one"
                )
            if event["event"] == "ready":
                self._before = self._facts = event["facts"]
                return event["facts"]
            self._common(event)

    def run(self, journal: Journal, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Has the workers do what waits in the journal.

        Raises DiskFull where there is no room left, FastmedError where no worker stays alive.
        """
        with contextlib.suppress(BrokenPipeError):  # how it ended will be heard
            self._workers[0].process.stdin.write('"go"\n')
            self._workers[0].process.stdin.flush()
        self._workers += [self._start(go=True) for _ in range(self._count - 1)]
        crashes, full, self._looked = 0, "", time.monotonic()
        while any(not worker.has_ended_well for worker in self._workers):
            if time.monotonic() - self._looked > _POLL_SECONDS:
                self._end_what_hangs(journal, on_event)
            try:
                worker, event = self._events.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                on_event({"event": "tick"})
                continue
            if event is not None:
                self._follow(worker, event)
                full = event["reason"] if event["event"] in ("disk full", "full") else full
                crashes = 0 if event["event"] in ("done", "unchanged", "failed") else crashes
                on_event(event)
                continue
            worker.process.wait()
            if worker.process.returncode == 0:
                worker.has_ended_well = True
                continue
            is_known = self._blame(worker, journal, on_event)
            self._workers.remove(worker)
            crashes = 0 if is_known else crashes + 1
            if crashes >= _CRASHES_IN_A_ROW:
                raise FastmedError(
                    f"the process that runs the model {_how_it_ended(worker.process)}, "
                    f"{crashes} times in a row with no scan in hand; the run goes on when it is "
                    "started again"
                )
            self._workers.append(self._start(go=True))
        if full:
            raise DiskFull(full)

    def stop(self) -> None:
        """Tells all to stop, waits for what is being written, and ends who does not."""
        for worker in self._workers:
            _close(worker.process.stdin)
        until = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(until - time.monotonic(), 0.1) if worker.owner else 0.1)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def _start(self, go: bool = False) -> _Worker:
        package_folder = str(Path(fastmed.__file__).parents[1])
        search = [package_folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        )
        worker = _Worker(process)
        order = {"settings": asdict(self._settings), "before": self._before}
        with contextlib.suppress(BrokenPipeError):  # how it ended will be heard
            process.stdin.write(json.dumps(order) + "\n" + '"go"\n' * go)
            process.stdin.flush()
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        for line in worker.process.stdout:
            try:
                self._events.put((worker, json.loads(line)))
            except ValueError:  # a line cut short by a crash
                break
        self._events.put((worker, None))

    def _common(self, event: dict[str, Any]) -> None:
        if event["event"] == "error":
            raise KINDS_OF_ERROR[event["kind"]](event["reason"])
        if event["event"] == "say":
            self._say(event["sentence"])

    def _follow(self, worker: _Worker, event: dict[str, Any]) -> None:
        """Notes where a worker's scans are."""
        self._common(event)
        what, name, now = event["event"], event.get("name"), time.monotonic()
        if what == "ready" and any(event["facts"][k] != self._facts[k] for k in _DECISIVE):
            raise FastmedError(
                f"bundle {self._settings.bundle}: it, or the engine that runs it, has changed "
                "since the run began; start the run again"
            )
        if what == "working":
            worker.owner = event["owner"]
        elif what == "stage":
            worker.stages[name] = (event["stage"], now)
        elif what == "tiles" and name in worker.stages:
            worker.stages[name] = (worker.stages[name][0], now)
        elif what == "say":  # such as an engine that builds for minutes at the first tile
            worker.stages = {name: (stage, now) for name, (stage, _) in worker.stages.items()}
        elif what in ("done", "failed", "unchanged", "full"):
            worker.stages.pop(name, None)

    def _end_what_hangs(self, journal: Journal, on_event) -> None:
        now = time.monotonic()
        if now - self._looked > _ASLEEP_SECONDS:  # the machine slept, or this process was stopped
            for worker in self._workers:
                worker.stages = {name: (stage, now) for name, (stage, _) in worker.stages.items()}
        self._looked = now
        for worker in self._workers:
            for name, (stage, heard) in list(worker.stages.items()):
                if stage in _AT_WORK and now - heard > self._hang_seconds:
                    worker.process.send_signal(signal.SIGKILL)
                    worker.process.wait()
                    worker.stages, worker.is_known_to_hang = {}, True
                    reason = f"nothing moved for {self._hang_seconds:g} s ({_DOING[stage]})"
                    self._attempt_failed(journal, name, worker.owner, reason, on_event)
                    break

    def _blame(self, worker: _Worker, journal: Journal, on_event) -> bool:
        """Counts a crash against the scan that was in hand, or has several run alone.

        Returns whether it could be counted against any.
        """
        stages = {name: stage for name, (stage, _) in worker.stages.items() if stage in _AT_WORK}
        units = [journal.unit(name) for name in stages]
        in_hand = [u.name for u in units if u.owner == worker.owner and u.state == "running"]
        if len(in_hand) == 1:
            reason = f"its process {_how_it_ended(worker.process)} ({_DOING[stages[in_hand[0]]]})"
            self._attempt_failed(journal, in_hand[0], worker.owner, reason, on_event)
        for name in in_hand if len(in_hand) > 1 else ():
            journal.wait_again(name, worker.owner, alone=True)
        recover(journal)
        return bool(in_hand) or worker.is_known_to_hang

    def _attempt_failed(self, journal: Journal, name: str, owner: str, reason: str, on_event):
        attempts = self._settings.attempts
        again = journal.failed(name, owner, reason, attempts=attempts, alone=True)
        if again is not None:
            on_event({"event": "failed", "name": name, "reason": reason, "again": again})


_DOING = {
    "read": "while it was read",
    "network": "while the network saw it",
    "finish": "while its results were made",
}


def _how_it_ended(process: subprocess.Popen) -> str:
    status = process.wait()
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _close(file) -> None:
    with contextlib.suppress(OSError):
        file.close()
