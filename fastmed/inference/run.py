"""Run: what became of an archive run, read from its journal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastmed.inference.journal import Journal
from fastmed.inference.outcome import counts, report_row
from fastmed.writers.report import ReportRow


@dataclass(frozen=True)
class Run:
    """A run's output folder, None where it was a dry one, and what its journal says."""

    output: Path | None
    _dry_rows: tuple[ReportRow, ...] = ()

    @classmethod
    def dry(cls, rows: tuple[ReportRow, ...]) -> Run:
        """A run that did nothing, with the rows of what it would not do."""
        return cls(None, rows)

    @cached_property
    def rows(self) -> tuple[ReportRow, ...]:
        """One row per series, in the index's order."""
        if self.output is None:
            return self._dry_rows
        with Journal(self.output) as journal:
            return tuple(report_row(unit, self.output) for unit in journal.listed())

    @cached_property
    def series_seconds(self) -> dict[str, dict[str, float]]:
        """Seconds per stage (read, resample, network, stitch, decode, write) of what was done."""
        if self.output is None:
            return {}
        with Journal(self.output) as journal:
            return {unit.name: unit.seconds for unit in journal.listed() if unit.state == "done"}

    @property
    def exit_status(self) -> int:
        """0 where all went well (what is no CT is skipped), 1 where a series did not.

        Series that the last run was not asked for do not count.
        """
        if self.output is None:
            return int(any(row.verdict in ("failed", "refused") for row in self._dry_rows))
        with Journal(self.output) as journal:
            found = counts(journal.listed())
        return int(bool(found["failed"] or found["refused"]))
