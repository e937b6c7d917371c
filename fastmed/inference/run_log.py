"""The log of a run for batch systems: one JSON object to the line, never a reason to fail."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from fastmed.errors import UsageError

# What an event may say, so that nothing else of a scan gets into a log. docs/formats.md names them.
EVENTS = {
    "run started": ("output", "model", "engine", "device", "scans", "to_do"),
    "scan started": ("series", "source", "attempt"),
    "scan done": (
        *("series", "source", "seconds", "stage_seconds", "tiles", "attempt", "warnings"),
    ),
    "scan skipped": ("series", "source", "reason"),
    "scan refused": ("series", "source", "reason"),
    "scan failed": ("series", "source", "reason"),
    "scan retried": ("series", "source", "reason", "attempt"),
    "scan set aside": ("series", "source", "reason", "attempt"),
    "stage seconds": ("stage_seconds", "done", "failed", "scans_per_hour"),
    "fallback": ("stage", "reason"),
    "run finished": ("done", "failed", "refused", "skipped", "seconds", "stage_seconds", "status"),
}
_LONGEST_TEXT = 1000


class RunLog:
    """Writes events as they happen; from any thread; use it as a context manager.

    target: a file, to which lines are appended, an open text stream, which stays open, or None,
        which makes every call do nothing.

    A log that cannot be written never stops the run: that is said once on stderr, and the events
    are dropped from then on. Only a file that cannot be opened raises UsageError, at once.
    """

    def __init__(self, target: str | os.PathLike | TextIO | None):
        self._lock = threading.Lock()
        self._owns = isinstance(target, str | os.PathLike)
        self._stream: TextIO | None = None
        if self._owns:
            self._stream = _opened(Path(target))
        elif target is not None:
            self._stream = target

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def event(self, kind: str, **facts: Any) -> None:
        """Writes {"time", "event", **facts} as one line and flushes it.

        kind: one of EVENTS, which lists what each may say. Raises ValueError for another kind or
        fact, so that no log holds what nobody looked at.
        """
        if kind not in EVENTS or (unknown := facts.keys() - set(EVENTS[kind])):
            named = kind if kind not in EVENTS else f"{kind}: {', '.join(sorted(unknown))}"
            raise ValueError(f"event {named}: not among those that a log may hold")
        if self._stream is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": kind} | _plain(facts), allow_nan=False) + "\n"
        with self._lock:
            self._write(line)

    def close(self) -> None:
        """Ends the log; further events are dropped."""
        with self._lock:
            stream, self._stream = self._stream, None
            if stream is not None and self._owns:
                with contextlib.suppress(OSError):
                    stream.close()

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            if isinstance(self._stream, io.RawIOBase):
                data = line.encode()
                if self._stream.write(data) != len(data):
                    raise OSError("the disk took part of a line")
            else:
                self._stream.write(line)
                self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed by its owner
            self._stream = None
            reason = getattr(error, "strerror", None) or str(error)
            with contextlib.suppress(OSError, ValueError):
                print(f"fastmed: the log ends here: {reason}; the run goes on", file=sys.stderr)


def _opened(path: Path) -> io.FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab", buffering=0)  # whole lines, or none
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(
            f"--log {path}: cannot be opened, {reason}; name a file that can be written"
        ) from error


def _plain(value: Any) -> Any:
    """What JSON holds: ASCII-safe, finite, texts on one line and cut where they are very long."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    text = str(value)
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
