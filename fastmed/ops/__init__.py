"""Kernels for CT on CPU and CUDA tensors; needs torch and numpy alone."""

from fastmed.ops.boxes import box_giou, box_iou
from fastmed.ops.memory import keep_result_memory
from fastmed.ops.overlap import dice_score, iou_score, overlap_counts
from fastmed.ops.resample import resample_argmax, window_resample
from fastmed.ops.softmax_overlap import softmax_overlap
from fastmed.ops.suppression import batched_nms, nms, nms_mask

__all__ = [
    "batched_nms",
    "box_giou",
    "box_iou",
    "dice_score",
    "iou_score",
    "keep_result_memory",
    "nms",
    "nms_mask",
    "overlap_counts",
    "resample_argmax",
    "softmax_overlap",
    "window_resample",
]
