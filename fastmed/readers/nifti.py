"""NIfTI: .nii and .nii.gz, its header by nibabel, its voxels by one pass over the stream."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
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

_CHUNK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_UNITS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # the codes for metre, millimetre, micrometre


@dataclass(frozen=True, eq=False)
class StoredNifti:
    """Where the voxels are in the file, of which type, and the rescale to HU."""

    path: str
    offset: int
    dtype: np.dtype
    slope: float
    intercept: float


class _Refused(SeriesError):
    """Why a file is not taken, and its condition."""

    def __init__(self, reason: str, condition: str = "no geometry") -> None:
        super().__init__(reason)
        self.condition = condition


class _CutShort(SeriesError):
    """That a file ends before its voxels do."""


def nifti_entry(found: Found) -> Series:
    """Judges one NIfTI file: CT volume, label map, or refused or failed with the reason."""
    warnings: list[str] = []
    shape = geometry = stored = None
    try:
        image = _open(found)
        shape = _shape(image)
        stored = _stored(image, found)
        geometry = nifti_geometry(image, shape, warnings)
        _check_whole(stored, shape)
        kind, reason = content(_voxel_blocks(stored, shape), stored.slope, stored.intercept)
        verdict = {"ct": "ok", "label map": "skipped", "not in hu": "refused"}[kind]
        if kind == "ct":
            reason = f"CT volume, {_spacing(geometry)} mm"
        conditions = conditions_of(kind, geometry)
    except _Refused as error:
        conditions, verdict, reason = (error.condition,), "refused", str(error)
        kind = "not in hu" if error.condition == "not in hu" else "ct"
    except (SeriesError, OSError) as error:
        conditions = ("truncated" if isinstance(error, _CutShort) else "damaged",)
        kind, verdict, reason = "damaged", "failed", one_line(error, found.path, found.relative)
    return Series(
        name=name_from_path(found.relative),
        source=found.relative,
        kind=kind,
        verdict=verdict,
        reason=reason,
        warnings=tuple(warnings) if verdict == "ok" else (),
        shape_zyx=shape,
        geometry=geometry if verdict == "ok" else None,
        format="nifti",
        stored=stored,
        conditions=conditions,
    )


def read_nifti(series: Series) -> Volume:
    """Reads the voxels of a NIfTI file with the verdict "ok", as stored, [D, H, W] = (k, j, i).

    Raises SeriesError where the file is damaged.
    """
    stored: StoredNifti = series.stored
    voxels = np.empty(series.shape_zyx, stored.dtype)
    view = memoryview(voxels).cast("B")
    for block in _byte_blocks(stored.path, stored.offset, voxels.nbytes, series.source):
        view[: len(block)] = block
        view = view[len(block) :]
    if not stored.dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
    voxels, warnings = as_kernels_take_it(voxels), list(series.warnings)
    if voxels.dtype.kind == "f" and not (real := np.isfinite(voxels)).all():
        voxels[~real] = (AIR_HU - stored.intercept) / stored.slope
        warnings.append(f"{np.count_nonzero(~real)} {NOT_A_NUMBER}: taken as air")
    return Volume(
        voxels=voxels,
        geometry=series.geometry,
        slope=stored.slope,
        intercept=stored.intercept,
        name=series.name,
        source=series.source,
        warnings=tuple(warnings),
    )


def _open(found: Found):
    import nibabel

    try:
        return nibabel.load(found.path)
    except Exception as error:  # nibabel and gzip raise whatever damaged bytes lead them to
        reason = one_line(error, found.path, found.relative)
        raise SeriesError(f"its NIfTI header cannot be read ({reason})") from error


def _shape(image) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise _Refused(f"it has shape {image.shape}: expected one volume of three axes")
    if shape[2] == 1:
        reason = "a volume with one slice: the distance between slices is unknown"
        raise _Refused(reason, "single slice")
    if reason := too_large(shape[::-1]):
        raise _Refused(reason, "too large")
    return shape[::-1]


def _stored(image, found: Found) -> StoredNifti:
    dtype = image.header.get_data_dtype()
    if dtype.kind not in "iuf":
        reason = f"its voxels are of type {dtype}: colour or complex values are no HU"
        raise _Refused(reason, "not in hu")
    proxy = image.dataobj  # nibabel moves the scaling from the header to here
    return StoredNifti(
        path=found.path,
        offset=int(proxy.offset),
        dtype=dtype,
        slope=float(proxy.slope),
        intercept=float(proxy.inter),
    )


def nifti_geometry(image, shape_zyx: tuple[int, int, int], warnings: list[str]) -> Geometry:
    """Where the voxels of an open NIfTI file are; SeriesError where that would be guessed."""
    header = image.header
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        raise _Refused("it has neither sform nor qform: where its voxels are would be guessed")
    unit_mm = _UNITS_MM.get(int(header["xyzt_units"]) & 7)
    if unit_mm is None:
        warnings.append("the file names no unit of length: millimetres assumed")
    try:
        affine = header.get_sform() if header["sform_code"] > 0 else header.get_qform()
        return Geometry.from_ras_xyz(
            shape_zyx[::-1], np.diag([unit_mm or 1.0] * 3 + [1.0]) @ affine
        )
    except ValueError as error:
        raise _Refused(f"its geometry is not usable: {error}") from error


def _spacing(geometry: Geometry) -> str:
    return " x ".join(f"{s:.3f}".rstrip("0").rstrip(".") for s in geometry.spacing_mm_zyx)


def _voxel_blocks(stored: StoredNifti, shape) -> Iterator[np.ndarray]:
    """Yields the voxels as 1D arrays in file order; breaks off as soon as nobody asks for more."""
    size = stored.dtype.itemsize
    rest = b""
    for block in _byte_blocks(stored.path, stored.offset, int(np.prod(shape)) * size, ""):
        block = rest + block if rest else block
        whole = len(block) // size * size
        yield np.frombuffer(block, stored.dtype, whole // size)
        rest = bytes(block[whole:])


def _check_whole(stored: StoredNifti, shape) -> None:
    """Raises SeriesError where the file ends before its voxels do; few bytes of it are read.

    The last member of a gzip file says at its end how long it is, unpacked. Where that is not what
    the header asks for, as where there are several members, the whole is read to be sure.
    """
    count = int(np.prod(shape, dtype=object)) * stored.dtype.itemsize
    if _says_that_it_is_whole(stored.path, stored.offset + count):
        return
    for _ in _byte_blocks(stored.path, stored.offset, count, ""):
        pass


def _says_that_it_is_whole(path: str, count: int) -> bool:
    """Whether a file has `count` bytes, or where it is gzipped says that it has as many."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == _GZIP
        length = file.seek(0, os.SEEK_END)
        if not is_gzip or length < 4:
            return length >= count
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little") == count % 2**32


def _byte_blocks(path: str, offset: int, count: int, name: str) -> Iterator[bytes]:
    """Yields bytes offset .. offset + count of a plain or gzipped file, piece by piece.

    Raises SeriesError where the file ends or breaks before that.
    """
    where = f"{name}: " if name else ""
    skip, left = offset, count
    with open(path, "rb", buffering=0) as file:
        pieces = _gunzipped(file, where) if file.read(2) == _GZIP else _plain(file)
        file.seek(0)
        for piece in pieces:
            if skip:
                skip, piece = max(skip - len(piece), 0), piece[skip:]
            piece = piece[:left]
            left -= len(piece)
            yield piece
            if not left:
                return
    raise _CutShort(
        f"{where}truncated: {count - left} of {count} bytes of voxels; copy the file again"
    )


def _plain(file) -> Iterator[bytes]:
    while piece := file.read(_CHUNK_BYTES):
        yield piece


def _gunzipped(file, where: str) -> Iterator[bytes]:
    """Unpacks all members of a gzip file; the checksum of each is verified at its end."""
    unpack = zlib.decompressobj(wbits=31)
    packed = b""
    try:
        while packed or (packed := file.read(_CHUNK_BYTES)):
            yield unpack.decompress(packed, 2 * _CHUNK_BYTES)
            packed = unpack.unconsumed_tail
            if unpack.eof:
                packed, unpack = unpack.unused_data.lstrip(b"\0"), zlib.decompressobj(wbits=31)
    except zlib.error as error:
        raise SeriesError(f"{where}its gzip data is damaged ({error}); copy it again") from error
