"""Reference implementations in plain torch, and one table of op calls for tests and benches."""

from fastmed.testing.boxes import (
    BOX_CASES,
    batched_nms_reference,
    box_giou_reference,
    box_iou_reference,
    nms_mask_reference,
    nms_reference,
    random_boxes,
    random_scores,
    with_degenerate,
)
from fastmed.testing.case import OpCase
from fastmed.testing.grids import axis_matrix, fitted_matrix, oblique_matrix, sample_positions
from fastmed.testing.large import LARGE_CASES, labels_to_logits, organ_labels, strewn_boxes
from fastmed.testing.overlap import (
    OVERLAP_CASES,
    label_map,
    overlap_counts_reference,
    random_logits,
    softmax_overlap_reference,
)
from fastmed.testing.resample import (
    RESAMPLE_CASES,
    interpolated_logits,
    resample_argmax_reference,
    smooth_logits,
    stored_voxels,
    window_resample_reference,
)

# One family of ops per file; tests and benches pick up whatever stands here.
OP_CASES = (*BOX_CASES, *RESAMPLE_CASES, *OVERLAP_CASES, *LARGE_CASES)

__all__ = [
    "BOX_CASES",
    "LARGE_CASES",
    "OP_CASES",
    "OpCase",
    "axis_matrix",
    "batched_nms_reference",
    "box_giou_reference",
    "box_iou_reference",
    "fitted_matrix",
    "interpolated_logits",
    "label_map",
    "labels_to_logits",
    "nms_mask_reference",
    "nms_reference",
    "oblique_matrix",
    "organ_labels",
    "overlap_counts_reference",
    "random_boxes",
    "random_logits",
    "random_scores",
    "resample_argmax_reference",
    "sample_positions",
    "smooth_logits",
    "softmax_overlap_reference",
    "stored_voxels",
    "strewn_boxes",
    "window_resample_reference",
    "with_degenerate",
]
