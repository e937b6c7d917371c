"""What became of one series in a run, in the words of its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fastmed.inference.journal_units import Unit
from fastmed.writers.report import ReportRow

STOPPED = "the run was stopped before this scan was done; run it again"
NOT_ASKED_FOR = "not asked for in this run"


def outcome(unit: Unit) -> tuple[str, str]:
    """Returns verdict (done, refused, failed or skipped) and reason."""
    if unit.state == "done":
        return "done", ""
    if unit.state == "failed" and unit.verdict == "ok":
        tried = f" (tried {unit.attempts} times)" if unit.attempts > 1 else ""
        return "failed", unit.failure + tried
    if unit.verdict != "ok":
        return unit.verdict, unit.reason
    return ("failed", STOPPED) if unit.is_wanted else ("skipped", NOT_ASKED_FOR)


def counts(units: Iterable[Unit]) -> Counter[str]:
    """How many of the units that the last run was asked for came to each verdict."""
    return Counter(outcome(unit)[0] for unit in units if unit.is_wanted)


def report_row(unit: Unit, output: Path) -> ReportRow:
    """The row of report.html and of the table on the terminal."""
    verdict, reason = outcome(unit)
    if verdict != "done":
        return ReportRow(
            name=unit.name,
            source=unit.source,
            verdict=verdict,
            reason=reason,
            warnings=unit.warnings,
        )
    return ReportRow(
        name=unit.name,
        source=unit.source,
        findings=unit.row["findings"],
        preview_png=output / "series" / unit.name / "preview.png",
        seconds=sum(unit.seconds.values()),
    )
