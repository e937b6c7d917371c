"""Compressed slices decoded by imagecodecs: the voxels that pydicom and SimpleITK read."""

import os
import struct
from contextlib import suppress

import imagecodecs
import numpy as np
import pydicom
import pytest
import scans as make
import SimpleITK as sitk
from pydicom.data import get_testdata_files
from pydicom.encaps import encapsulate

from fastmed.errors import SeriesError
from fastmed.readers import dicom_codecs, dicom_decode, dicom_native
from fastmed.readers.dicom_codecs import decode_frame
from fastmed.readers.dicom_header import NATIVE, read_header
from fastmed.readers.dicom_stream import StreamFacts, stream_facts
from fastmed.readers.dicom_worker import decoded
from fastmed.readers.index import index, read, read_series

pytestmark = pytest.mark.skipif(not dicom_native.is_built(), reason="fastmed/_host is not built")

BASE = "1.2.840.10008.1.2.4."
# By name: transfer syntax, and what encodes pixels [H, W] without loss.
LOSSLESS = {
    "JPEG lossless": (f"{BASE}57", lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16)),
    "JPEG lossless SV1": (f"{BASE}70", lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16)),
    "JPEG-LS": (f"{BASE}80", imagecodecs.jpegls_encode),
    "JPEG 2000": (
        f"{BASE}90",
        lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k", reversible=True),
    ),
    "HTJ2K": (f"{BASE}201", lambda a: imagecodecs.htj2k_encode(a, reversible=True)),
}


def as_header_and_target(path):
    header = read_header(str(path), os.path.basename(path), os.path.getsize(path))
    kind = "i" if header.signed else "u"
    target = np.zeros((header.rows, header.columns), f"{kind}{header.bits_allocated // 8}")
    return header, target


def replace_frame(path, syntax: str, frame: bytes, **attributes) -> None:
    """Puts an encoded frame in the place of a file's pixels."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def grey_single_frames() -> list[str]:
    """pydicom's own compressed files of one grey frame."""
    paths = []
    for path in filter(os.path.isfile, get_testdata_files()):
        try:
            header = read_header(path, "", os.path.getsize(path))
        except ValueError:
            continue
        is_image = header and header.has_pixels and header.transfer_syntax not in NATIVE
        if is_image and (header.samples, header.frames) == (1, 1) and not header.cut_short:
            paths.append(path)
    return sorted(paths)


@pytest.mark.parametrize("path", grey_single_frames(), ids=os.path.basename)
def test_pydicoms_own_files_are_decoded_as_by_pydicom(path):
    header, target = as_header_and_target(path)
    try:
        expected = decoded(path)
    except RuntimeError:
        expected = None
    try:
        if not decode_frame(header, target):
            return  # left to pydicom
    except RuntimeError:  # refused
        assert expected is None
        return
    if expected is None:  # what pydicom's decoders lack: 12 bits in JPEG Extended
        expected = sitk.GetArrayFromImage(sitk.ReadImage(path))[0]
    np.testing.assert_array_equal(target, expected)


def test_most_of_pydicoms_own_files_are_not_left_to_pydicom():
    taken = set()
    for path in grey_single_frames():
        with suppress(RuntimeError):
            if decode_frame(*as_header_and_target(path)):
                taken.add(os.path.basename(path))
    assert {
        "JPEG2000.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEGLSNearLossless_16.dcm",
        "JPEG-lossy.dcm",
        "JPGExtended.dcm",
    } <= taken


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_slices_are_decoded_as_written(name, signed, tmp_path, monkeypatch):
    syntax, encode = LOSSLESS[name]
    dtype = np.int16 if signed else np.uint16
    scan = make.volume((3, 40, 36), dtype=dtype)
    if signed:
        scan.voxels[...] -= 1024
    for plane, path in zip(scan.voxels, make.series(tmp_path, scan), strict=True):
        replace_frame(path, syntax, encode(plane.view(np.uint16)))
    monkeypatch.setattr(dicom_decode, "decoded", None)  # it would fail if it were called
    (volume,) = read(tmp_path)
    assert volume.voxels.dtype == dtype
    np.testing.assert_array_equal(volume.voxels, scan.voxels)


def test_twelve_bits_of_signed_pixels_keep_their_sign(tmp_path):
    pixels = np.arange(-1024, -1024 + 40 * 36, dtype=np.int16).reshape(40, 36)
    path = make.series(tmp_path, make.volume((1, 40, 36)))[0]
    twelve_bits = pixels.view(np.uint16) & 0x0FFF
    frame = imagecodecs.jpeg2k_encode(
        twelve_bits, codecformat="j2k", reversible=True, bitspersample=12
    )
    replace_frame(path, f"{BASE}90", frame, BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert stream_facts(frame) == StreamFacts(40, 36, 1, 12, False)
    header, target = as_header_and_target(path)
    assert decode_frame(header, target)
    np.testing.assert_array_equal(target, pixels)
    np.testing.assert_array_equal(decoded(str(path)), pixels)


@pytest.mark.parametrize("rows", [20, 400])
def test_a_stream_of_another_size_than_its_header_is_not_decoded(rows, tmp_path, monkeypatch):
    path = make.series(tmp_path, make.volume((1, 40, 36)))[0]
    frame = imagecodecs.jpeg2k_encode(np.zeros((rows, 36), np.uint16), codecformat="j2k")
    replace_frame(path, f"{BASE}90", frame)
    monkeypatch.setattr(dicom_codecs, "_codec", lambda syntax: pytest.fail("it was decoded"))
    dicom_codecs.has_codec.cache_clear()
    monkeypatch.setattr(dicom_codecs, "has_codec", lambda syntax: True)
    if rows < 40:
        assert not decode_frame(*as_header_and_target(path))
        return
    with pytest.raises(RuntimeError, match="has 400 x 36 pixels of 1 samples, its header says 40"):
        decode_frame(*as_header_and_target(path))  # nor is it shown to pydicom


def test_frames_in_several_fragments_are_joined(tmp_path):
    scan = make.volume((3, 40, 36))
    for path in make.series(tmp_path, scan):
        make.transcode(path, f"{BASE}90")
        dataset = pydicom.dcmread(path)
        frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = pydicom.encaps.encapsulate([frame], fragments_per_frame=3)
        dataset.save_as(path)
        assert dicom_native.native_frame(str(path)).rstrip(b"\0") == frame.rstrip(b"\0")
    (volume,) = read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)


DAMAGE = {
    "its bits": lambda frame: frame[:60] + b"\xff\x00" * ((len(frame) - 62) // 2) + frame[-2:],
    "its end": lambda frame: frame[: len(frame) // 2],
    "its size": lambda frame: frame.replace(
        b"\xff\xf7\x00\x0b\x10\x00\x28", b"\xff\xf7\x00\x0b\x10\x00\x29"
    ),
}


@pytest.mark.parametrize("where", DAMAGE)
def test_damaged_jpeg_ls_is_named_and_not_shown_to_pydicom(where, tmp_path, monkeypatch):
    files = make.series(tmp_path / "scan", make.volume((3, 40, 36), dtype=np.uint16))
    for path in files:
        make.transcode(path, f"{BASE}80")
    frame = dicom_native.native_frame(str(files[1])).rstrip(b"\0")
    damaged = DAMAGE[where](frame)
    assert damaged != frame
    replace_frame(files[1], f"{BASE}80", damaged)
    monkeypatch.setattr(dicom_decode, "decoded", lambda path: pytest.fail("pydicom was asked"))
    (entry,) = index(tmp_path)
    with pytest.raises(SeriesError, match=r"scan/0002\.dcm \(JPEG-LS .* cannot be decoded"):
        read_series(entry)


@pytest.mark.parametrize(
    ("frame", "facts"),
    [
        (b"", None),
        (b"\xff\xd8", None),
        (b"\xff\x4f\xff\x51" + bytes(20), None),
        (b"\xff\xd8\xff\xe0\xff\xff", None),
        (
            b"\xff\xd8\xff\xff\xff\xc3" + struct.pack(">HBHHB", 11, 16, 40, 36, 1),
            (40, 36, 1, 16, False),
        ),
        (b"\xff\xd8\xff\xe0\x00\x00\x00", None),
    ],
)
def test_streams_state_their_size_or_nothing(frame, facts):
    assert stream_facts(frame) == facts


def test_without_imagecodecs_pydicom_decodes(tmp_path, monkeypatch):
    scan = make.volume((3, 40, 36))
    for path in make.series(tmp_path, scan):
        make.transcode(path, f"{BASE}90")
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    dicom_codecs.has_codec.cache_clear()
    assert not dicom_codecs.has_codec(f"{BASE}90")
    (volume,) = read(tmp_path)
    dicom_codecs.has_codec.cache_clear()
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
