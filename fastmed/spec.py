"""Spec: what training, export and inference of one model must agree on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

TASKS = ("segmentation", "classification", "detection")
MODALITIES = ("ct", "grey")
REGIONS = ("scan", "lungs")
AXES = ("SI", "PA", "LR")  # to the head or the feet, the back or the front, the left or the right


@dataclass(frozen=True)
class Label:
    """One class of a model: its value, its name, its SNOMED CT code if known.

    grey: the value that stands for it in label images (such as 255 in a black and white mask);
        None where it is the value itself.
    """

    value: int
    name: str
    snomed_ct: str = ""
    grey: int | None = None


@dataclass(frozen=True)
class Network:
    """A network of `fastmed.models` by name, with the arguments that build it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CleanUp:
    """What is done to a label map after segmentation, per label and in this order; all off.

    largest_component: keep the largest connected piece (26 neighbours) alone.
    fill_holes: give the label what it encloses in 3D (in the image's plane where D is 1).
    smallest_ml: drop connected pieces of less than this volume, in ml; 0 keeps all.
    """

    largest_component: bool = False
    fill_holes: bool = False
    smallest_ml: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.smallest_ml) and self.smallest_ml >= 0):
            raise ValueError(f"smallest_ml {self.smallest_ml}: expected 0 or more")

    @property
    def is_off(self) -> bool:
        return self == CleanUp()


@dataclass(frozen=True)
class Limits:
    """How far an engine's answers may lie from those of torch in float32 (`fastmed certify`).

    logits: largest difference, as a share of the largest logit; asked of float32 alone.
    equal_labels: least share of voxels with the same label. dice: least Dice of each label between
        the two label maps. For a segmentation.
    probability: largest difference of a probability: of a class of a classification, or of a
        detection's score.
    ap: least average precision of a detection's boxes, torch's being the truth, at IoU 0.5.
    """

    logits: float = 2e-3
    equal_labels: float = 0.999
    dice: float = 0.99
    probability: float = 0.02
    ap: float = 0.99

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"limits: {name} {value}: expected 0 to 1")


@dataclass(frozen=True)
class Detection:
    """How boxes come from the network of a detection.

    Its output is [B, N, 2K + classes], K = 3 (or 2): for each of N default boxes the box code
    (`fastmed.boxes.encode`), then one logit per class, class 0 (no finding) first; their softmax is
    the score. The default boxes of a network of 3 dimensions stand as `fastmed.boxes.default_boxes`
    lays them; those of 2 dimensions are SSD300's own.

    strides: voxels of the grid from one default box to the next, for each level of the network.
    diameters_mm: of the default boxes, cubes in mm, for each level; as many on each.
    score_threshold: findings below this probability are dropped, 0..1.
    iou_threshold: of two findings of one label that overlap by more, the lesser is dropped.
    max_boxes: most findings of a scan (in 2 dimensions: of a slice).

    Raises ValueError that names the field.
    """

    strides: tuple[int, ...] = ()
    diameters_mm: tuple[tuple[float, ...], ...] = ()
    score_threshold: float = 0.05
    iou_threshold: float = 0.1
    max_boxes: int = 100

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.diameters_mm):
            raise ValueError(
                f"strides {self.strides}: expected one per level of diameters_mm, "
                f"{len(self.diameters_mm)}"
            )
        if any(stride < 1 for stride in self.strides):
            raise ValueError(f"strides {self.strides}: expected at least 1")
        sizes = [size for level in self.diameters_mm for size in level]
        if not all(math.isfinite(size) and size > 0 for size in sizes):
            raise ValueError(f"diameters_mm {self.diameters_mm}: expected positive numbers")
        if len({len(level) for level in self.diameters_mm}) > 1 or () in self.diameters_mm:
            raise ValueError(f"diameters_mm {self.diameters_mm}: expected as many on each level")
        for name, share in (("score", self.score_threshold), ("iou", self.iou_threshold)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}_threshold {share}: expected 0 to 1")
        if self.max_boxes < 1:
            raise ValueError(f"max_boxes {self.max_boxes}: expected at least 1")


@dataclass(frozen=True)
class Spec:
    """How a model sees a scan and what its outputs mean.

    task: "segmentation" (a label per voxel), "classification" (a label per scan) or "detection"
        (boxes).
    labels: the classes but the first; the values are 1, 2, ..., len(labels). Class 0 is
        background, or the scan that has none of them.
    negative: the name of class 0 of a classification.
    modality: "ct" (HU, mm) or "grey" (grey images: grey values in place of HU, pixels of mm).
    dimensions: 3, or 2 where the network sees slices [B, C, H, W]; tiles are 1 deep then.
    region: what is cut from a scan: "scan" (all of it) or "lungs" (the box around both lungs).
    spacing_mm_zyx: voxel spacing of the network's grid in mm; None where its size is given.
    size_zyx: size of the network's grid, whatever the region's extent; None where spacing is given.
        A detection of 2 dimensions sees each slice of the scan at such a size, whose first is 1.
    window_hu: (low, high) of the intensity window that becomes 0..1.
    axes: where the three axes of the network's input run to, each one of S and I (head, feet), of P
        and A (back, front), of L and R. Those of this package's networks are "SPL", z, y, x; one
        from MONAI that saw scans in "RAS" has x first. Sizes and spacings of this spec go along
        the network's axes in their order. A detection has "SPL".
    mirror_zyx: along which axes of its input the network sees everything mirrored too; the mean of
        what it says counts, at 2, 4 or 8 times the work. Not of a detection of 2 dimensions.
    outside_hu: what stands outside a sheared scan, or outside the scan around a region.
    tile_zyx: voxels of a sliding-window tile, each at least 1; a classification sees its whole
        grid at once and has none, a detection of 2 dimensions sees slice after slice.
    overlap: share of a tile, 0 <= overlap < 1, that it has in common with its neighbour.
    size_multiple: an axis shorter than the tile is padded to the next multiple of this.
    clean_up: what is done to the label map of a segmentation.
    slices: neighbouring slices that a network of 2 dimensions sees as channels, the middle one
        being the slice that it is asked about; odd. Beyond the scan the outermost slice repeats.
    detection: of a detection, else None.
    limits: how far engines may lie apart.
    network: how to build it in torch; None where the bundle brings only an ONNX file.

    Raises ValueError that names the field.
    """

    name: str
    task: str
    labels: tuple[Label, ...]
    spacing_mm_zyx: tuple[float, float, float] | None
    window_hu: tuple[float, float]
    tile_zyx: tuple[int, int, int] | None = None
    overlap: float = 0.25
    size_multiple: int = 16
    outside_hu: float = -1024.0
    network: Network | None = None
    trained_on: str = ""
    notice: str = ""
    size_zyx: tuple[int, int, int] | None = None
    modality: str = "ct"
    dimensions: int = 3
    region: str = "scan"
    negative: str = "negative"
    clean_up: CleanUp = CleanUp()
    slices: int = 1
    detection: Detection | None = None
    limits: Limits = Limits()
    axes: str = "SPL"
    mirror_zyx: tuple[bool, bool, bool] = (False, False, False)

    def __post_init__(self) -> None:
        self._check_meaning()
        self._check_grid()
        self._check_tiles()
        self._check_detection()

    def _check_meaning(self) -> None:
        for field_name, value, known in (
            ("task", self.task, TASKS),
            ("modality", self.modality, MODALITIES),
            ("region", self.region, REGIONS),
            ("dimensions", self.dimensions, (2, 3)),
        ):
            if value not in known:
                names = " or ".join(map(repr, known))
                raise ValueError(f"{field_name} {value!r}: this version knows {names}")
        if [label.value for label in self.labels] != list(range(1, len(self.labels) + 1)):
            raise ValueError("labels: expected the values 1, 2, 3, ... in order")
        if not self.labels:
            raise ValueError("labels: a model names at least one label")
        if len({label.name for label in self.labels}) != len(self.labels):
            raise ValueError("labels: two labels have the same name")
        greys = [0, *(label.value if label.grey is None else label.grey for label in self.labels)]
        if len(set(greys)) != len(greys) or not all(0 <= grey <= 65535 for grey in greys):
            raise ValueError(f"labels: grey values {greys[1:]}: expected others than 0, all unlike")
        if self.region == "lungs" and (self.modality != "ct" or self.task != "classification"):
            raise ValueError("region 'lungs': only for the classification of CT")

    def _check_grid(self) -> None:
        spacing, size, window = self.spacing_mm_zyx, self.size_zyx, self.window_hu
        if (spacing is None) == (size is None):
            raise ValueError("spacing_mm_zyx, size_zyx: expected one of them, not both or none")
        if spacing is not None and (
            len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing)
        ):
            raise ValueError(f"spacing_mm_zyx {spacing}: expected three positive numbers")
        if size is not None and not _is_size(size):
            raise ValueError(f"size_zyx {size}: expected three sizes of at least 1")
        if len(window) != 2 or not all(map(math.isfinite, window)) or window[1] <= window[0]:
            raise ValueError(f"window_hu {window}: expected (low, high) with low < high")
        if len(self.axes) != 3 or any(sum(a in pair for a in self.axes) != 1 for pair in AXES):
            raise ValueError(
                f"axes {self.axes!r}: expected one letter of S or I, one of P or A, one of L or R"
            )
        if self.axes != "SPL" and (self.task == "detection" or self.modality == "grey"):
            raise ValueError(f"axes {self.axes!r}: of detections and grey images only 'SPL'")
        if len(self.mirror_zyx) != 3 or not all(isinstance(on, bool) for on in self.mirror_zyx):
            raise ValueError(f"mirror_zyx {self.mirror_zyx}: expected three of true and false")
        if self.mirror_zyx[0] and self.dimensions == 2:
            raise ValueError("mirror_zyx: a network of 2 dimensions sees slices, which have no z")
        if not math.isfinite(self.outside_hu):
            raise ValueError(f"outside_hu {self.outside_hu}: expected a finite number")

    def _check_tiles(self) -> None:
        tile = self.tile_zyx
        if (tile is not None) != self.has_tiles:
            raise ValueError(
                "tile_zyx: a segmentation and a detection of 3 dimensions have tiles, others none"
            )
        if tile is not None and not _is_size(tile):
            raise ValueError(f"tile_zyx {tile}: expected three sizes of at least 1")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap {self.overlap}: expected 0 <= overlap < 1")
        if tile is None:
            return
        if self.dimensions == 2 and tile[0] != 1:
            raise ValueError(f"tile_zyx {tile}: a network of 2 dimensions sees tiles 1 deep")
        axes = tile[1:] if self.dimensions == 2 else tile
        if self.size_multiple < 1 or any(n % self.size_multiple for n in axes):
            raise ValueError(
                f"size_multiple {self.size_multiple}: expected a divisor of each of {axes}"
            )

    def _check_detection(self) -> None:
        if self.slices < 1 or self.slices % 2 == 0 or (self.slices > 1 and self.dimensions == 3):
            raise ValueError(f"slices {self.slices}: expected an odd number; 1 of 3 dimensions")
        if self.slices > 1 and self.task != "detection":
            raise ValueError(f"slices {self.slices}: only for a detection of 2 dimensions")
        if (self.detection is None) != (self.task != "detection"):
            raise ValueError("detection: a detection has it, no other task does")
        if self.detection is None:
            return
        if self.dimensions == 2:
            if any(self.mirror_zyx):
                raise ValueError("mirror_zyx: not of a detection of 2 dimensions")
            if self.size_zyx is None or self.size_zyx[0] != 1:
                raise ValueError(f"size_zyx {self.size_zyx}: expected (1, rows, columns)")
            if self.detection.strides:
                raise ValueError("strides: a detection of 2 dimensions has SSD300's default boxes")
        elif self.spacing_mm_zyx is None or not self.detection.strides:
            raise ValueError("a detection of 3 dimensions names its spacing_mm_zyx and its strides")
        elif any(self.mirror_zyx) and any(self.size_multiple % s for s in self.detection.strides):
            # Else the default boxes would not lie alike from both sides of a tile.
            raise ValueError(
                f"mirror_zyx: size_multiple {self.size_multiple} is no multiple of each of the "
                f"strides {self.detection.strides}"
            )

    @property
    def has_tiles(self) -> bool:
        """Whether the network sees a scan tile by tile."""
        return self.task == "segmentation" or (self.task == "detection" and self.dimensions == 3)

    @property
    def num_classes(self) -> int:
        """Class 0 and the labels."""
        return len(self.labels) + 1


def _is_size(size: tuple) -> bool:
    return len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)
