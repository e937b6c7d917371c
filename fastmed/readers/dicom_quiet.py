"""Silence around pydicom: its warnings and log lines quote what they meet, names among it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_reading: ContextVar[bool] = ContextVar("is_reading", default=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps pydicom from warning and logging within the block, in this thread.

    A program that uses pydicom beside fastmed keeps its own warnings and log lines.
    """
    logging.getLogger("pydicom").addFilter(_is_no_reading)  # the same filter is added once
    before = _is_reading.set(True)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        _is_reading.reset(before)


def _is_no_reading(record: logging.LogRecord) -> bool:
    return not _is_reading.get()
