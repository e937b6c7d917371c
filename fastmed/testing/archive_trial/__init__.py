"""Trials of an archive run against the known truth: a tool has the long form, a test the short."""

from fastmed.testing.archive_trial.bundle import tiny_bundle
from fastmed.testing.archive_trial.command import Started, run, start
from fastmed.testing.archive_trial.kill import KillTrial, kill_trial
from fastmed.testing.archive_trial.measure import Measured, measure, per_series, tiles_in
from fastmed.testing.archive_trial.results import differences, digests, left_behind, stamps
from fastmed.testing.archive_trial.share import together_trial, union_trial
from fastmed.testing.archive_trial.verdicts import (
    Difference,
    compare_index,
    compare_manifest,
    table,
)

__all__ = [
    "Difference",
    "KillTrial",
    "Measured",
    "Started",
    "compare_index",
    "compare_manifest",
    "differences",
    "digests",
    "kill_trial",
    "left_behind",
    "measure",
    "per_series",
    "run",
    "stamps",
    "start",
    "table",
    "tiles_in",
    "tiny_bundle",
    "together_trial",
    "union_trial",
]
