"""What a TensorRT build says while it is at work."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

_REPORT_SECONDS = 5.0


def build_monitor(trt: Any, what: str, say: Callable[[str], None]) -> Any:
    """A TensorRT IProgressMonitor that says now and then how far `what` is.

    interrupt: what was raised meanwhile, such as KeyboardInterrupt. It must not cross into C++: the
        build is told to stop, and whoever asked for it raises it.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupt: BaseException | None = None
            self._phases: dict[str, list] = {}  # name: parent, steps, steps done
            self._started = self._reported = time.monotonic()

        def phase_start(self, phase_name, parent_phase, num_steps) -> None:
            with self._kept():
                self._phases[phase_name] = [parent_phase, max(num_steps, 1), 0]

        def phase_finish(self, phase_name) -> None:
            with self._kept():
                self._phases.pop(phase_name, None)

        def step_complete(self, phase_name, step) -> bool:
            with self._kept():
                if phase_name in self._phases:
                    self._phases[phase_name][2] = step + 1
                self._report()
            return self.interrupt is None

        @contextmanager
        def _kept(self):
            try:
                yield
            except BaseException as error:
                self.interrupt = error

        def _report(self) -> None:
            now = time.monotonic()
            if now - self._reported < _REPORT_SECONDS:
                return
            self._reported = now
            share = self._share(None)
            say(f"{what}: {100 * share:.0f} %, {now - self._started:.0f} s")

        def _share(self, parent: str | None) -> float:
            """How far the phases under one are, 0..1."""
            shares = [
                min(done + self._share(name), steps) / steps
                for name, (above, steps, done) in self._phases.items()
                if above == parent != name
            ]
            return max(shares, default=0.0)

    return Monitor()
