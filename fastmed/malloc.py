"""What glibc's malloc does with freed memory, for a process that is there to run networks."""

from __future__ import annotations

import ctypes

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_TOP_PAD = 64 * 2**20
_LARGE = 16 * 2**20


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed; returns whether this process has glibc.

    torch on the CPU takes fresh memory for each layer's result. Large blocks are mapped and
    unmapped each time, and the system fills every page with zeros first: half of the time of a 3D
    network, and of a training step.
    The process never shrinks from then on.
    """
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: _TOP_PAD})


def return_large_blocks() -> bool:
    """Has glibc return blocks of 16 MB and more when they are freed; whether this process has it.

    Left to itself it learns from what is freed to keep blocks of up to 32 MB, and scans of many
    sizes, freed by other threads than took them, leave holes that the process holds for good.
    """
    return _set({_M_MMAP_THRESHOLD: _LARGE})


def _set(options: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    return all(mallopt(name, value) == 1 for name, value in options.items())
