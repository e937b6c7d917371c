"""MetaImage and NRRD (.mha, .mhd, .nrrd, .nhdr) through SimpleITK, judged as NIfTI files are."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.readers.series import Series, name_from_path, one_line
from fastmed.readers.voxel_content import (
    AIR_HU,
    NOT_A_NUMBER,
    as_kernels_take_it,
    conditions_of,
    content,
    too_large,
)
from fastmed.readers.walk import Found
from fastmed.volume import Volume

_HEADER_BYTES = 1 << 20
_SPACING = re.compile(
    rb"^[ \t]*(ElementSpacing|ElementSize|space directions|spacings)\s*[:=]", re.M
)
_DIRECTION = re.compile(
    rb"^[ \t]*(TransformMatrix|Orientation|Rotation|space directions)\s*[:=]", re.M
)
_AXES = re.compile(rb"NDims\s*[:=]\s*(\S+)")
_MOST_AXES = 9  # more than ten make ITK write where it must not
_LINE_BYTES = 1000  # of a field in NRRD; longer ones crash its parser


class _Refused(SeriesError):
    """Why a file is not taken, and its condition."""

    def __init__(self, reason: str, condition: str = "no geometry") -> None:
        super().__init__(reason)
        self.condition = condition


@dataclass(frozen=True)
class StoredImage:
    """The file that SimpleITK is to open."""

    path: str


def image_entry(found: Found, *, strict: bool) -> Series:
    """Judges one MetaImage or NRRD file: CT volume, label map, or refused or failed, and why."""
    warnings: list[str] = []
    shape = geometry = None
    try:
        reader = _header(found)
        shape = tuple(int(n) for n in reader.GetSize()[::-1])
        if len(shape) != 3 or shape[0] == 1 or reader.GetNumberOfComponents() != 1:
            flat = len(shape) == 3 and shape[0] == 1 and reader.GetNumberOfComponents() == 1
            raise _Refused(
                f"it has shape {shape}: expected one volume of three axes, no colour",
                "single slice" if flat else "not in hu",
            )
        if reason := too_large(shape):
            raise _Refused(reason, "too large")
        geometry = image_geometry(reader, shape, strict, warnings)
        voxels = _voxels(found.path, found.relative)
        kind, reason = content((plane.ravel() for plane in voxels), 1.0, 0.0)
        verdict = {"ct": "ok", "label map": "skipped", "not in hu": "refused"}[kind]
        if kind == "ct":
            spacing = " x ".join(f"{s:g}" for s in np.round(geometry.spacing_mm_zyx, 3))
            reason = f"CT volume, {spacing} mm"
        conditions = conditions_of(kind, geometry)
    except _Refused as error:
        conditions, verdict, reason = (error.condition,), "refused", str(error)
        kind = "not in hu" if error.condition == "not in hu" else "ct"
    except SeriesError as error:
        conditions = ("damaged",)
        kind, verdict, reason = "damaged", "failed", str(error)
    return Series(
        name=name_from_path(found.relative),
        source=found.relative,
        kind=kind,
        verdict=verdict,
        reason=reason,
        warnings=tuple(warnings) if verdict == "ok" else (),
        shape_zyx=shape if shape and len(shape) == 3 else None,
        geometry=geometry if verdict == "ok" else None,
        format="image",
        stored=StoredImage(found.path),
        conditions=conditions,
    )


def read_image(series: Series) -> Volume:
    """Reads the voxels of a MetaImage or NRRD file with the verdict "ok", as stored.

    Raises SeriesError where the file is damaged.
    """
    warnings = list(series.warnings)
    try:
        voxels = _voxels(series.stored.path, series.source)
    except SeriesError as error:
        raise SeriesError(f"{series.source}: {error}") from error
    voxels = as_kernels_take_it(voxels)
    if voxels.dtype.kind == "f" and not (real := np.isfinite(voxels)).all():
        voxels = np.where(real, voxels, voxels.dtype.type(AIR_HU))
        warnings.append(f"{np.count_nonzero(~real)} {NOT_A_NUMBER}: taken as air")
    return Volume(
        voxels=voxels,
        geometry=series.geometry,
        name=series.name,
        source=series.source,
        warnings=tuple(warnings),
    )


def _header(found: Found):
    import SimpleITK as sitk

    _check_head(found)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_library(found.path))
    reader.SetFileName(found.path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = last_line(error, found.path, found.relative)
        raise SeriesError(f"its header cannot be read ({reason})") from error
    return reader


def _library(path: str) -> str:
    """What reads a file by its name; left to itself, ITK would try all that it has on its bytes."""
    return "NrrdImageIO" if path.lower().endswith((".nrrd", ".nhdr")) else "MetaImageIO"


def _check_head(found: Found) -> None:
    """Raises SeriesError for headers that are known to crash the library, and this process."""
    head = _head(found.path)
    if _library(found.path) == "NrrdImageIO":
        fields = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0].splitlines()
        if any(len(line) > _LINE_BYTES and b":=" not in line for line in fields):
            raise SeriesError(f"a line of its header is longer than {_LINE_BYTES} bytes")
    elif axes := [said for said in _AXES.findall(head) if not _is_few(said)]:
        shown = axes[0][:16].decode("latin-1")
        raise SeriesError(f"its header says that it has {shown!a} axes: expected 3")


def _is_few(axes: bytes) -> bool:
    try:
        return 1 <= float(axes) <= _MOST_AXES
    except ValueError:
        return False


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEADER_BYTES)


def _voxels(path: str, relative: str) -> np.ndarray:
    import SimpleITK as sitk

    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO=_library(path)))
    except RuntimeError as error:
        reason = last_line(error, path, relative)
        raise SeriesError(f"its voxels cannot be read ({reason})") from error


def image_geometry(reader, shape_zyx, strict: bool, warnings: list[str]) -> Geometry:
    """Where the voxels of an opened image file are; SeriesError where that would be guessed."""
    head = _head(reader.GetFileName())
    if not _SPACING.search(head):
        raise _Refused("its header names no voxel spacing: the geometry would be guessed")
    if not _DIRECTION.search(head):
        if strict:
            raise _Refused("its header names no axis directions; --lenient takes x, y, z as LPS")
        warnings.append("the header names no axis directions: x, y, z taken as LPS")
    steps = np.reshape(reader.GetDirection(), (3, 3)) * np.array(reader.GetSpacing())
    try:
        return Geometry.from_axes(shape_zyx, reader.GetOrigin(), steps.T[::-1])
    except ValueError as error:
        raise _Refused(f"its geometry is not usable: {error}") from error


def last_line(error: Exception, path: str, relative: str) -> str:
    """SimpleITK's errors name its own source code first and the matter last."""
    text = str(error).strip().splitlines()
    return one_line(RuntimeError(text[-1] if text else ""), path, relative)
