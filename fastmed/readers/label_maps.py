"""Label maps: what annotators and `fastmed infer` store as NIfTI, MetaImage, NRRD or images."""

from __future__ import annotations

import os
import zlib

import numpy as np

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry

_NIFTI = (".nii.gz", ".nii")
_VOLUMES = (".mha", ".mhd", ".nrrd", ".nhdr")
PICTURES = (".png", ".bmp", ".tif", ".tiff", ".gif")
EXTENSIONS = (*_NIFTI, *_VOLUMES, *PICTURES)


def read_label_map(path: str | os.PathLike) -> tuple[np.ndarray, Geometry]:
    """Reads a label map: labels [D, H, W] in the smallest integer type that fits, and where it is.

    path: NIfTI (its affine may be sheared), MetaImage, NRRD, or a grey or palette image (PNG, BMP,
        TIFF, GIF), which is one slice with pixels of 1 mm; white is 255 in images of one bit.
        Whole numbers stored as floats are taken; a JPEG, which does not keep values, is not.

    Returns uint8, uint16, ... where no label is negative, else int8, int16, ...

    Raises SeriesError that names the file: absent, damaged, of another format, with fractions or
    NaN for labels, in colour, of more or fewer than three axes, or of an unknown place in space.
    """
    path = os.fspath(path)
    lower = path.lower()
    reader = next(
        (
            reader
            for extensions, reader in ((_NIFTI, _nifti), (_VOLUMES, _volume), (PICTURES, _picture))
            if lower.endswith(extensions)
        ),
        None,
    )
    if not os.path.isfile(path):
        raise SeriesError(f"{path}: no such file")
    if reader is None:
        raise SeriesError(f"{path}: a label map is one of {', '.join(EXTENSIONS)}")
    try:
        voxels, geometry = reader(path)
        return _whole(voxels), geometry
    except SeriesError as error:
        raise SeriesError(f"{path}: {error}") from error
    except MemoryError as error:
        raise SeriesError(f"{path}: not enough memory for its voxels") from error


def stem(name: str) -> str:
    """A file name or path without the extension of a label map or scan, if it has one."""
    lower = name.lower()
    extension = next((e for e in (*EXTENSIONS, ".npy") if lower.endswith(e)), "")
    return name[: len(name) - len(extension)]


def _nifti(path: str) -> tuple[np.ndarray, Geometry]:
    import nibabel

    from fastmed.readers.nifti import nifti_geometry

    try:
        image = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj).T
    except MemoryError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as e:
        raise SeriesError(f"it cannot be read, copy it again ({_one_line(e, path)})") from e
    except Exception as e:  # nibabel raises whatever damaged bytes lead it to
        raise SeriesError(f"its header is damaged, copy it again ({_one_line(e, path)})") from e
    while voxels.ndim > 3 and voxels.shape[0] == 1:
        voxels = voxels[0]
    _check_axes(voxels.shape)
    return voxels, nifti_geometry(image, voxels.shape, [])


def _volume(path: str) -> tuple[np.ndarray, Geometry]:
    import SimpleITK as sitk

    from fastmed.readers.image import image_geometry, last_line

    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
        shape = tuple(int(n) for n in reader.GetSize()[::-1])
        if reader.GetNumberOfComponents() != 1:
            raise SeriesError("it holds colours: expected one label per voxel")
        _check_axes(shape)
        geometry = image_geometry(reader, shape, False, [])
        return sitk.GetArrayFromImage(reader.Execute()), geometry
    except RuntimeError as error:
        reason = last_line(error, path, os.path.basename(path))
        raise SeriesError(f"it cannot be read, copy it again ({reason})") from error


def _picture(path: str) -> tuple[np.ndarray, Geometry]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            bands, frames = image.getbands(), getattr(image, "n_frames", 1)
            pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = _one_line(error, path)
        raise SeriesError(f"it cannot be read, copy it again ({reason})") from error
    if frames != 1:
        raise SeriesError(f"it holds {frames} images: expected one")
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., : 3 if len(bands) > 2 else 1]).all():
        pixels = pixels[..., 0]  # grey stored as colour, with or without an alpha band
    if pixels.ndim != 2:
        raise SeriesError("it holds colours: expected one label per pixel")
    return pixels[None], Geometry.from_spacing((1, *pixels.shape), (1.0, 1.0, 1.0))


def _whole(voxels: np.ndarray) -> np.ndarray:
    if voxels.dtype.kind == "b":
        return np.ascontiguousarray(voxels, dtype=np.uint8)
    if voxels.dtype.kind not in "iuf":
        raise SeriesError(f"its voxels are of type {voxels.dtype}: expected one label per voxel")
    low, high = voxels.min(), voxels.max()
    if voxels.dtype.kind == "f":
        if not np.isfinite(low) or not np.isfinite(high):
            count = np.count_nonzero(~np.isfinite(voxels))
            raise SeriesError(f"{count} voxels are not a number: expected labels")
        whole = voxels == np.rint(voxels)
        if not whole.all():
            value = float(voxels[~whole][0])
            raise SeriesError(
                f"it holds {value:g}: labels are whole numbers; resample them by nearest neighbour"
            )
        if max(abs(low), abs(high)) > 2**31:
            raise SeriesError(f"its values run from {low:g} to {high:g}: no labels")
    low, high = int(low), int(high)
    if low < 0:
        dtype = np.promote_types(np.min_scalar_type(low), np.min_scalar_type(-max(high, 0) - 1))
    else:
        dtype = np.min_scalar_type(high)
    return np.ascontiguousarray(voxels, dtype=dtype)


def _check_axes(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise SeriesError(f"it has shape {shape}: expected one volume of three axes")


def _one_line(error: BaseException, path: str) -> str:
    from fastmed.readers.series import one_line

    return one_line(error, path, os.path.basename(path))
