"""Small data sets for tests: scans, label maps and images, written from arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmed.geometry import Geometry
from fastmed.spec import Label, Spec
from fastmed.volume import Volume

SHAPE = (20, 24, 28)
SPACING = (2.5, 1.5, 1.5)
LIVER = Spec(
    "liver", "segmentation", (Label(1, "liver"),), (3.0, 2.0, 2.0), (-160.0, 240.0), (8, 16, 16),
    size_multiple=8,
)  # fmt: skip
ORGANS = Spec(
    "organs", "segmentation", (Label(1, "liver"), Label(2, "spleen")), (3.0, 2.0, 2.0),
    (-160.0, 240.0), (8, 16, 16), size_multiple=8,
)  # fmt: skip
CHEST = Spec(
    "chest", "classification", (Label(1, "positive"),), None, (-1000.0, 400.0),
    size_zyx=(16, 16, 16),
)  # fmt: skip
SLICES = Spec(
    "slices", "segmentation", (Label(1, "lung", grey=255),), (1.0, 1.0, 1.0), (0.0, 255.0),
    (1, 16, 16), modality="grey", dimensions=2, outside_hu=0.0,
)  # fmt: skip


def scan(seed: int = 0, shape=SHAPE, spacing=SPACING, dtype=np.int16) -> Volume:
    """Random tissue with a rim of air, in HU."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-100, 300, shape)
    hu[:, :2] = -1000
    geometry = Geometry.from_spacing(shape, spacing, (-20.0, -30.0, 100.0))
    return Volume(hu.astype(dtype), geometry, name=f"scan-{seed}")


def organ(shape=SHAPE, value: int = 1, first=(6, 8, 8), end=(14, 16, 20)) -> np.ndarray:
    """A box of one label."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(a, b) for a, b in zip(first, end, strict=True))] = value
    return labels


def write_nifti(path: Path, voxels: np.ndarray, geometry: Geometry) -> Path:
    """Writes an array as stored in type and value."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels.T, geometry.to_ras_xyz())
    image.header.set_xyzt_units("mm")
    image.set_sform(geometry.to_ras_xyz(), code=1)
    nibabel.save(image, path)
    return path


def write_pair(folder: Path, name: str, seed: int = 0, labels=None, **options) -> None:
    """image/<name>.nii.gz and label/<name>.nii.gz."""
    volume = scan(seed, **options)
    labels = organ(volume.voxels.shape) if labels is None else labels
    write_nifti(folder / "image" / f"{name}.nii.gz", volume.voxels, volume.geometry)
    write_nifti(folder / "label" / f"{name}.nii.gz", labels, volume.geometry)


def write_grey(path: Path, pixels: np.ndarray) -> Path:
    """Writes a grey image."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def touch(folder: Path, *names: str) -> None:
    """Writes files that nobody will read."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
