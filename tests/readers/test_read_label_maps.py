"""Label maps: the values and the place in space that were stored, whatever the container."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from fastmed.errors import SeriesError
from fastmed.findings import Findings
from fastmed.geometry import Geometry
from fastmed.readers.label_maps import read_label_map, stem
from fastmed.spec import Label
from fastmed.writers.nifti import write_labels

SHAPE = (3, 4, 5)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[1, 1:3, 2:4], LABELS[2, 0, 0] = 1, 7

AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])


def nifti(path, voxels_kji, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(voxels_kji.T, affine), path)
    return path


def tilted() -> Geometry:
    lean = np.radians(20)
    steps = [(0, 0, 3), (0, np.cos(lean), -np.sin(lean)), (1, 0, 0)]
    return Geometry.from_axes(SHAPE, (1.0, 2.0, 3.0), steps)


def test_a_label_map_of_a_tilted_scan_comes_back_as_it_was_written(tmp_path):
    findings = Findings("s", "s", "m", tilted(), LABELS, (Label(1, "liver"),))
    write_labels(findings, tmp_path / "labels.nii.gz")
    labels, geometry = read_label_map(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(labels, LABELS)
    np.testing.assert_allclose(geometry.affine, tilted().affine, atol=1e-5)
    assert geometry.is_sheared


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"])
def test_every_container_gives_the_labels_and_the_space_that_were_written(extension, tmp_path):
    image = sitk.GetImageFromArray(LABELS)
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-12.0, 34.5, -56.25))
    image.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3).GetMatrix())
    sitk.WriteImage(image, str(tmp_path / f"labels{extension}"))
    labels, geometry = read_label_map(tmp_path / f"labels{extension}")
    np.testing.assert_array_equal(labels, LABELS)
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    wanted = Geometry.from_axes(SHAPE, image.GetOrigin(), steps.T[::-1])
    np.testing.assert_allclose(geometry.affine, wanted.affine, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "RGB", "RGBA"])
def test_a_black_and_white_image_is_one_slice_of_its_grey_values(mode, tmp_path):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1:3, 2:5] = 255
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(pixels, "P")
        image.putpalette(list(range(256)) * 3)
    else:
        image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "mask.png")
    labels, geometry = read_label_map(tmp_path / "mask.png")
    np.testing.assert_array_equal(labels, pixels[None])
    assert geometry == Geometry.from_spacing((1, 4, 6), (1, 1, 1))


SMALLEST = {
    "one label of a float file": ([0.0, 1.0], np.float32, np.uint8),
    "one label of 64 bits": ([0, 255], np.int64, np.uint8),
    "above 255": ([0, 256], np.int32, np.uint16),
    "negative": ([-1, 127], np.int32, np.int8),
    "negative and high": ([-1, 128], np.float64, np.int16),
}


@pytest.mark.parametrize(("values", "stored", "dtype"), SMALLEST.values(), ids=SMALLEST.keys())
def test_labels_have_the_smallest_integer_type_that_fits(values, stored, dtype, tmp_path):
    voxels = np.full(SHAPE, values[0], stored)
    voxels[0, 1, 2] = values[1]
    image = nibabel.Nifti1Image(voxels.T, AFFINE, dtype=stored)
    nibabel.save(image, tmp_path / "l.nii")
    labels, _ = read_label_map(tmp_path / "l.nii")
    assert labels.dtype == dtype
    assert labels[0, 1, 2] == values[1]
    assert labels[0, 0, 0] == values[0]
    assert labels.flags.c_contiguous


def with_value(value):
    def write(path):
        voxels = LABELS.astype(np.float32)
        voxels[0, 1, 2] = value
        return nifti(path / "bad.nii.gz", voxels)

    return write


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 9, (30, 30, 30)).astype(np.uint8)
    file = nifti(path / "bad.nii.gz", noise)
    file.write_bytes(file.read_bytes()[:-500])
    return file


def no_header(path):
    (path / "bad.nii.gz").write_bytes(gzip.compress(b"no header"))
    return path / "bad.nii.gz"


def placeless(path):
    image = nibabel.Nifti1Image(LABELS.T, None)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nibabel.save(image, path / "bad.nii")
    return path / "bad.nii"


def colour(path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1, 1, 0] = 9
    Image.fromarray(pixels).save(path / "bad.png")
    return path / "bad.png"


def colour_volume(path):
    image = sitk.GetImageFromArray(np.zeros((*SHAPE, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(path / "bad.mha"))
    return path / "bad.mha"


def two_frames(path):
    frame = Image.new("L", (6, 4))
    frame.save(path / "bad.tif", save_all=True, append_images=[frame])
    return path / "bad.tif"


def npy(path):
    np.save(path / "bad.npy", LABELS)
    return path / "bad.npy"


def broken_nrrd(path):
    (path / "bad.nrrd").write_bytes(b"NRRD0004\ntype: what\n\n")
    return path / "bad.nrrd"


BAD = {
    "a fraction": (with_value(0.5), "it holds 0.5: labels are whole numbers"),
    "NaN": (with_value(np.nan), "1 voxels are not a number"),
    "infinite": (with_value(np.inf), "1 voxels are not a number"),
    "truncated": (truncated, "copy it again"),
    "no NIfTI": (no_header, "copy it again"),
    "no place": (placeless, "neither sform nor qform"),
    "two volumes": (lambda p: nifti(p / "bad.nii", np.stack([LABELS] * 2)), "three axes"),
    "colour": (colour, "colours"),
    "colour volume": (colour_volume, "colours"),
    "two images": (two_frames, "it holds 2 images"),
    "no geometry": (npy, "a label map is one of .nii.gz, .nii"),
    "broken NRRD": (broken_nrrd, "copy it again"),
    "absent": (lambda p: p / "bad.nii", "no such file"),
}


@pytest.mark.parametrize(("write", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_no_label_map_is_named(write, words, tmp_path):
    path = write(tmp_path)
    with pytest.raises(SeriesError, match="bad") as raised:
        read_label_map(path)
    assert words in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("a.nii.gz", "a"), ("a__b.NII", "a__b"), ("1.2.840.5", "1.2.840.5"), ("m.png", "m")],
)
def test_the_stem_of_a_name_is_without_its_image_extension(name, wanted):
    assert stem(name) == wanted
