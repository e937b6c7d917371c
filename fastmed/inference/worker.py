"""A process that does a run's scans: it loads the model once and takes units from the journal.

It is told what to do by JSON lines on its standard input (the settings, then "go"), and stops
where that ends. What happens goes out as JSON lines on what was its standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any, TextIO

from fastmed.errors import BundleError, FastmedError, UsageError
from fastmed.inference.run_settings import RunSettings

_LOST = 70
KINDS_OF_ERROR = {"usage": UsageError, "bundle": BundleError, "other": FastmedError}


def main() -> int:
    """Runs until the journal has nothing left to do, or the input ends; returns 0 then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    events = _Events()
    lines = sys.stdin
    order = json.loads(lines.readline() or "null")
    if order is None:
        return 0
    try:
        return _run(RunSettings(**order["settings"]), order["before"], lines, events)
    except FastmedError as error:
        kind = next(k for k, known in KINDS_OF_ERROR.items() if isinstance(error, known))
        events.report({"event": "error", "kind": kind, "reason": str(error)})
        return 1


def _run(settings: RunSettings, before: Any, lines: TextIO, events: _Events) -> int:
    from fastmed.inference.journal import DiskFull, Journal
    from fastmed.inference.manifest import model_facts
    from fastmed.inference.owners import Owner
    from fastmed.inference.pipeline import DeviceLost, Pipeline
    from fastmed.inference.run_model import load_for_run

    def say(sentence: str) -> None:
        events.report({"event": "say", "sentence": sentence})

    model = load_for_run(settings, before, say)
    events.report({"event": "ready", "facts": model_facts(model)})
    if lines.readline().strip() != '"go"':
        return 0
    stopped = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(lines, stopped), daemon=True).start()
    output = settings.output_path
    with Journal(output) as journal, Owner(output) as owner:
        events.report({"event": "working", "owner": owner.token})
        try:
            Pipeline(journal, owner.token, model, settings, events.report, stopped).run()
        except DiskFull as error:
            events.report({"event": "disk full", "reason": str(error)})
            return 0
        except DeviceLost as error:
            print(error, file=sys.stderr)
            os._exit(_LOST)  # with its scans in hand, as a crash
    events.report({"event": "finished"})
    return 0


class _Events:
    """JSON lines to the process that started this one; prints of libraries go to stderr."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def report(self, event: dict[str, Any]) -> None:
        # Where nobody listens any more, the input has ended, too.
        with self._lock, contextlib.suppress(OSError):
            self._file.write(json.dumps(event) + "\n")


def _wait_for_the_end(lines: TextIO, stopped: threading.Event) -> None:
    for _ in lines:
        pass
    stopped.set()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a reading thread may still wait for a slow disk; all that counts is written
