"""DICOM series in every transfer syntax, and compressed ones that are damaged."""

import numpy as np
import pydicom
import pytest
import scans as make

from fastmed.errors import SeriesError
from fastmed.readers import dicom_codecs, dicom_decode, dicom_pixels
from fastmed.readers.index import index, read, read_series
from fastmed.volume import Volume


def one(path, *, strict=True) -> Volume:
    (volume,) = read(path, strict=strict)
    return volume


SYNTAXES = {
    "implicit little endian": "1.2.840.10008.1.2",
    "explicit little endian": "1.2.840.10008.1.2.1",
    "explicit big endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG lossless": "1.2.840.10008.1.2.4.57",
    "JPEG lossless, first-order prediction": "1.2.840.10008.1.2.4.70",
    "JPEG-LS lossless": "1.2.840.10008.1.2.4.80",
    "JPEG 2000 lossless": "1.2.840.10008.1.2.4.90",
    "HTJ2K lossless": "1.2.840.10008.1.2.4.201",
}


@pytest.fixture(params=["natively where it can be", "by pydicom"])
def route(request, monkeypatch):
    """Both ways to decode compressed pixels, of which a machine may have but the second."""
    if request.param == "by pydicom":
        monkeypatch.setattr(dicom_codecs, "is_built", lambda: False)
        dicom_codecs.has_codec.cache_clear()
        dicom_decode.why_not.cache_clear()
    yield
    dicom_codecs.has_codec.cache_clear()
    dicom_decode.why_not.cache_clear()


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_every_transfer_syntax_gives_the_same_volume(syntax, dtype, route, tmp_path):
    if syntax == "JPEG-LS lossless" and dtype == np.int16:
        pytest.skip("pydicom does not write signed JPEG-LS")
    scan = make.volume((4, 40, 36), dtype=dtype)
    for file in make.series(tmp_path, scan):
        make.transcode(file, SYNTAXES[syntax])
    (entry,) = index(tmp_path)
    assert (entry.verdict, entry.conditions) == ("ok", ("uniform",))
    volume = read_series(entry)
    assert volume.voxels.dtype == dtype
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)


def test_jpeg_baseline_is_read_with_its_eight_bits(route, tmp_path):
    scan = make.volume((4, 40, 36))
    ramp = np.add.outer(np.arange(40), np.arange(36)).astype(np.uint8) * 2
    for file in make.series(tmp_path, scan):
        make.edit(
            file,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
            RescaleSlope=8,
            RescaleIntercept=-1024,
            PixelData=ramp.tobytes(),
        )
        make.transcode(file, "1.2.840.10008.1.2.4.50")
    volume = one(tmp_path)
    assert volume.voxels.dtype == np.uint8
    assert np.abs(volume.voxels.astype(int) - ramp).max() <= 2


@pytest.mark.parametrize("syntax", ["RLE", "JPEG 2000 lossless"])
def test_truncated_compressed_files_are_failed_by_the_index(syntax, tmp_path):
    files = make.series(tmp_path, make.volume((5, 40, 36)))
    for file in files:
        make.transcode(file, SYNTAXES[syntax])
    make.truncate(files[4], lose_bytes=9)
    (entry,) = index(tmp_path)
    assert entry.verdict == "failed"
    assert "0005.dcm is truncated" in entry.reason


def test_damaged_compressed_pixels_name_their_file(tmp_path):
    files = make.series(tmp_path / "scan", make.volume((5, 40, 36)))
    for file in files:
        make.transcode(file, SYNTAXES["JPEG 2000 lossless"])
    damaged = pydicom.dcmread(files[4])
    make.edit(files[4], PixelData=damaged.PixelData[:60] + bytes(len(damaged.PixelData) - 60))
    (entry,) = index(tmp_path)
    with pytest.raises(SeriesError, match=r"scan/0005.dcm \(JPEG 2000 .*cannot be decoded"):
        read_series(entry)


def test_many_compressed_slices_are_decoded_by_processes_with_the_same_result(
    tmp_path, monkeypatch
):
    scan = make.volume((6, 40, 36))
    files = make.series(tmp_path, scan)
    for file in files:
        make.transcode(file, SYNTAXES["JPEG 2000 lossless"])
    monkeypatch.setattr(dicom_decode, "SLICES_PER_PROCESS", 1)
    monkeypatch.setattr(dicom_decode, "has_codec", lambda syntax: False)
    monkeypatch.setattr(dicom_decode, "decode_frame", lambda header, target: False)
    monkeypatch.setattr(dicom_pixels, "cores", lambda: 2)
    np.testing.assert_array_equal(one(tmp_path).voxels, scan.voxels)
    (entry,) = index(tmp_path)
    files[3].write_bytes(b"")
    with pytest.raises(SeriesError, match=r"0004\.dcm .* cannot be decoded"):
        read_series(entry)


def test_a_decoder_that_crashes_costs_only_its_series(tmp_path, monkeypatch):
    for file in make.series(tmp_path, make.volume((6, 40, 36))):
        make.transcode(file, SYNTAXES["RLE"])
    monkeypatch.setattr(dicom_decode, "SLICES_PER_PROCESS", 1)
    monkeypatch.setattr(dicom_decode, "has_codec", lambda syntax: False)
    monkeypatch.setattr(dicom_decode, "decode_frame", lambda header, target: False)
    monkeypatch.setattr(dicom_pixels, "cores", lambda: 2)
    monkeypatch.setattr(dicom_decode.sys, "executable", "/bin/false")
    with pytest.raises(SeriesError, match=r"0001\.dcm .*its decoder crashed"):
        one(tmp_path)


def test_an_unknown_transfer_syntax_is_named(tmp_path):
    files = make.series(tmp_path)
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(file)
    (entry,) = index(tmp_path)
    assert entry.verdict == "failed"
    assert "transfer syntax MPEG2" in entry.reason
    assert "is not supported; convert" in entry.reason


def test_a_decoder_that_is_not_installed_is_named(tmp_path, monkeypatch):
    class Absent:
        is_available = False
        missing_dependencies = ("pylibjpeg - requires pylibjpeg>=2.0",)

    make.transcode(make.series(tmp_path)[0], SYNTAXES["RLE"])
    monkeypatch.setattr(dicom_decode, "has_codec", lambda syntax: False)
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda syntax: Absent)
    dicom_decode.why_not.cache_clear()
    (entry,) = index(tmp_path)
    dicom_decode.why_not.cache_clear()
    assert entry.verdict == "failed"
    assert entry.reason == (
        "0001.dcm: no decoder for RLE Lossless is installed: pylibjpeg - requires pylibjpeg>=2.0"
    )
