"""Conditions of what is no DICOM: NIfTI, MetaImage, NumPy arrays and pictures."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from fastmed.readers.index import index

HU = np.random.default_rng(0).integers(-1000, 400, (12, 10, 8)).astype(np.int16)
LABELS = np.zeros((12, 10, 8), np.uint8)
LABELS[3:6, 2:7] = 5
UPRIGHT = np.eye(4)
LEANING = np.array([[1.0, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


def nifti(voxels, affine=UPRIGHT, cut=0):
    def write(folder) -> None:
        image = nibabel.Nifti1Image(voxels, affine)
        nibabel.save(image, folder / "a.nii")
        content = (folder / "a.nii").read_bytes()
        (folder / "a.nii").write_bytes(content[: len(content) - cut])

    return write


def image(voxels, keep=1.0):
    def write(folder) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / "a.mha"))
        content = (folder / "a.mha").read_bytes()
        (folder / "a.mha").write_bytes(content[: int(len(content) * keep)])

    return write


def array(voxels, beside=""):
    def write(folder) -> None:
        np.save(folder / "a.npy", voxels)
        if beside:
            (folder / "a.json").write_text(beside)

    return write


FILES = {
    "NIfTI": (nifti(HU), "ct", "ok", ("uniform",)),
    "tilted NIfTI": (nifti(HU, LEANING), "ct", "ok", ("uniform", "tilted")),
    "NIfTI of labels": (nifti(LABELS), "label map", "skipped", ("label map",)),
    "NIfTI not in HU": (nifti(np.abs(HU)), "not in hu", "refused", ("not in hu",)),
    "NIfTI without a place": (nifti(HU, None), "ct", "refused", ("no geometry",)),
    "NIfTI of one slice": (nifti(HU[:, :, :1]), "ct", "refused", ("single slice",)),
    # What a CT voxel shows comes early; labels and other values are read to the end.
    "NIfTI cut short": (nifti(LABELS, cut=100), "damaged", "failed", ("truncated",)),
    "MetaImage": (image(HU), "ct", "ok", ("uniform",)),
    "MetaImage of labels": (image(LABELS), "label map", "skipped", ("label map",)),
    "MetaImage not in HU": (image(np.abs(HU)), "not in hu", "refused", ("not in hu",)),
    "MetaImage cut short": (image(HU, keep=0.8), "damaged", "failed", ("damaged",)),
    "MetaImage of one slice": (image(HU[:1]), "ct", "refused", ("single slice",)),
    "array with spacing": (array(HU, '{"spacing_mm_zyx": [2, 1, 1]}'), "ct", "ok", ("uniform",)),
    "array": (array(HU), "ct", "ok", ("uniform", "no geometry")),
    "array of labels": (array(LABELS), "label map", "skipped", ("label map",)),
    "array with no spacing in it": (
        array(HU, '{"spacing_mm_zyx": [0, 1, 1]}'),
        *("ct", "refused", ("no geometry",)),
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_has_exactly_these_conditions(case, tmp_path):
    write, kind, verdict, conditions = FILES[case]
    write(tmp_path)
    entry = next(e for e in index(tmp_path) if e.kind != "not an image")
    assert (entry.kind, entry.verdict, entry.conditions) == (kind, verdict, conditions)


def test_a_grey_image_is_a_single_slice_and_a_coloured_one_is_not_taken(tmp_path):
    Image.fromarray(LABELS[:, :, 0]).save(tmp_path / "grey.png")
    colour = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "grey.png").read_bytes()[:20])
    told = {e.source: (e.verdict, e.conditions) for e in index(tmp_path, modality="grey")}
    assert told == {
        "grey.png": ("ok", ("single slice",)),
        "colour.png": ("refused", ("not in hu",)),
        "torn.png": ("failed", ("damaged",)),
    }
