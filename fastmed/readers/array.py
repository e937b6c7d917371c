"""NumPy files (.npy): a volume [D, H, W] in HU, or one image [H, W]; they carry no geometry.

A JSON file of the same name beside it may hold {"spacing_mm_zyx": [z, y, x]}.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

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

_BESIDE_BYTES = 1 << 20  # a longer JSON file says something else
_AXES = "the file names no directions: z to the head, y to the back, x to the left assumed"
_NO_SPACING = "the file names no spacing: only models of a fixed grid size take it"

_OF_OBJECTS = ("pickle", "Python objects", "Object arrays")  # in NumPy's messages; never loaded


class _Refused(Exception):
    """Why a file is not taken, and its condition."""

    def __init__(self, reason: str, condition: str = "no geometry") -> None:
        super().__init__(reason)
        self.condition = condition


@dataclass(frozen=True)
class StoredArray:
    """The file that NumPy is to open."""

    path: str


def array_entry(found: Found, *, modality: str) -> Series | None:
    """Judges one .npy file; None where it is an array of something else (one axis, texts, ...).

    modality: "ct" takes [D, H, W] or [H, W] in HU; "grey" takes [H, W] of any numbers.
    """
    shape = geometry = None
    known, warnings = False, ()
    try:
        voxels = _loaded(found.path, mmap_mode="r")
        if voxels.dtype.kind not in "iuf" or voxels.ndim not in (2, 3) or not voxels.size:
            return None
        shape = voxels.shape if voxels.ndim == 3 else (1, *voxels.shape)
        if reason := too_large(shape):
            raise _Refused(reason, "too large")
        kind, verdict, reason = _JUDGES[modality](voxels)
        spacing = _spacing(found) if modality == "ct" else None
        known = spacing is not None
        geometry = Geometry.from_spacing(shape, spacing or (1.0, 1.0, 1.0))
        conditions = conditions_of(kind, geometry) if modality == "ct" else ("single slice",)
        if modality == "ct":
            warnings = (_AXES,) if known else (_AXES, _NO_SPACING)
        if modality == "ct" and verdict == "ok" and not known:
            conditions = (*conditions, "no geometry")
    except _Refused as error:
        conditions = (error.condition,)
        kind = "ct" if modality == "ct" else "grey image"
        verdict, reason = "refused", str(error)
    except Exception as error:  # NumPy raises whatever damaged bytes lead it to
        if any(word in str(error) for word in _OF_OBJECTS):
            return None
        kind, verdict, conditions = "damaged", "failed", ("damaged",)
        text = one_line(error, found.path, found.relative)
        reason = f"it cannot be read as an array ({text})"
    return Series(
        name=name_from_path(found.relative),
        source=found.relative,
        kind=kind,
        verdict=verdict,
        reason=reason,
        warnings=warnings if verdict == "ok" else (),
        shape_zyx=shape,
        geometry=geometry if verdict == "ok" else None,
        spacing_is_known=known,
        format="array",
        stored=StoredArray(found.path),
        conditions=conditions,
    )


def read_array(series: Series) -> Volume:
    """Reads a .npy file with the verdict "ok"; what is not a number becomes air.

    Raises SeriesError where the file is damaged.
    """
    try:
        voxels = _loaded(series.stored.path).reshape(series.shape_zyx)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = one_line(error, series.stored.path, series.source)
        raise SeriesError(f"{series.source}: it cannot be read as an array ({reason})") from error
    voxels = as_kernels_take_it(voxels)
    warnings = list(series.warnings)
    if voxels.dtype.kind == "f" and not (real := np.isfinite(voxels)).all():
        voxels = np.where(real, voxels, voxels.dtype.type(AIR_HU))
        warnings.append(f"{np.count_nonzero(~real)} {NOT_A_NUMBER}: taken as air")
    return Volume(
        voxels=np.ascontiguousarray(voxels),
        geometry=series.geometry,
        name=series.name,
        source=series.source,
        warnings=tuple(warnings),
        spacing_is_known=series.spacing_is_known,
    )


def _loaded(path: str, **options) -> np.ndarray:
    voxels = np.load(path, allow_pickle=False, **options)
    if not isinstance(voxels, np.ndarray):
        voxels.close()
        raise ValueError("it is an .npz archive of arrays: store each in a .npy file")
    return voxels


def _judge_ct(voxels: np.ndarray) -> tuple[str, str, str]:
    planes = voxels if voxels.ndim == 3 else voxels[None]
    kind, reason = content((np.asarray(plane).ravel() for plane in planes), 1.0, 0.0)
    verdict = {"ct": "ok", "label map": "skipped", "not in hu": "refused"}[kind]
    return kind, verdict, reason or "CT voxels of a NumPy array"


def _judge_grey(voxels: np.ndarray) -> tuple[str, str, str]:
    if voxels.ndim == 3:
        reason = f"an array of shape {voxels.shape}: expected one grey image [rows, columns]"
        return "grey image", "refused", reason
    return "grey image", "ok", f"grey image, {voxels.shape[1]} x {voxels.shape[0]} pixels"


_JUDGES = {"ct": _judge_ct, "grey": _judge_grey}


def _spacing(found: Found) -> tuple[float, float, float] | None:
    """What the JSON file beside the array says; None where there is none, or it says nothing."""
    beside = Path(found.path).with_suffix(".json")
    if not beside.is_file() or beside.stat().st_size > _BESIDE_BYTES:
        return None
    try:
        said = json.loads(beside.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _Refused(f"{beside.name} beside it is no JSON ({error})") from error
    if not isinstance(said, dict) or "spacing_mm_zyx" not in said:
        return None
    spacing = said["spacing_mm_zyx"]
    sound = isinstance(spacing, list) and len(spacing) == 3
    if not sound or not all(_is_length(mm) for mm in spacing):
        raise _Refused(
            f"spacing_mm_zyx in {beside.name} is {spacing!r}: expected three positive numbers"
        )
    return tuple(float(mm) for mm in spacing)


def _is_length(mm: object) -> bool:
    number = isinstance(mm, int | float) and not isinstance(mm, bool)
    return number and math.isfinite(mm) and mm > 0
