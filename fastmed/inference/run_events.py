"""What happens in a run, as it happens: to the progress display and to the log."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from fastmed.inference.journal import Journal
from fastmed.inference.run_log import RunLog
from fastmed.inference.run_progress import RunProgress

_SECONDS_BETWEEN_STAGES = 60.0  # how often the log says what the stages take


class RunEvents:
    """Takes what workers report; use it as a context manager.

    facts: of the model, for the log's first line.
    """

    def __init__(self, journal: Journal, facts: dict[str, Any], log: RunLog, quiet: bool) -> None:
        states = journal.counts()
        self._journal, self._log = journal, log
        self._done, self._failed = states.get("done", 0), 0
        self._before = self._done
        self._stage_seconds: Counter[str] = Counter()
        self._current = ""
        self._started = self._said = time.monotonic()
        to_do = states.get("waiting", 0)
        self._progress = RunProgress(to_do + self._done, quiet=quiet, already_done=self._done)
        log.event(
            "run started",
            output=str(journal.folder),
            model=facts["model"]["name"],
            engine=facts["engine"],
            device=facts["device"],
            scans=sum(states.values()),
            to_do=to_do,
        )
        for unit in journal.listed():
            if unit.verdict != "ok":
                named = {"series": unit.name, "source": unit.source, "reason": unit.reason}
                log.event(f"scan {unit.verdict}", **named)

    def __enter__(self) -> RunEvents:
        self._progress.__enter__()
        return self

    def __exit__(self, kind, *_) -> None:
        self._progress.__exit__()
        states = self._journal.counts()
        self._log.event(
            "run finished",
            done=states.get("done", 0),
            failed=states.get("failed", 0),
            refused=states.get("refused", 0),
            skipped=states.get("skipped", 0),
            seconds=time.monotonic() - self._started,
            stage_seconds=dict(self._stage_seconds),
            status="finished" if kind is None else "stopped",
        )

    def take(self, event: dict[str, Any]) -> None:
        """Takes one event of a pipeline, or a "tick" that only asks for a look at the clock."""
        what = event["event"]
        if what == "stage":
            self._stage(event)
        elif what in ("done", "unchanged"):
            self._end(event)
        elif what == "failed":
            self._fail(event)
        elif what == "fallback":
            self._log.event("fallback", stage="network", reason=event["reason"])
        self._progress.update(
            done=self._done,
            failed=self._failed,
            stage_seconds=self._stage_seconds,
            current=self._current,
        )
        if time.monotonic() - self._said > _SECONDS_BETWEEN_STAGES:
            self._said = time.monotonic()
            self._log.event(
                "stage seconds",
                stage_seconds=dict(self._stage_seconds),
                done=self._done,
                failed=self._failed,
                scans_per_hour=3600 * (self._done - self._before) / (self._said - self._started),
            )

    def _stage(self, event: dict[str, Any]) -> None:
        name, source = event["name"], event["source"]
        if event["stage"] == "read":
            attempt = self._journal.unit(name).attempts + 1
            self._log.event("scan started", series=name, source=source, attempt=attempt)
        elif event["stage"] == "network":
            self._current = source

    def _end(self, event: dict[str, Any]) -> None:
        name, seconds = event["name"], event.get("seconds", {})
        self._done += 1
        self._stage_seconds.update(seconds)
        unit = self._journal.unit(name)
        self._log.event(
            "scan done",
            series=name,
            source=unit.source,
            seconds=sum(seconds.values()),
            stage_seconds=seconds,
            tiles=event.get("tiles", 0),
            attempt=unit.attempts + 1,
            warnings=len(unit.row.get("findings", {}).get("warnings", [])),
        )

    def _fail(self, event: dict[str, Any]) -> None:
        unit = self._journal.unit(event["name"])
        facts = {"series": unit.name, "source": unit.source, "reason": event["reason"]}
        if event["again"]:
            self._log.event("scan retried", **facts, attempt=unit.attempts)
            return
        self._failed += 1
        self._log.event("scan set aside", **facts, attempt=unit.attempts)
        self._progress.say(f"failed: {unit.source}: {event['reason']}")
