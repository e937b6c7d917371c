"""Synthetic CT with known truth, for tests, demonstrations and training."""

from fastmed.phantom.abdomen import CLASSES, LIVER, abdomen
from fastmed.phantom.chest import Chest, chest
from fastmed.phantom.slices import chest_slices, lesion_slice
from fastmed.phantom.textured_abdomen import textured_abdomen

__all__ = [
    "CLASSES",
    "LIVER",
    "Chest",
    "abdomen",
    "chest",
    "chest_slices",
    "lesion_slice",
    "textured_abdomen",
]
