"""DICOM series as Volumes: voxels, HU and geometry against other readers and against the truth."""

import numpy as np
import pydicom
import pytest
import scans as make
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.readers import dicom_decode, dicom_pixels
from fastmed.readers.index import index, read, read_series
from fastmed.volume import Volume


def one(path, *, strict=True) -> Volume:
    (volume,) = read(path, strict=strict)
    return volume


def by_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def affine_of(image) -> np.ndarray:
    """Index (z, y, x) to LPS of a SimpleITK image."""
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    return Geometry.from_axes(image.GetSize()[::-1], image.GetOrigin(), steps.T[::-1]).affine


def shuffled(files, seed=0) -> None:
    """Gives the files of a series other names and instance numbers, in no order."""
    order = np.random.default_rng(seed).permutation(len(files))
    for number, k in enumerate(order):
        make.edit(files[k], InstanceNumber=str(number + 1))
        files[k].rename(files[k].with_name(f"IM{number:03d}"))


def test_voxels_hu_and_geometry_are_those_that_were_written(tmp_path):
    scan = make.volume()
    files = make.series(tmp_path, scan)
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    shuffled(files)
    volume = one(tmp_path)
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.flags.c_contiguous
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)
    assert (volume.slope, volume.intercept) == (1.0, -1024.0)
    assert [s.sop_instance_uid for s in volume.slices] == uids
    assert [s.z_index for s in volume.slices] == list(range(9))
    assert not volume.is_resliced


@pytest.mark.parametrize("orientation", ["axial", "feet first", "coronal", "oblique"])
def test_geometry_and_hu_equal_those_of_simpleitk(orientation, tmp_path):
    angle = np.radians(30)
    axes = {
        "axial": [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
        "feet first": [(0, 0, -1), (0, 1, 0), (-1, 0, 0)],
        "coronal": [(0, 1, 0), (0, 0, -1), (1, 0, 0)],
        "oblique": [
            (0, -np.sin(angle), np.cos(angle)),
            (0, np.cos(angle), np.sin(angle)),
            (1, 0, 0),
        ],
    }[orientation]
    steps = np.array(axes) * np.array([[1.5], [0.8], [0.7]])
    scan = make.volume(intercept=-1000.0, slope=2.0)
    scan = Volume(
        scan.voxels,
        Geometry.from_axes(make.SHAPE, (3.25, -40.5, 17.0), steps),
        scan.slope,
        scan.intercept,
    )
    shuffled(make.series(tmp_path, scan))
    volume, image = one(tmp_path), by_simpleitk(tmp_path)
    np.testing.assert_allclose(volume.geometry.affine, affine_of(image), atol=1e-6)
    np.testing.assert_array_equal(volume.hu(), sitk.GetArrayFromImage(image))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 999),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    gap=st.floats(0.3, 8),
    lean=st.tuples(*[st.floats(-0.4, 0.4)] * 2),
)
def test_any_pose_in_any_file_order_gives_the_same_volume(
    tmp_path_factory, seed, angles, origin, gap, lean
):
    turn = sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()
    x, y, z = np.reshape(turn, (3, 3)).T
    steps = [gap * (z + lean[0] * x + lean[1] * y), 0.7 * y, 0.9 * x]
    scan = make.volume((5, 6, 7), seed=seed)
    scan = Volume(scan.voxels, Geometry.from_axes((5, 6, 7), origin, steps), 1.0, -1024.0)
    folder = tmp_path_factory.mktemp("pose")
    shuffled(make.series(folder, scan), seed)
    volume = one(folder)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-6)


def test_a_tilted_gantry_goes_into_the_affine_and_is_no_reason_to_refuse(tmp_path):
    scan = make.volume(tilt_degrees=18.5)
    make.series(tmp_path, scan)
    (entry,) = index(tmp_path)
    assert entry.reason == "CT volume, tilted 18.5 degrees, uniform 2 mm"
    volume = read_series(entry)
    assert volume.geometry.is_sheared
    assert volume.geometry.tilt_degrees == pytest.approx(18.5)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)


@pytest.mark.parametrize("missing", [[4], [1, 2, 6]])
@pytest.mark.parametrize("tilt", [0.0, 18.5])
def test_lenient_interpolates_missing_slices_between_their_neighbours(missing, tilt, tmp_path):
    scan = make.volume(tilt_degrees=tilt)
    ramp = (np.arange(9, dtype=np.int16) * 30)[:, None, None]
    scan = Volume(scan.voxels[:1] + ramp, scan.geometry, 1.0, -1024.0)
    files = make.series(tmp_path, scan)
    for k in missing:
        files[k].unlink()
    volume = one(tmp_path, strict=False)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)
    assert [s.z_index for s in volume.slices] == [k for k in range(9) if k not in missing]
    assert volume.is_resliced
    assert "interpolated between their neighbours" in volume.warnings[0]


def test_lenient_lays_uneven_slices_on_a_grid_no_coarser_than_the_smallest_gap(tmp_path):
    scan = make.volume((5, 12, 14))
    files = make.series(tmp_path, scan)
    depths = np.array([0.0, 1.1, 5.1, 9.1, 16.1])
    for k, file in enumerate(files):
        make.edit(file, ImagePositionPatient=[0, 0, depths[k]])
    (entry,) = index(tmp_path)
    assert "unevenly spaced (1.10, 4.00 and 7.00 mm)" in entry.reason
    volume = one(tmp_path, strict=False)
    step = volume.geometry.spacing_mm_zyx[0]
    assert 1.0 < step <= 1.1
    assert np.isfinite(volume.voxels).all()
    at = np.array([s.z_index for s in volume.slices])
    np.testing.assert_allclose(at * step, depths, atol=0.1)
    assert at[-1] == volume.voxels.shape[0] - 1
    for z, plane in enumerate(volume.voxels):
        expected = [np.interp(z, at, scan.voxels[:, y, x]) for y, x in ((0, 0), (5, 7), (11, 13))]
        np.testing.assert_allclose([plane[0, 0], plane[5, 7], plane[11, 13]], expected, atol=0.51)


def test_lenient_interpolates_uneven_slices_also_where_their_number_fits_the_grid(tmp_path):
    scan = make.volume()
    paths = make.series(tmp_path, scan)
    late = np.maximum(np.arange(len(paths)) - 4, 0) * 0.2  # gaps of 2.0, then of 2.2 mm
    for path, shift in zip(paths, late, strict=True):
        make.move(path, by_lps_mm=(0, 0, float(shift)))
    (volume,) = read(tmp_path, strict=False)
    assert volume.geometry.shape_zyx == scan.geometry.shape_zyx
    at = np.array([s.z_index for s in volume.slices])
    step = volume.geometry.spacing_mm_zyx[0]
    np.testing.assert_allclose(at * step, 2.0 * np.arange(9) + late, atol=0.1)
    for z, plane in enumerate(volume.voxels):
        expected = [np.interp(z, at, scan.voxels[:, y, x]) for y, x in ((0, 0), (5, 7), (11, 13))]
        np.testing.assert_allclose([plane[0, 0], plane[5, 7], plane[11, 13]], expected, atol=0.51)


def test_lenient_takes_a_slice_beside_the_line_up_to_a_pixel(tmp_path):
    scan = make.volume()
    files = make.series(tmp_path, scan)
    make.move(files[4], by_lps_mm=(0.4, 0, 0))
    volume = one(tmp_path, strict=False)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)
    assert "up to 0.40 mm beside the line" in volume.warnings[0]
    make.move(files[4], by_lps_mm=(0.4, 0, 0))
    (entry,) = index(tmp_path, strict=False)
    assert entry.verdict == "refused"
    assert "more than a pixel" in entry.reason


def test_lenient_refuses_a_grid_of_too_many_slices(tmp_path):
    files = make.series(tmp_path)
    make.move(files[1], by_lps_mm=(0, 0, -1.98))
    make.move(files[-1], by_lps_mm=(0, 0, 100))
    (entry,) = index(tmp_path, strict=False)
    assert entry.verdict == "refused"
    assert "above the limit of 2048 slices" in entry.reason


def test_lenient_keeps_one_of_several_slices_at_a_position_by_its_rule(tmp_path):
    files = make.series(tmp_path)
    make.edit(files[4], AcquisitionNumber="2")
    make.move(files[4], by_lps_mm=(0, 0, 2))
    volume = one(tmp_path, strict=False)
    uids = [s.sop_instance_uid for s in volume.slices]
    assert pydicom.dcmread(files[5]).SOPInstanceUID in uids
    assert pydicom.dcmread(files[4]).SOPInstanceUID not in uids
    assert "of 2 acquisitions: kept the lowest AcquisitionNumber" in " ".join(volume.warnings)


def test_lenient_splits_mixed_series_into_volumes(tmp_path):
    files = make.series(tmp_path)
    make.edit_all(files[6:], PixelSpacing=[0.9, 0.9])
    entries = index(tmp_path, strict=False)
    assert [(e.verdict, e.shape_zyx[0]) for e in entries] == [("ok", 6), ("ok", 3)]
    assert entries[1].name == entries[0].name + "-2"
    assert all("split into 2 volumes" in e.warnings[0] for e in entries)
    assert [v.voxels.shape[0] for v in read(tmp_path, strict=False)] == [6, 3]


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


SYNTAXES = {
    "implicit little endian": "1.2.840.10008.1.2",
    "explicit big endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG 2000 lossless": "1.2.840.10008.1.2.4.90",
    "JPEG-LS lossless": "1.2.840.10008.1.2.4.80",
}


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_every_transfer_syntax_gives_the_same_volume(syntax, dtype, tmp_path):
    if syntax == "JPEG-LS lossless" and dtype == np.int16:
        pytest.skip("pydicom does not write signed JPEG-LS")
    scan = make.volume((4, 40, 36), dtype=dtype)
    for file in make.series(tmp_path, scan):
        make.transcode(file, SYNTAXES[syntax])
    volume = one(tmp_path)
    assert volume.voxels.dtype == dtype
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)


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


def test_a_file_that_shrinks_between_index_and_read_is_named(tmp_path):
    files = make.series(tmp_path / "scan")
    (entry,) = index(tmp_path)
    make.truncate(files[2], lose_bytes=10)
    with pytest.raises(SeriesError, match=r"scan/0003.dcm is truncated: 326 of 336 bytes"):
        read_series(entry)
    files[2].unlink()
    with pytest.raises(SeriesError, match=r"scan/0003.dcm: No such file"):
        read_series(entry)


def test_long_headers_and_files_without_a_preamble_are_read(tmp_path):
    scan = make.volume()
    files = make.series(tmp_path, scan)
    for file in files[::2]:
        make.edit(file, ImageComments="x" * 9000, PatientComments="y" * 9000,
                  InstitutionAddress="z" * 1000)  # fmt: skip
        dataset = pydicom.dcmread(file)
        dataset.add_new(0x00091001, "OB", bytes(200_000))
        dataset.add_new(0x00090010, "LO", "FASTMED TEST")
        dataset.save_as(file)
    for file in files[1::2]:
        file.write_bytes(file.read_bytes()[132:])
    np.testing.assert_array_equal(one(tmp_path).voxels, scan.voxels)


def test_the_real_abdomen_is_a_uniform_volume(scans):
    (entry,) = index(scans / "ct-abdomen-dicom")
    assert (entry.kind, entry.verdict) == ("ct", "ok")
    assert entry.reason == "CT volume, uniform 2 mm"
    volume, image = read_series(entry), by_simpleitk(scans / "ct-abdomen-dicom")
    assert volume.geometry.shape_zyx == (20, 512, 512)
    np.testing.assert_allclose(volume.geometry.affine, affine_of(image), atol=1e-9)
    np.testing.assert_array_equal(volume.hu(), sitk.GetArrayFromImage(image))


def test_the_real_tilted_head_is_refused_or_laid_on_a_grid(scans):
    (entry,) = index(scans / "ct-head-tilt-dicom")
    assert entry.verdict == "refused"
    assert entry.reason.startswith(
        "tilted 18.5 degrees, unevenly spaced (1.08, 4.00 and 7.00 mm along the normal; "
        "1.14, 4.22 and 7.38 along the table)"
    )
    volume = one(scans / "ct-head-tilt-dicom", strict=False)
    assert volume.geometry.tilt_degrees == pytest.approx(18.5, abs=0.01)
    files = sorted((scans / "ct-head-tilt-dicom").iterdir())
    for file, piece in zip(files, volume.slices, strict=True):
        dataset = pydicom.dcmread(file)
        assert dataset.SOPInstanceUID == piece.sop_instance_uid
        position = volume.geometry.to_world((piece.z_index, 0, 0))
        np.testing.assert_allclose(position, dataset.ImagePositionPatient, atol=0.11)
        if piece.z_index == int(piece.z_index):
            pixels = dataset.pixel_array.astype(np.float32)
            pixels[pixels == -1500] = -1024
            np.testing.assert_array_equal(volume.hu()[int(piece.z_index)], pixels)
    assert volume.hu().min() >= -1024


def test_the_real_scans_get_exactly_these_verdicts(scans):
    found = {e.source: (e.kind, e.verdict) for e in index(scans)}
    assert {k: v for k, v in found.items() if v[0] != "not an image"} == {
        "ct-abdomen-dicom": ("ct", "ok"),
        "ct-head-tilt-dicom": ("ct", "refused"),
        "ct-torso-nifti/ct.nii.gz": ("ct", "ok"),
        "ct-torso-nifti/labels.nii.gz": ("label map", "skipped"),
        "ct-abdomen-dicom-labels.nii.gz": ("label map", "skipped"),
    }


def test_interpolation_between_unsigned_extremes_neither_wraps_nor_overflows():
    slices = np.array([0, 65535], np.uint16).reshape(2, 1, 1)
    planes = np.empty((5, 1, 1), np.uint16)
    dicom_pixels._interpolate(slices, np.array([0.0, 4.0]), planes)
    assert planes.ravel().tolist() == [0, 16384, 32768, 49151, 65535]
