"""Slice pictures: one slice of a CT as 8 bits of grey."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fastmed.volume import Volume
from fastmed.writers.atomic import write_atomically

LUNG_WINDOW_HU = (-1000.0, 400.0)
PICTURES = ("png", "bmp")


def grey_slice(volume: Volume, z: int, window_hu: tuple[float, float]) -> np.ndarray:
    """Slice z as [H, W] uint8, 0 at the window's low end and 255 at its high end, and beyond."""
    low, high = window_hu
    hu = volume.voxels[z] * np.float32(volume.slope) + np.float32(volume.intercept)
    return np.rint(np.clip((hu - low) / (high - low), 0.0, 1.0) * 255).astype(np.uint8)


def write_picture(gray: np.ndarray, path: Path) -> None:
    """Writes [H, W] uint8 as PNG or BMP, by the path's ending."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, path.suffix[1:].upper())
    write_atomically(path, [buffer.getvalue()])
