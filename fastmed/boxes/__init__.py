"""Boxes of networks: where default ones stand, their codes, who matches whom, and other spaces."""

from fastmed.boxes.coding import WEIGHTS_2D, WEIGHTS_3D, decode, encode
from fastmed.boxes.defaults import (
    SSD300_PER_LEVEL,
    boxes_per_level,
    default_boxes,
    default_boxes_ssd300,
    diameters_in_voxels,
)
from fastmed.boxes.matching import BACKGROUND, IGNORED, match_atss, match_iou
from fastmed.boxes.spaces import boxes_from_lps, boxes_to_lps, moved_boxes

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "SSD300_PER_LEVEL",
    "WEIGHTS_2D",
    "WEIGHTS_3D",
    "boxes_from_lps",
    "boxes_per_level",
    "boxes_to_lps",
    "decode",
    "default_boxes",
    "default_boxes_ssd300",
    "diameters_in_voxels",
    "encode",
    "match_atss",
    "match_iou",
    "moved_boxes",
]
