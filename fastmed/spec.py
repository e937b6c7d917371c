"""Spec: what training, export and inference of one model must agree on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Label:
    """One class of a model: its value in the label map, its name, its SNOMED CT code if known."""

    value: int
    name: str
    snomed_ct: str = ""


@dataclass(frozen=True)
class Network:
    """A network of `fastmed.models` by name, with the arguments that build it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """How a model sees a scan and what its outputs mean.

    task: "segmentation".
    labels: the foreground classes; 0 is background; the values are 1, 2, ..., len(labels).
    spacing_mm_zyx: voxel spacing of the network's grid in mm.
    window_hu: (low, high) of the intensity window that becomes 0..1.
    outside_hu: what stands outside a sheared scan.
    tile_zyx: voxels of a sliding-window tile, each at least 1.
    overlap: share of a tile, 0 <= overlap < 1, that it has in common with its neighbour.
    size_multiple: an axis shorter than the tile is padded to the next multiple of this.
    network: how to build it in torch; None where the bundle brings only an ONNX file.

    Raises ValueError that names the field.
    """

    name: str
    task: str
    labels: tuple[Label, ...]
    spacing_mm_zyx: tuple[float, float, float]
    window_hu: tuple[float, float]
    tile_zyx: tuple[int, int, int]
    overlap: float = 0.25
    size_multiple: int = 16
    outside_hu: float = -1024.0
    network: Network | None = None
    trained_on: str = ""
    notice: str = ""

    def __post_init__(self) -> None:
        if self.task != "segmentation":
            raise ValueError(f"task {self.task!r}: this version knows 'segmentation'")
        if [label.value for label in self.labels] != list(range(1, len(self.labels) + 1)):
            raise ValueError("labels: expected the values 1, 2, 3, ... in order")
        if not self.labels:
            raise ValueError("labels: a model names at least one label")
        if len({label.name for label in self.labels}) != len(self.labels):
            raise ValueError("labels: two labels have the same name")
        spacing, window = self.spacing_mm_zyx, self.window_hu
        if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
            raise ValueError(f"spacing_mm_zyx {spacing}: expected three positive numbers")
        if len(window) != 2 or not all(map(math.isfinite, window)) or window[1] <= window[0]:
            raise ValueError(f"window_hu {window}: expected (low, high) with low < high")
        if len(self.tile_zyx) != 3 or not all(isinstance(n, int) and n > 0 for n in self.tile_zyx):
            raise ValueError(f"tile_zyx {self.tile_zyx}: expected three sizes of at least 1")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap {self.overlap}: expected 0 <= overlap < 1")
        if self.size_multiple < 1 or any(n % self.size_multiple for n in self.tile_zyx):
            raise ValueError(
                f"size_multiple {self.size_multiple}: expected a divisor of each of {self.tile_zyx}"
            )
        if not math.isfinite(self.outside_hu):
            raise ValueError(f"outside_hu {self.outside_hu}: expected a finite number")

    @property
    def num_classes(self) -> int:
        """Background and the labels."""
        return len(self.labels) + 1
