"""Pinned memory, which a GPU copies from without a detour."""

from __future__ import annotations

import numpy as np


def pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of pinned memory; else an ordinary one.

    There may be too little of it, and no GPU: the array is then as `numpy.empty` makes it.
    """
    import torch

    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    try:
        return torch.empty(shape, dtype=kind, pin_memory=True).numpy()
    except RuntimeError:
        return np.empty(shape, dtype)
