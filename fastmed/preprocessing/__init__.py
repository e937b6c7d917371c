"""Preprocessing: a Volume becomes the network's grid, the same way in training and inference."""

from fastmed.preprocessing.grid import grid_geometry, to_grid

__all__ = ["grid_geometry", "to_grid"]
