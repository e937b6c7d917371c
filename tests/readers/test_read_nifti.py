"""NIfTI, MetaImage and NRRD: the same rules, the same space, whatever the container."""

import gzip

import nibabel
import numpy as np
import pytest
import scans as make
import SimpleITK as sitk

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.readers import nifti as nifti_reader
from fastmed.readers.index import index, read, read_series
from fastmed.readers.voxel_content import content

SHAPE = (5, 6, 7)
EXTENSIONS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")


def hu(dtype=np.int16, seed=0) -> np.ndarray:
    """[D, H, W] with a rim of air."""
    voxels = np.random.default_rng(seed).integers(-150, 300, SHAPE)
    voxels[:, 0] = -1000
    return voxels.astype(dtype)


def image_of(voxels) -> sitk.Image:
    """A SimpleITK image in an oblique pose."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-12.0, 34.5, -56.25))
    image.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3).GetMatrix())
    return image


def affine_of(image) -> np.ndarray:
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    return Geometry.from_axes(image.GetSize()[::-1], image.GetOrigin(), steps.T[::-1]).affine


def nifti(path, voxels_kji, affine=None, *, unit="mm", slope=1.0, intercept=0.0) -> None:
    """Writes a .nii file from [k, j, i] voxels as they are, with exactly these header fields."""
    header = nibabel.Nifti1Header(endianness=">" if voxels_kji.dtype.str[0] == ">" else "<")
    header.set_data_dtype(voxels_kji.dtype)
    header.set_data_shape(voxels_kji.shape[::-1])
    header.set_sform(np.eye(4) if affine is None else affine, 1)
    header.set_xyzt_units(unit)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4) + voxels_kji.tobytes())


def only(path, **options):
    (entry,) = [e for e in index(path, **options) if e.kind != "not an image"]
    return entry


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_every_container_gives_the_voxels_and_the_space_that_were_written(
    extension, dtype, tmp_path
):
    image = image_of(hu(dtype))
    sitk.WriteImage(image, str(tmp_path / f"scan{extension}"))
    entry = only(tmp_path)
    assert (entry.kind, entry.verdict) == ("ct", "ok"), entry.reason
    assert entry.reason == "CT volume, 2.5 x 0.9 x 0.8 mm"
    volume = read_series(entry)
    assert volume.voxels.dtype == dtype
    assert volume.voxels.flags.c_contiguous
    np.testing.assert_array_equal(volume.voxels, hu(dtype))
    np.testing.assert_allclose(volume.geometry.affine, affine_of(image), atol=1e-5)
    assert volume.warnings == ()
    assert volume.source == f"scan{extension}" == volume.name


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_label_maps_are_told_from_ct_by_their_voxels(extension, tmp_path):
    labels = np.zeros((9, 10, 11), np.uint8)
    labels[2:6, 2:7, 3:8], labels[6:, 6:, 6:] = 5, 117
    sitk.WriteImage(image_of(labels), str(tmp_path / f"labels{extension}"))
    entry = only(tmp_path)
    assert (entry.kind, entry.verdict) == ("label map", "skipped")
    assert entry.reason == "a label map (2 labels), not CT"


@pytest.mark.parametrize("extension", [".nii.gz", ".mha"])
@pytest.mark.parametrize(("low", "high", "dtype"), [(0, 4095, np.int16), (0, 1, np.float32),
                                              (0, 255, np.uint8)])  # fmt: skip
def test_values_that_are_neither_hu_nor_labels_are_refused(extension, low, high, dtype, tmp_path):
    rng = np.random.default_rng(0)
    voxels = (low + rng.random((8, 20, 20)) * (high - low)).astype(dtype)
    sitk.WriteImage(image_of(voxels), str(tmp_path / f"scan{extension}"))
    entry = only(tmp_path)
    assert (entry.kind, entry.verdict) == ("not in hu", "refused")
    assert "neither Hounsfield units" in entry.reason


def test_scale_and_intercept_of_nifti_become_the_rescale(tmp_path):
    nifti(tmp_path / "scan.nii", hu() + np.int16(1024), slope=0.5, intercept=-1024.0)
    (volume,) = read(tmp_path)
    assert (volume.slope, volume.intercept) == (0.5, -1024.0)
    np.testing.assert_array_equal(volume.voxels, hu() + 1024)


@pytest.mark.parametrize(
    ("unit", "factor", "warns"),
    [("mm", 1, False), ("meter", 1000, False), ("micron", 0.001, False), ("unknown", 1, True)],
)
def test_units_of_length_are_converted_and_an_absent_one_is_said(unit, factor, warns, tmp_path):
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    nifti(tmp_path / "a.nii", hu(), affine, unit=unit)
    entry = only(tmp_path)
    assert entry.spacing_mm_zyx == pytest.approx((2 * factor, 0.8 * factor, 0.8 * factor))
    assert entry.geometry.origin_lps_mm == pytest.approx((-10 * factor, -20 * factor, 30 * factor))
    assert ("millimetres assumed" in " ".join(entry.warnings)) == warns


def test_the_sform_goes_before_the_qform_and_one_of_them_is_needed(tmp_path):
    image = nibabel.Nifti1Image(hu().T, None)
    image.set_sform(np.diag([2.0, 2, 2, 1]), 1)
    image.set_qform(np.diag([3.0, 3, 3, 1]), 1)
    image.to_filename(tmp_path / "a.nii")
    assert only(tmp_path).spacing_mm_zyx == pytest.approx((2, 2, 2))
    image.set_sform(None, 0)
    image.to_filename(tmp_path / "a.nii")
    assert only(tmp_path).spacing_mm_zyx == pytest.approx((3, 3, 3))
    image.set_qform(None, 0)
    image.to_filename(tmp_path / "a.nii")
    assert "neither sform nor qform" in only(tmp_path).reason
    assert only(tmp_path).verdict == "refused"


def test_a_sheared_sform_is_kept(tmp_path):
    affine = np.eye(4)
    affine[1, 2] = 0.3
    nifti(tmp_path / "a.nii", hu(), affine)
    (volume,) = read(tmp_path)
    assert volume.geometry.is_sheared
    np.testing.assert_allclose(volume.geometry.to_ras_xyz(), affine, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "taken"), [((5, 6, 7, 1), True), ((5, 6, 7, 2), False), ((5, 6, 1), False)]
)
def test_a_fourth_axis_is_taken_only_where_it_is_one(shape, taken, tmp_path):
    nibabel.Nifti1Image(np.full(shape, -900, np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    assert only(tmp_path).verdict == ("ok" if taken else "refused")


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(">i2", "int16"), (">f4", "float32"), ("i1", "int16"), ("i8", "int32"), ("<f8", "float64")],
)
def test_voxels_come_in_a_type_that_the_kernels_take(dtype, stored, tmp_path):
    nifti(tmp_path / "a.nii", hu().clip(-128, 127).astype(dtype), slope=8.0)
    nibabel_hu = nibabel.load(tmp_path / "a.nii").get_fdata().T
    (volume,) = read(tmp_path)
    assert volume.voxels.dtype == stored
    assert volume.voxels.dtype.isnative
    np.testing.assert_allclose(volume.hu(), nibabel_hu)


@pytest.mark.parametrize("extension", [".nii", ".mha", ".npy"])
def test_integers_that_the_kernels_do_not_hold_keep_their_values(extension, tmp_path):
    voxels = hu().astype(np.int64)
    voxels[0, 0, 0] = 3_000_000_000
    if extension == ".nii":
        nifti(tmp_path / "a.nii", voxels)
    elif extension == ".mha":
        sitk.WriteImage(image_of(voxels), str(tmp_path / "a.mha"))
    else:
        np.save(tmp_path / "a.npy", voxels)
    (volume,) = read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
def test_voxels_that_are_no_number_become_air(extension, tmp_path):
    voxels = hu(np.float32)
    voxels[2, 3, 4], voxels[2, 3, 5] = np.nan, -np.inf
    sitk.WriteImage(image_of(voxels), str(tmp_path / f"a{extension}"))
    (volume,) = read(tmp_path)
    assert (volume.hu()[2, 3, 4:6] == -1024).all()
    assert "2 voxels are not a number" in volume.warnings[0]


def test_gzip_files_of_several_members_are_read_whole(tmp_path):
    nifti(tmp_path / "a.nii", hu())
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").unlink()
    members = gzip.compress(content[:400]) + gzip.compress(content[400:])
    (tmp_path / "a.nii.gz").write_bytes(members)
    (volume,) = read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, hu())


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_truncated_volumes_are_named(extension, tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 1000, (40, 60, 60)).astype(np.int16)
    path = tmp_path / f"a{extension}"
    sitk.WriteImage(image_of(voxels), str(path))
    make.truncate(path, lose_bytes=5000)
    with pytest.raises(SeriesError, match=rf"a{extension}: .*(truncated|cannot be read)") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("line", "words"), [(b"ElementSpacing", "no voxel spacing"),
                                         (b"TransformMatrix", "no axis directions")])  # fmt: skip
def test_a_header_without_geometry_is_refused(line, words, tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(image_of(hu()), str(path))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(part for part in lines if not part.startswith(line)))
    entry = only(tmp_path)
    assert entry.verdict == "refused"
    assert words in entry.reason


def test_only_as_much_is_read_as_shows_that_it_is_ct():
    def blocks():
        yield np.array([0, 5, -900], np.int16)
        raise AssertionError("read on")

    assert content(blocks(), 1.0, 0.0) == ("ct", "")


def _packed(parts) -> bytes:
    """Bytes as a gzip file with one member for each part."""
    return b"".join(gzip.compress(part) for part in parts)


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_a_file_that_is_cut_behind_its_first_voxels_is_told_by_the_index(extension, kept, tmp_path):
    path = tmp_path / "a.nii"
    voxels = np.random.default_rng(0).integers(-1000, 300, (40, 60, 70)).astype(np.int16)
    nifti(path, voxels)
    content = path.read_bytes()
    path.unlink()
    content = gzip.compress(content) if extension == ".nii.gz" else content
    (tmp_path / f"a{extension}").write_bytes(content[: int(len(content) * kept)])
    entry = only(tmp_path)
    assert (entry.kind, entry.verdict, entry.conditions) == ("damaged", "failed", ("truncated",))
    assert "bytes of voxels; copy the file again" in entry.reason


WHOLE = {
    "one member": lambda content: _packed([content]),
    "two members": lambda content: _packed([content[:1000], content[1000:]]),
    "an empty member at its end": lambda content: _packed([content, b""]),
    "zeros behind its end": lambda content: _packed([content]) + bytes(512),
    "more than its voxels": lambda content: _packed([content + b"more"]),
}


@pytest.mark.parametrize("form", WHOLE)
def test_no_whole_file_is_told_as_cut_however_it_was_packed(form, tmp_path):
    nifti(tmp_path / "a.nii", hu())
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(content + b"more")
    (tmp_path / "b.nii.gz").write_bytes(WHOLE[form](content))
    for entry in index(tmp_path):
        assert (entry.kind, entry.verdict) == ("ct", "ok"), entry.reason
        np.testing.assert_array_equal(read_series(entry).voxels, hu())


def test_a_whole_file_of_one_member_is_not_read_to_its_end_to_know_that(tmp_path, monkeypatch):
    nifti(tmp_path / "a.nii", hu())
    (tmp_path / "b.nii.gz").write_bytes(_packed([(tmp_path / "a.nii").read_bytes()]))
    passes = []
    blocks = nifti_reader._byte_blocks
    monkeypatch.setattr(nifti_reader, "_byte_blocks", lambda *a: passes.append(a) or blocks(*a))
    assert [entry.verdict for entry in index(tmp_path)] == ["ok", "ok"]
    assert len(passes) == 2  # one for each file, to see that it is CT


def test_the_size_that_gzip_notes_wraps_at_four_gigabytes(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(1000)))
    says = nifti_reader._says_that_it_is_whole
    assert says(str(path), 1000)
    assert says(str(path), 1000 + 2**32)
    assert not says(str(path), 999 + 2**32)


def test_the_real_nifti_scan_and_its_labels(scans):
    entry = only(scans / "ct-torso-nifti" / "ct.nii.gz")
    assert (entry.kind, entry.verdict) == ("ct", "ok")
    assert entry.warnings == ("the file names no unit of length: millimetres assumed",)
    volume, image = read_series(entry), sitk.ReadImage(scans / "ct-torso-nifti" / "ct.nii.gz")
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.geometry.affine, affine_of(image), atol=1e-4)
    for name in ("ct-torso-nifti/labels.nii.gz", "ct-abdomen-dicom-labels.nii.gz"):
        assert (only(scans / name).kind, only(scans / name).verdict) == ("label map", "skipped")
