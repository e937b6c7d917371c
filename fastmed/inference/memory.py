"""Memory of kinds that runs are faster with: kept by the process, or pinned for a GPU."""

from __future__ import annotations

import ctypes

import numpy as np

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed; returns whether this process has glibc.

    torch on the CPU takes fresh memory for each layer's result. Large blocks are mapped and
    unmapped each time, and the system fills every page with zeros first: half of the time of a 3D
    network.
    The process never shrinks from then on, so this is for one that is there to run networks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: _TOP_PAD}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of pinned memory, which a GPU copies from without a detour; else an ordinary one.

    There may be too little of it, and no GPU: the array is then as `numpy.empty` makes it.
    """
    import torch

    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    try:
        return torch.empty(shape, dtype=kind, pin_memory=True).numpy()
    except RuntimeError:
        return np.empty(shape, dtype)
