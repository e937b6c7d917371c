"""Label maps and scans as NIfTI on the scan's own grid, compressed by all cores."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.volume import Volume
from fastmed.writers.atomic import write_atomically

_PIECE_BYTES = 1 << 20  # fixed: the bytes written must not depend on the number of cores
_GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # no name, no time, unknown system
_NO_EXTENSIONS = bytes(4)


def write_labels(findings: Findings, path: str | os.PathLike) -> None:
    """Writes labels.nii.gz: i = column, j = row, k = slice, affine in RAS mm as the scan's own.

    findings: its labels [D, H, W] are uint8 or int16. A sheared scan (gantry tilt) is described
    by the sform alone, with qform code 0, because a qform cannot hold it.

    The same findings give the same bytes. Raises FastmedError where the disk refuses, TypeError
    for labels of another type, ValueError where they do not lie on the geometry's grid.
    """
    labels = findings.labels
    if labels.dtype.newbyteorder("=") not in (np.uint8, np.int16):
        raise TypeError(f"labels are {labels.dtype}: expected uint8 or int16")
    if labels.shape != findings.geometry.shape_zyx:
        raise ValueError(f"labels {labels.shape}, geometry {findings.geometry.shape_zyx}")
    stored = np.ascontiguousarray(labels, dtype=labels.dtype.newbyteorder("<"))
    header = _header(findings.geometry, stored.dtype, intent="label")
    # Neighbouring label bytes are equal, so run lengths alone are faster and smaller than search.
    strategy = zlib.Z_RLE if stored.itemsize == 1 else zlib.Z_DEFAULT_STRATEGY
    write_atomically(path, _gzip(header, memoryview(stored.reshape(-1).view(np.uint8)), strategy))


def write_volume(volume: Volume, path: str | os.PathLike) -> None:
    """Writes a scan as .nii.gz: its stored int16 voxels, its rescale to HU, its own affine.

    The same volume gives the same bytes. Raises FastmedError where the disk refuses, TypeError
    for voxels of another type.
    """
    if volume.voxels.dtype.newbyteorder("=") != np.int16:
        raise TypeError(f"voxels are {volume.voxels.dtype}: expected int16")
    stored = np.ascontiguousarray(volume.voxels, dtype="<i2")
    header = _header(volume.geometry, stored.dtype, rescale=(volume.slope, volume.intercept))
    # Noise repeats itself nowhere: what a search for repeats would find is not worth its time.
    write_atomically(path, _gzip(header, memoryview(stored.reshape(-1).view(np.uint8)), zlib.Z_RLE))


def write_slice_labels(findings: Findings, path: str | os.PathLike) -> None:
    """Writes labels_slices.npz: the labels [H, W] of each original slice by its SOPInstanceUID.

    Frames of a multi-frame file have -<frame> behind it. A name that is no UID ([0-9.]{1,64}) is
    replaced by its SHA-256. Raises FastmedError where the disk refuses.
    """
    buffer = io.BytesIO()
    named = {_member_name(uid): labels for uid, labels in findings.slice_labels.items()}
    np.savez_compressed(buffer, **named)
    write_atomically(path, [buffer.getvalue()])


def _member_name(uid: str) -> str:
    if re.fullmatch(r"[0-9.]{1,64}(-[0-9]{1,6})?", uid):
        return uid
    return hashlib.sha256(uid.encode(errors="backslashreplace")).hexdigest()


def _header(
    geometry: Geometry, dtype: np.dtype, *, intent: str = "none", rescale=(1.0, 0.0)
) -> bytes:
    import nibabel

    header = nibabel.Nifti1Header(endianness="<")
    affine = geometry.to_ras_xyz()
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape_zyx[::-1])
    header.set_zooms(geometry.spacing_mm_zyx[::-1])
    header.set_sform(affine, code=1)
    if geometry.is_sheared:
        header.set_qform(None, code=0)
    else:
        header.set_qform(affine, code=1, strip_shears=True)
    header.set_xyzt_units("mm")
    header.set_slope_inter(*rescale)
    header.set_intent(intent)
    header["magic"] = b"n+1"
    header["vox_offset"] = header.sizeof_hdr + len(_NO_EXTENSIONS)
    return header.binaryblock + _NO_EXTENSIONS


def _gzip(header: bytes, data: memoryview, strategy: int) -> Iterator[bytes]:
    """One gzip member; its deflate pieces end on byte borders, so threads can make them apart."""
    pieces = [data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES)]
    yield _GZIP_HEADER
    yield _deflate(header, zlib.Z_DEFAULT_STRATEGY)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        compressed = pool.map(lambda piece: _deflate(piece, strategy), pieces)
        checksum = zlib.crc32(data, zlib.crc32(header))
        yield from compressed
    yield zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
    yield checksum.to_bytes(4, "little")
    yield ((len(header) + len(data)) & 0xFFFFFFFF).to_bytes(4, "little")


def _deflate(piece: bytes | memoryview, strategy: int) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
