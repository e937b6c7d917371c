"""Case: one example of a data set by its files, and the one place that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from fastmed.errors import DataError, SeriesError
from fastmed.geometry import Geometry
from fastmed.readers.voxel_content import NOT_A_NUMBER
from fastmed.spec import Spec
from fastmed.volume import Volume

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".npy")
GREY_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".npy")
SUBSETS = ("train", "val", "test")
GRIDS_AGREE_VOXELS = 1e-3  # largest distance between the corners of a scan and of its label map


@dataclass(frozen=True)
class TruthBox:
    """One annotated finding: a box in the patient, or a box on one slice.

    label: its class, from 1.
    box_lps_mm: (x1, y1, z1, x2, y2, z2), LPS mm; None where the annotation is of one slice.
    slice: z index in the Volume as fastmed reads it. box_px: (x1, y1, x2, y2) in pixels of that
        slice; an integer is a pixel's centre.
    """

    label: int
    box_lps_mm: tuple[float, float, float, float, float, float] | None = None
    slice: int | None = None
    box_px: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Case:
    """One scan or image of a data set.

    name: unique in the data set.
    patient: who it is of; training and test never share a patient.
    image: a file, or a folder of DICOM files.
    label: the label map of a segmentation; None where there is none: predicted, never scored.
    target: the class of a classification.
    subset: "train", "val" or "test" where the data set says so.
    boxes: the findings of a detection; () where there are none, None where nobody looked.
    slices: of a detection in 2D, the slices that somebody looked at, rising.
    """

    name: str
    patient: str
    image: Path
    label: Path | None = None
    target: int | None = None
    subset: str = ""
    boxes: tuple[TruthBox, ...] | None = None
    slices: tuple[int, ...] = ()

    @property
    def has_truth(self) -> bool:
        """Whether it can be learned from or scored."""
        return not (self.label is None and self.target is None and self.boxes is None)


def suffixes(spec: Spec) -> tuple[str, ...]:
    """The file name endings that a data set of this modality may have."""
    return GREY_SUFFIXES if spec.modality == "grey" else VOLUME_SUFFIXES


def without_suffix(name: str, known: tuple[str, ...]) -> str | None:
    """The file name without its ending, None where that is none of the known."""
    lower = name.lower()
    ending = next((suffix for suffix in known if lower.endswith(suffix)), "")
    return name[: -len(ending)] or None if ending else None


def read_image(case: Case, spec: Spec) -> Volume:
    """Reads the image as inference does; NaN voxels, which count as air there, are an error here.

    Raises DataError that names the case.
    """
    from fastmed.readers.index import read

    try:
        volumes = read(case.image, modality=spec.modality)
    except (SeriesError, OSError, ValueError) as error:
        raise DataError(f"{case.name}: {error}") from error
    if len(volumes) != 1:
        raise DataError(f"{case.name}: {case.image.name} holds {len(volumes)} scans: expected one")
    (volume,) = volumes
    notes = [note for note in volume.warnings if NOT_A_NUMBER in note]
    if notes:
        count = notes[0].split()[0]
        raise DataError(f"{case.name}: {count} voxels of {case.image.name} are NaN or infinite")
    return volume


def read_label(case: Case, spec: Spec) -> tuple[np.ndarray, Geometry | None]:
    """Reads the stored label map [D, H, W] of integers, and where it lies; None: it does not say.

    Raises DataError that names the case.
    """
    try:
        if case.label.suffix.lower() == ".npy":
            return _whole(_array(case.label)), None
        from fastmed.readers.label_maps import read_label_map

        labels, geometry = read_label_map(case.label)
    except (SeriesError, OSError, ValueError) as error:
        raise DataError(f"{case.name}: {error}") from error
    is_picture = spec.modality == "grey"
    return labels, None if is_picture else geometry


def pair_problems(name: str, scan: Geometry, label_shape, label: Geometry | None) -> list[str]:
    """Why an image and its label map do not lie on one grid; [] where they do.

    label: None where the label file does not say where it is; its shape must do then.
    """
    if tuple(label_shape) != scan.shape_zyx:
        return [f"{name}: the image has shape {scan.shape_zyx}, its label {tuple(label_shape)}"]
    if label is None:
        return []
    corners = np.array(list(product(*((0, n - 1) for n in scan.shape_zyx))), dtype=np.float64)
    apart = np.abs(label.to_index(scan.to_world(corners)) - corners).max()
    if apart <= GRIDS_AGREE_VOXELS:
        return []
    return [f"{name}: image and label lie on different grids, {apart:.3g} voxels apart"]


def _array(path: Path) -> np.ndarray:
    voxels = np.load(path, allow_pickle=False)
    voxels = voxels[None] if voxels.ndim == 2 else voxels
    if voxels.ndim != 3 or voxels.dtype.kind not in "biuf":
        raise SeriesError(
            f"{path.name} has shape {voxels.shape} of {voxels.dtype}: expected numbers [D, H, W]"
        )
    return voxels


def _whole(labels: np.ndarray) -> np.ndarray:
    """Stored labels as integers; ValueError where they are none."""
    if labels.dtype.kind != "f":
        return labels.astype(np.uint8) if labels.dtype == bool else labels
    if not (np.isfinite(labels).all() and np.array_equal(labels, np.rint(labels))):
        raise ValueError("its label map holds values that are no whole number")
    return labels.astype(np.int32)
