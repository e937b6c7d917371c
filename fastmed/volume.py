"""Volume: the stored voxels of one scan, the rescale that makes them HU, and where they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmed.geometry import Geometry


@dataclass(frozen=True)
class SourceSlice:
    """One original image of a scan: its SOPInstanceUID and its fractional z index in the Volume.

    frame: its number in a multi-frame file, from 1; 0 of a file that is one image.
    """

    sop_instance_uid: str
    z_index: float
    frame: int = 0

    @property
    def name(self) -> str:
        """Names the image among those of its scan: its SOPInstanceUID, of a frame with -<frame>."""
        return f"{self.sop_instance_uid}-{self.frame}" if self.frame else self.sop_instance_uid


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan, as stored.

    voxels: [D, H, W] in the type of the file (int16, uint16, int32, float32, ...).
    geometry: where the voxel centres are.
    slope, intercept: HU = slope * stored + intercept.
    name: the name of its result folder.
    source: the path it came from, relative to the folder that was searched.
    slices: the DICOM images it was built from, by rising z index; empty for other formats.
    warnings: what a reader assumed or mended, one sentence each.
    spacing_is_known: False where the file says nothing of it, so that the geometry's is made up.

    Raises ValueError where the voxels' shape is not the geometry's.
    """

    voxels: np.ndarray
    geometry: Geometry
    slope: float = 1.0
    intercept: float = 0.0
    name: str = ""
    source: str = ""
    slices: tuple[SourceSlice, ...] = ()
    warnings: tuple[str, ...] = ()
    spacing_is_known: bool = True

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape_zyx:
            raise ValueError(
                f"voxels have shape {self.voxels.shape}, the geometry {self.geometry.shape_zyx}"
            )
        if not (np.isfinite(self.slope) and np.isfinite(self.intercept) and self.slope != 0):
            raise ValueError(f"rescale slope {self.slope}, intercept {self.intercept}: not usable")

    def hu(self) -> np.ndarray:
        """Returns the voxels in Hounsfield units, [D, H, W] float32."""
        return self.voxels.astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)

    @property
    def is_resliced(self) -> bool:
        """Whether unevenly spaced slices were laid onto a uniform grid."""
        return any(s.z_index != k for k, s in enumerate(self.slices))
