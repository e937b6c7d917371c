"""The native DICOM reader beside pydicom: the same headers and pixels, whatever the bytes."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
import scans as make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_files

from fastmed.errors import SeriesError
from fastmed.readers import dicom_native, dicom_pixels
from fastmed.readers.dicom_header import read_header, read_headers
from fastmed.readers.dicom_native import native_raw, native_rle
from fastmed.readers.dicom_pixels import read_dicom
from fastmed.readers.dicom_raw import read_raw
from fastmed.readers.index import index, read
from fastmed.readers.walk import Found

CORPUS = Path(__file__).parents[1] / "fuzz_corpus"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

pytestmark = pytest.mark.skipif(not dicom_native.is_built(), reason="fastmed/_host is not built")


def found(path) -> Found:
    return Found(str(path), os.path.basename(path), os.path.getsize(path))


def by_pydicom(path):
    """What pydicom alone makes of a file: its raw header, None, or the kind of error."""
    try:
        return read_raw(path, os.path.getsize(path))
    except (OSError, ValueError) as error:
        return type(error)


def sample_files() -> list[str]:
    return sorted(path for path in get_testdata_files() if os.path.isfile(path))


def test_headers_of_pydicoms_own_files_are_those_that_pydicom_reads():
    paths = sample_files()
    raws = native_raw(paths)
    differing = [
        path
        for path, raw in zip(paths, raws, strict=True)
        if raw is not None and raw != by_pydicom(path)
    ]
    assert differing == []
    usual = {os.path.basename(p) for p, raw in zip(paths, raws, strict=True) if raw is not None}
    assert {"CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"} <= usual
    assert {"MR_small_RLE.dcm", "JPEG2000.dcm"} <= usual


def test_real_scans_are_as_usual_and_read_as_by_pydicom(scans):
    for folder in ("ct-abdomen-dicom", "ct-head-tilt-dicom"):
        paths = sorted(str(path) for path in (scans / folder).iterdir())
        assert native_raw(paths) == [by_pydicom(path) for path in paths]


@pytest.mark.parametrize("name", ["deflated-open.bin", "deflated-closed.bin"])
def test_a_deflated_file_is_left_to_pydicom(name, tmp_path):
    path = tmp_path / "slice"
    path.write_bytes(bytes(128) + b"DICM" + (CORPUS / name).read_bytes())
    assert native_raw([str(path)]) == [None]
    assert read_header(str(path), "slice", path.stat().st_size).modality == "CT"


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big-endian", "jpeg2000", "rle"])
@pytest.mark.parametrize("kind", ["open", "closed"])
def test_sequences_of_either_length_are_passed_over(syntax, kind, tmp_path):
    path = tmp_path / "slice"
    path.write_bytes(bytes(128) + b"DICM" + (CORPUS / f"{syntax}-{kind}.bin").read_bytes())
    (raw,) = native_raw([str(path)])
    assert raw == by_pydicom(str(path))
    header = read_header(str(path), "slice", path.stat().st_size)
    assert (header.rows, header.columns, header.position) == (4, 4, (0.0, 0.0, 1.5))
    assert header.has_pixels
    assert not header.cut_short


edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "cut", "ones", "twice"]),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, changes) -> bytes:
    for place, how, piece in changes:
        at = int(place * len(content))
        behind = at + len(piece)
        middle = {
            "set": piece,
            "cut": b"",
            "ones": b"\xff" * len(piece),
            "twice": content[at:behind] * 2,
        }[how]
        content = content[:at] + middle + content[behind:]
    return content


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(path.name for path in CORPUS.iterdir())), changes=edits)
def test_damaged_headers_are_read_as_by_pydicom_or_left_to_it(name, changes, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "slice"
    path.write_bytes(bytes(128) + b"DICM" + edited((CORPUS / name).read_bytes(), changes))
    (raw,) = native_raw([str(path)])
    assert raw is None or raw == by_pydicom(str(path))


@pytest.mark.parametrize("length", [*range(15_500, 16_500, 23), 70_000, 300_000])
def test_a_header_is_read_wherever_the_window_ends_in_it(length, tmp_path):
    dataset = pydicom.dcmread(make.series(tmp_path)[0])
    block = dataset.private_block(0x0009, "FASTMED", create=True)
    block.add_new(0x10, "OB", bytes(length + length % 2))
    path = tmp_path / "long"
    dataset.save_as(path)
    assert native_raw([str(path)]) == [by_pydicom(str(path))]


def test_each_file_gets_its_own_answer(tmp_path):
    files = make.series(tmp_path / "scan")
    text, damaged = tmp_path / "text", tmp_path / "damaged"
    text.write_text("no DICOM" * 40)
    damaged.write_bytes(files[0].read_bytes()[:140])
    absent = Found(str(tmp_path / "absent"), "absent", 1)
    answers = read_headers([*map(found, files), found(text), found(damaged), absent])
    assert [answer.relative for answer in answers[:-3]] == [file.name for file in files]
    assert answers[-3] is None
    assert isinstance(answers[-2], ValueError)
    assert isinstance(answers[-1], FileNotFoundError)


def test_names_of_files_may_hold_any_bytes(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.dcm"
    os.rename(make.series(tmp_path)[0], odd)
    path = os.fsdecode(odd)
    assert native_raw([path]) == [by_pydicom(path)]


def volumes(folder, monkeypatch, *, native: bool):
    """The volumes of a folder, read with or without the native module."""
    with monkeypatch.context() as patch:
        if not native:
            patch.setattr(dicom_native, "_host", None)
        return read(folder, strict=False)


CASES = {
    "as stored": (np.int16, {}),
    "unsigned": (np.uint16, {}),
    "padding": (np.int16, {"PixelPaddingValue": -2000}),
    "padding to a limit": (np.int16, {"PixelPaddingValue": -900, "PixelPaddingRangeLimit": -700}),
    "padding of tissue": (np.uint16, {"PixelPaddingValue": 40}),
    "twelve bits": (np.uint16, {"BitsStored": 12, "HighBit": 11}),
    "signed twelve bits": (np.int16, {"BitsStored": 12, "HighBit": 11}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("syntax", ["", "1.2.840.10008.1.2", BIG_ENDIAN])
def test_pixels_are_those_of_the_other_way(case, syntax, tmp_path, monkeypatch):
    dtype, attributes = CASES[case]
    files = make.series(tmp_path, make.volume((5, 300, 260), dtype=dtype))
    for file in files:
        make.edit(file, **attributes)
        if syntax:
            make.transcode(file, syntax)
    (native,) = volumes(tmp_path, monkeypatch, native=True)
    (other,) = volumes(tmp_path, monkeypatch, native=False)
    assert native.voxels.dtype == other.voxels.dtype
    np.testing.assert_array_equal(native.voxels, other.voxels)
    assert native.warnings == other.warnings
    np.testing.assert_array_equal(native.geometry.affine, other.geometry.affine)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u4", "i4"])
@pytest.mark.parametrize("big_endian", [False, True])
def test_pixels_of_other_widths_are_read(dtype, big_endian, tmp_path):
    written = np.arange(-30, 34).astype(dtype).reshape(2, 4, 8)
    slices = []
    for k, plane in enumerate(written):
        path = tmp_path / str(k)
        path.write_bytes(b"abc" + (plane.byteswap() if big_endian else plane).tobytes())
        slices.append(dicom_native.PixelSlice(str(path), 3, 5, 6, 100))
    voxels = np.zeros_like(written)
    reads = dicom_native.native_slices(slices, voxels, big_endian=big_endian, unused_bits=0)
    is_padding = (written == 5) | (written == 6)
    np.testing.assert_array_equal(voxels, np.where(is_padding, 100, written))
    assert [read.padded for read in reads] == is_padding.sum(axis=(1, 2)).tolist()


def test_slices_of_different_codings_go_into_one_volume(tmp_path):
    scan = make.volume((5, 20, 24))
    files = make.series(tmp_path, scan)
    make.transcode(files[1], BIG_ENDIAN)
    make.transcode(files[3], "1.2.840.10008.1.2")
    (volume,) = read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)


def test_voxels_go_to_the_memory_of_the_caller(tmp_path):
    scan = make.volume((4, 20, 24))
    make.series(tmp_path, scan)
    (entry,) = index(tmp_path)
    handed = []

    def allocate(shape, dtype):
        handed.append(np.full(shape, 7, dtype))
        return handed[-1]

    volume = read_dicom(entry, allocate=allocate)
    assert [volume.voxels is array for array in handed] == [True]
    np.testing.assert_array_equal(handed[0], scan.voxels)


def test_interpolated_voxels_go_to_the_memory_of_the_caller(tmp_path):
    files = make.series(tmp_path, make.volume((6, 20, 24)))
    files[2].unlink()
    (entry,) = index(tmp_path, strict=False)
    handed = []
    volume = read_dicom(entry, allocate=lambda *a: handed.append(np.empty(*a)) or handed[-1])
    assert [volume.voxels is array for array in handed] == [True]


def test_a_slice_that_shrank_is_named_with_what_is_left(tmp_path):
    files = make.series(tmp_path / "scan", make.volume((4, 20, 24)))
    (entry,) = index(tmp_path)
    make.truncate(files[2], lose_bytes=11)
    with pytest.raises(SeriesError, match=r"scan/0003\.dcm is truncated: 949 of 960 bytes"):
        read_dicom(entry)


def test_implicit_files_whose_pixels_begin_with_ones_are_whole(tmp_path, monkeypatch):
    files = make.series(tmp_path, make.volume((4, 20, 24), dtype=np.uint16))
    for file in files:
        make.edit(file, PixelData=b"\xff" * 960)
        make.transcode(file, "1.2.840.10008.1.2")
    for native in (True, False):
        (volume,) = volumes(tmp_path, monkeypatch, native=native)
        assert (volume.voxels == 0xFFFF).all()


SAYS_EXPLICIT = b"UI\x14\x001.2.840.10008.1.2.1\0"


@pytest.mark.parametrize("says", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_a_file_that_is_coded_in_another_way_than_it_says_keeps_its_pixels(says, tmp_path):
    scan = make.volume((4, 20, 24))
    for file in make.series(tmp_path, scan):
        if says == "1.2.840.10008.1.2":
            is_so, wanted = SAYS_EXPLICIT, b"UI\x14\x001.2.840.10008.1.2\0\0\0"
        else:
            make.transcode(file, "1.2.840.10008.1.2")
            is_so, wanted = b"UI\x12\x001.2.840.10008.1.2\0", SAYS_EXPLICIT
        content = file.read_bytes()
        assert content.count(is_so) == 1
        file.write_bytes(content.replace(is_so, wanted))
        assert read_header(str(file), "a", file.stat().st_size).transfer_syntax == says
    (volume,) = read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)


def test_a_deflated_file_that_unpacks_to_too_much_is_refused_before_it_does(tmp_path, monkeypatch):
    (path,) = make.series(tmp_path, make.volume((1, 200, 240)))
    make.edit(path, ImageComments="x" * 10_000, PixelData=bytes(2 * 200 * 240))
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00091010, "OB", os.urandom(1 << 17))  # a header beyond the first look
    dataset.save_as(path)
    make.transcode(path, "1.2.840.10008.1.2.1.99")
    assert index(tmp_path)[0].conditions == ("single slice",)
    monkeypatch.setattr("fastmed.readers.dicom_raw._MOST_INFLATED", 200_000)
    (entry,) = index(tmp_path)
    assert (entry.verdict, entry.conditions) == ("failed", ("too large",))
    assert entry.reason.startswith("it unpacks to more than 200000 bytes")


def rle_frame(pixels: np.ndarray) -> bytes:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsAllocated - 1, 0
    dataset.PixelData = pixels.tobytes()
    dataset.SOPInstanceUID = "1.2"
    dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    return pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rle_is_decoded_as_it_was_encoded(dtype):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), (40, 36), dtype)
    pixels[10:20] = 3
    target = np.zeros_like(pixels)
    assert native_rle(rle_frame(pixels), target)
    np.testing.assert_array_equal(target, pixels)


@settings(max_examples=200, deadline=None)
@given(changes=edits)
def test_damaged_rle_stays_within_its_slice(changes):
    pixels = np.arange(40 * 36, dtype=np.uint16).reshape(40, 36)
    room = np.full((3, 40, 36), 9, np.uint16)
    native_rle(edited(rle_frame(pixels), changes), room[1])
    assert (room[[0, 2]] == 9).all()


@pytest.mark.parametrize("count", [0, 1, 3, 15, 2**32 - 1])
def test_rle_with_another_number_of_segments_is_not_decoded(count):
    frame = struct.pack("<L", count) + rle_frame(np.zeros((4, 4), np.uint16))[4:]
    assert not native_rle(frame, np.zeros((4, 4), np.uint16))


def test_wrong_arguments_are_refused_not_read():
    with pytest.raises(ValueError, match="a path, an offset and a padding"):
        dicom_native.native_slices([], np.zeros((2, 2), np.int16), big_endian=False, unused_bits=0)
    one = [dicom_native.PixelSlice("x", 0, 1, 0, 0)]
    with pytest.raises(ValueError, match="fewer unused bits"):
        dicom_native.native_slices(one, np.zeros(2, np.int16), big_endian=False, unused_bits=16)


def test_without_the_native_module_all_is_read_by_pydicom(tmp_path, monkeypatch):
    scan = make.volume((4, 20, 24))
    files = make.series(tmp_path, scan)
    monkeypatch.setattr(dicom_native, "_host", None)
    assert native_raw([str(files[0])]) == [None]
    assert not dicom_native.is_built()
    monkeypatch.setattr(dicom_pixels, "native_slices", None)  # it would fail if it were called
    (volume,) = read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)


def test_a_header_without_pixels_says_so(tmp_path):
    path = tmp_path / "bare"
    dataset = pydicom.dcmread(make.series(tmp_path)[0])
    del dataset.PixelData
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset)
    path.write_bytes(buffer.getvalue())
    (raw,) = native_raw([str(path)])
    assert raw is not None
    assert not raw.has_pixels
    assert not read_header(str(path), "bare", path.stat().st_size).has_pixels
