"""The errors that fastmed raises on purpose: one sentence that names the thing and what to do."""

from __future__ import annotations


class FastmedError(Exception):
    """Something that a user can act on; the command prints it as one line."""


class UsageError(FastmedError):
    """The call itself is wrong: an unknown flag value, an absent engine. Exit status 2."""


class SeriesError(FastmedError):
    """One series cannot be read or processed; the other series of the run go on."""


class BundleError(FastmedError):
    """A model folder is incomplete, damaged or contradicts itself."""


class DataError(FastmedError):
    """Training data is wrong; every bad case has a line, so that one round mends them all."""

    @classmethod
    def listing(cls, what: str, problems: list[str]) -> DataError:
        """An error of one heading and a line for each problem."""
        return cls("\n  ".join([what, *problems]))
