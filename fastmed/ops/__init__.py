"""Kernels for CT on CPU and CUDA tensors; needs torch and numpy alone."""

from fastmed.ops.overlap import dice_score, iou_score, overlap_counts
from fastmed.ops.resample import resample_argmax, window_resample
from fastmed.ops.softmax_overlap import softmax_overlap

__all__ = [
    "dice_score",
    "iou_score",
    "overlap_counts",
    "resample_argmax",
    "softmax_overlap",
    "window_resample",
]
