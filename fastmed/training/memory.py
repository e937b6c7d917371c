"""Freed memory stays with the process: fresh pages take half of an eager CPU step otherwise."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed, for the life of this process.

    Every activation of a training step is freed and asked for again in the next one; handed back
    to the system between, its pages are zeroed and mapped anew each time. Returns whether the C
    library took the settings (others than glibc have no mallopt).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD_BYTES))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
