"""How much memory of freed results the CPU kernels keep for later ones."""

import torch

from fastmed.ops import _load  # noqa: F401


def keep_result_memory(limit_bytes: int) -> int:
    """Sets how much memory of freed results on the CPU this process keeps for later results.

    The system fills fresh memory with zeros when it is first written, which takes several times as
    long as most kernels of this package. So a result of 1 MB and more leaves its memory, once no
    tensor uses it, to a later one of half its size up to its own. 256 MB are kept unless this says
    otherwise, of 16 results at most; the memory kept longest goes back to the system first.

    On Linux with torch 2.11 or newer; elsewhere results are torch's own and nothing is kept.
    Such a result cannot grow in place (`resize_`), as a tensor over a NumPy array cannot.

    Args:
        limit_bytes: 0 keeps nothing and returns what is kept now.

    Returns:
        The limit before.

    Raises:
        ValueError: limit_bytes is negative.
        TypeError: limit_bytes is no integer.
    """
    if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int):
        raise TypeError(f"limit_bytes: {limit_bytes!r}; expected an integer")
    if limit_bytes < 0:
        raise ValueError(f"limit_bytes: {limit_bytes}; expected 0 or more")
    return torch.ops.fastmed.keep_result_memory(min(limit_bytes, 2**63 - 1))
