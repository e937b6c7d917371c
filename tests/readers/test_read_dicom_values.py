"""Stored values of DICOM series: rescale, padding, unused bits."""

import numpy as np
import pydicom
import pytest
import scans as make

from fastmed.readers.index import read
from fastmed.volume import Volume


def one(path, *, strict=True) -> Volume:
    (volume,) = read(path, strict=strict)
    return volume


def test_lenient_takes_values_without_rescale_as_hu_and_says_so(tmp_path):
    scan = make.volume(intercept=0.0)
    make.edit_all(make.series(tmp_path, scan), RescaleSlope=None, RescaleIntercept=None,
                  RescaleType=None)  # fmt: skip
    volume = one(tmp_path, strict=False)
    assert (volume.slope, volume.intercept) == (1.0, 0.0)
    assert "slope 1, intercept 0 assumed" in volume.warnings[0]


def test_rescale_of_each_slice_is_honoured(tmp_path):
    scan = make.volume()
    files = make.series(tmp_path, scan)
    for k, file in enumerate(files):
        make.edit(file, RescaleSlope=1 + k / 4, RescaleIntercept=-1000 - k)
    volume = one(tmp_path)
    k = np.arange(9)[:, None, None]
    np.testing.assert_array_equal(volume.hu(), scan.voxels * (1 + k / 4) - 1000 - k)
    assert "differ in rescale" in volume.warnings[0]


@pytest.mark.parametrize(
    ("dtype", "value", "limit", "stored"),
    [
        (np.int16, -2000, None, [-2000]),
        (np.int16, -2000, -1500, [-2000, -1700, -1500]),
        (np.uint16, 63000, None, [63000]),
        (np.uint16, 65535, 60000, [60000, 65535]),
    ],
)
def test_padding_becomes_air(dtype, value, limit, stored, tmp_path):
    scan = make.volume(dtype=dtype)
    for k, number in enumerate(stored):
        scan.voxels[:, 5, k] = number
    attributes = {"PixelPaddingValue": value}
    if limit is not None:
        attributes["PixelPaddingRangeLimit"] = limit
    files = make.series(tmp_path, scan)
    make.edit_all(files, **attributes)
    hu = one(tmp_path).hu()
    assert (hu[:, 5, : len(stored)] == -1024).all()
    rest = scan.voxels.copy()
    rest[:, 5, : len(stored)] = 0
    np.testing.assert_array_equal(hu, rest.astype(np.float32) - 1024)


def test_padding_is_air_before_slices_are_interpolated(tmp_path):
    scan = make.volume()
    scan.voxels[:, 5] = -2000
    files = make.series(tmp_path, scan)
    make.edit_all(files, PixelPaddingValue=-2000)
    files[4].unlink()
    assert (one(tmp_path, strict=False).hu()[:, 5] == -1024).all()


def test_padding_with_a_value_of_tissue_is_said(tmp_path):
    scan = make.volume()
    make.edit_all(make.series(tmp_path, scan), PixelPaddingValue=1024)
    (warning,) = one(tmp_path).warnings
    assert f"0 HU, a value of tissue: {(scan.voxels == 1024).sum()} voxels" in warning


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_rubbish_in_unused_high_bits_is_no_part_of_a_value(dtype, tmp_path):
    scan = make.volume(dtype=dtype)
    files = make.series(tmp_path, scan)
    for file in files:
        rubbish = pydicom.dcmread(file).pixel_array.view(np.uint16) & 0x0FFF | 0xA000
        make.edit(file, BitsStored=12, HighBit=11, PixelData=rubbish.tobytes())
    volume = one(tmp_path)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    pixels = pydicom.dcmread(files[3]).pixel_array
    np.testing.assert_array_equal(volume.voxels[3], pixels)


def test_signed_twelve_bit_values_keep_their_sign(tmp_path):
    scan = make.volume(intercept=0.0)
    scan.voxels[...] -= 1024
    files = make.series(tmp_path, scan)
    for file in files:
        masked = pydicom.dcmread(file).pixel_array.view(np.uint16) & 0x0FFF
        make.edit(file, BitsStored=12, HighBit=11, PixelData=masked.tobytes())
    np.testing.assert_array_equal(one(tmp_path).voxels, scan.voxels)


@pytest.mark.parametrize(("dtype", "slope"), [(np.int8, 16.0), (np.uint32, 1.0)])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_pixels_of_a_type_that_the_kernels_do_not_take_become_float32_hu(
    dtype, slope, syntax, tmp_path
):
    wanted = np.random.default_rng(0).integers(-100, 100, (4, 12, 14))
    stored = (wanted + (0 if dtype == np.int8 else 1024)).astype(dtype)
    for file, plane in zip(make.series(tmp_path, make.volume((4, 12, 14))), stored, strict=True):
        bits = 8 * stored.itemsize
        make.edit(
            file,
            BitsAllocated=bits,
            BitsStored=bits,
            HighBit=bits - 1,
            PixelRepresentation=int(dtype == np.int8),
            RescaleSlope=slope,
            RescaleIntercept=0 if dtype == np.int8 else -1024,
            PixelData=plane.tobytes(),
        )
        if syntax.endswith(".2") and bits > 8:
            make.transcode(file, syntax)
    volume = one(tmp_path)
    assert (volume.voxels.dtype, volume.warnings) == (np.float32, ())
    np.testing.assert_array_equal(volume.voxels, wanted * slope)
