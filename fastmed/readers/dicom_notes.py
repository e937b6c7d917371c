"""What a judge of DICOM slices notes: conditions, warnings, and the doubt that ends it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastmed.readers.series import CONDITIONS


class Doubt(Exception):
    """Why slices are not taken: a reason, its conditions, and the verdict "refused" or "failed"."""

    def __init__(self, reason: str, *conditions: str, verdict: str = "refused") -> None:
        super().__init__(reason)
        self.conditions = conditions
        self.verdict = verdict


@dataclass
class Notes:
    """What was found of a series so far: conditions for machines, warnings for people."""

    conditions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, *conditions: str, warning: str = "") -> None:
        """Notes conditions, and what was done about them."""
        self.conditions += conditions
        self.warnings += [warning] if warning else []

    def copy(self) -> Notes:
        """Notes of their own for one of several volumes."""
        return Notes([*self.conditions], [*self.warnings])


def in_order(conditions) -> tuple[str, ...]:
    """Each condition once, in the order of CONDITIONS."""
    found = set(conditions)
    return tuple(condition for condition in CONDITIONS if condition in found)
