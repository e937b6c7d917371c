"""DICOM pixels: the voxels of a judged series, read in parallel into one array."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastmed.errors import SeriesError
from fastmed.readers.dicom_decode import Decoder
from fastmed.readers.dicom_header import NATIVE, Header
from fastmed.readers.dicom_native import PixelSlice, cores, is_built, native_slices
from fastmed.readers.series import Series
from fastmed.readers.voxel_content import AIR_HU, KERNEL_INTEGERS
from fastmed.volume import SourceSlice, Volume

_TISSUE_HU = (-900.0, 3000.0)
_BIG_ENDIAN = NATIVE[2]

Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]


def read_dicom(series: Series, *, allocate: Allocate = np.empty) -> Volume:
    """Reads the voxels of a DICOM series with the verdict "ok".

    Padding becomes air. Slices with one rescale stay as stored; with several, or of several
    pixel types, or of one that the kernels do not take, they become float32 HU. Slices that do
    not lie on the grid's planes are interpolated linearly between their neighbours along the
    stack.

    allocate: (shape, dtype) -> C-contiguous array that the voxels go to, such as one in pinned or
        in shared memory.

    Raises SeriesError that names the file.
    """
    headers, stored = series.stored.headers, series.stored
    dtypes = {_dtype(header) for header in headers}
    rescales = {_rescale(header) for header in headers}
    alike = len(dtypes) == 1 and len(rescales) == 1
    uniform = alike and next(iter(dtypes)).str[1:] in KERNEL_INTEGERS
    slope, intercept = next(iter(rescales)) if uniform else (1.0, 0.0)
    dtype = next(iter(dtypes)) if uniform else np.dtype(np.float32)
    resliced = stored.z_index != tuple(range(stored.planes))
    shape = (len(headers), headers[0].rows, headers[0].columns)
    slices = (np.empty if resliced else allocate)(shape, dtype)

    if uniform and is_built() and all(header.transfer_syntax in NATIVE for header in headers):
        padded = _read_at_once(headers, slices)
    else:
        padded = _read_each(headers, slices, uniform)

    warnings = [*series.warnings]
    if not alike:
        warnings.append("slices differ in rescale or pixel type: converted to float32 HU")
    warnings += _padding_in_tissue(headers, padded)
    voxels = slices
    if resliced:
        voxels = allocate((stored.planes, *shape[1:]), dtype)
        _interpolate(slices, np.array(stored.z_index), voxels)
    return Volume(
        voxels=voxels,
        geometry=series.geometry,
        slope=slope,
        intercept=intercept,
        name=series.name,
        source=series.source,
        slices=tuple(
            SourceSlice(header.sop_instance_uid, z, header.frame + 1 if header.frames > 1 else 0)
            for header, z in zip(headers, stored.z_index, strict=True)
        ),
        warnings=tuple(warnings),
    )


def _dtype(header: Header) -> np.dtype:
    return np.dtype(f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def _rescale(header: Header) -> tuple[float, float]:
    slope = 1.0 if header.slope is None else header.slope
    return slope, 0.0 if header.intercept is None else header.intercept


def _read_at_once(headers: tuple[Header, ...], slices: np.ndarray) -> list[int]:
    """Reads uncompressed slices of one pixel type by the native module; returns padded voxels."""
    padded = [0] * len(headers)
    kinds = defaultdict(list)
    for k, header in enumerate(headers):
        kinds[header.transfer_syntax == _BIG_ENDIAN, _unused_bits(header)].append(k)
    for (big_endian, unused_bits), members in kinds.items():
        whole = len(members) == len(headers)
        voxels = slices if whole else np.empty((len(members), *slices.shape[1:]), slices.dtype)
        wanted = [_pixel_slice(headers[k], slices.dtype) for k in members]
        reads = native_slices(wanted, voxels, big_endian=big_endian, unused_bits=unused_bits)
        for k, read in zip(members, reads, strict=True):
            if read.error:
                raise SeriesError(f"{headers[k].relative}: {os.strerror(read.error)}")
            if read.file_bytes < slices[k].nbytes:
                raise _truncated(headers[k], read.file_bytes, slices[k].nbytes)
            padded[k] = read.padded
        if not whole:
            slices[members] = voxels
    return padded


def _pixel_slice(header: Header, dtype: np.dtype) -> PixelSlice:
    low, high, air = _padding(header, dtype) or (1, 0, 0)
    return PixelSlice(header.path, header.pixel_offset, low, high, air)


def _read_each(headers: tuple[Header, ...], slices: np.ndarray, uniform: bool) -> list[int]:
    """Reads slices one by one, of any pixel types and codings; returns padded voxels of each."""

    def fill(k: int) -> int:
        header = headers[k]
        target = slices[k] if uniform else np.empty(slices.shape[1:], _dtype(header))
        if header.transfer_syntax in NATIVE:
            _read_native(header, target)
        else:
            decoder.decode(header, target)
        padded = _padding_to_air(header, target)
        if not uniform:
            scale, shift = _rescale(header)
            slices[k] = target * scale + shift
        return padded

    with Decoder(headers, cores()) as decoder:
        return _in_parallel(fill, len(headers), decoder.threads)


def _read_native(header: Header, target: np.ndarray) -> None:
    """Reads uncompressed pixels straight into `target`."""
    try:
        with open(header.path, "rb", buffering=0) as file:
            file.seek(header.pixel_offset)
            view = memoryview(target).cast("B")
            while view and (count := file.readinto(view)):
                view = view[count:]
    except OSError as error:
        raise SeriesError(f"{header.relative}: {error.strerror or error}") from error
    if view:
        raise _truncated(header, target.nbytes - len(view), target.nbytes)
    if header.transfer_syntax == _BIG_ENDIAN:
        target.byteswap(inplace=True)
    unused = _unused_bits(header)
    if unused > 0:
        np.left_shift(target, unused, out=target)
        np.right_shift(target, unused, out=target)


def _truncated(header: Header, there: int, wanted: int) -> SeriesError:
    return SeriesError(
        f"{header.relative} is truncated: {there} of {wanted} bytes of pixels; copy it again from "
        "its archive"
    )


def _unused_bits(header: Header) -> int:
    """High bits of a stored pixel that are no part of its value, whatever stands in them."""
    return max(header.bits_allocated - header.bits_stored, 0)


def _padding(header: Header, dtype: np.dtype) -> tuple[int, int, int] | None:
    """The stored values (low, high) that are padding, and that of air; None without padding."""
    if header.padding is None:
        return None
    slope, intercept = _rescale(header)
    info = np.iinfo(dtype)
    air = int(np.clip(np.rint((AIR_HU - intercept) / slope), info.min, info.max))
    low, high = max(header.padding[0], info.min), min(header.padding[1], info.max)
    return None if low > high or low == high == air else (low, high, air)


def _padding_to_air(header: Header, target: np.ndarray) -> int:
    """Gives padding voxels the stored value of air; returns how many there were."""
    padding = _padding(header, target.dtype)
    if padding is None:
        return 0
    low, high, air = padding
    mask = (target >= low) & (target <= high)
    target[mask] = air
    return int(np.count_nonzero(mask))


def _padding_in_tissue(headers: tuple[Header, ...], padded: list[int]) -> list[str]:
    """Says so where the declared padding value is also one that tissue can have."""
    for header, count in zip(headers, padded, strict=True):
        slope, intercept = _rescale(header)
        if count and _TISSUE_HU[0] < header.padding[0] * slope + intercept < _TISSUE_HU[1]:
            value = header.padding[0] * slope + intercept
            return [
                f"PixelPaddingValue stands for {value:g} HU, a value of tissue: "
                f"{sum(padded)} voxels that have it were taken as air"
            ]
    return []


def _interpolate(slices: np.ndarray, z_index: np.ndarray, voxels: np.ndarray) -> None:
    """Fills voxels [planes, H, W] from slices [n, H, W] at rising fractional planes z_index [n]."""
    planes = len(voxels)
    above = np.clip(np.searchsorted(z_index, np.arange(planes)), 1, len(z_index) - 1)
    weights = (np.arange(planes) - z_index[above - 1]) / (z_index[above] - z_index[above - 1])

    def fill(plane: int) -> None:
        weight, upper = np.float32(weights[plane]), int(above[plane])
        if weight in (0.0, 1.0):
            voxels[plane] = slices[upper - 1 if weight == 0.0 else upper]
            return
        low, high = slices[upper - 1].astype(np.float32), slices[upper].astype(np.float32)
        low += weight * (high - low)
        voxels[plane] = low if voxels.dtype.kind == "f" else np.rint(low)

    _in_parallel(fill, planes, cores())


def _in_parallel(work, count: int, threads: int) -> list:
    """Calls work(0) .. work(count - 1); the first error ends it without waiting for the rest."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(work, range(count)))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
