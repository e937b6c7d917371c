"""Others' ways to do what a call of OP_CASES does, made from the call's own arguments.

`of(case, arguments)` gives every rival that can express a call; what a rival may prepare
once (its own image type, its memory layout, its best dtype) is done before its clock starts.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastmed.testing import OpCase
from rivals import argmax, boxes, overlap, softmax, window
from rivals.rival import Disagreement, Rival, with_gradients

_MAKERS = {
    "window_resample": window.window_rivals,
    "resample_argmax": argmax.argmax_rivals,
    "overlap_counts": overlap.count_rivals,
    "box_iou": boxes.iou_rivals,
    "box_giou": boxes.giou_rivals,
    "nms": boxes.nms_rivals,
    "batched_nms": boxes.batched_nms_rivals,
    "nms_mask": boxes.nms_mask_rivals,
    "softmax_overlap": softmax.softmax_rivals,
}


def of(case: OpCase, arguments: tuple) -> dict[str, Rival]:
    """Named rivals of one call; none for an op that nobody else has."""
    maker = _MAKERS.get(case.op)
    return {} if maker is None else maker(*arguments, large=case.large, **case.keywords)


def free_bytes() -> int:
    """Memory that a rival may take: two thirds of what the machine has left."""
    facts = Path("/proc/meminfo")
    if facts.exists():
        lines = facts.read_text().splitlines()
        free = (
            next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
        )
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free * 2 // 3


__all__ = ["Disagreement", "Rival", "free_bytes", "of", "with_gradients"]
