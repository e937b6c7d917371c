"""labels.nii.gz lies exactly where the scan lies, for every reader."""

import gzip
import time

import nibabel
import numpy as np
import pytest
import SimpleITK

from fastmed.geometry import Geometry
from fastmed.writers.nifti import write_labels, write_slice_labels

_FLOAT32_MM = 1e-4


def _world_of_itk(image, index_zyx):
    return np.array(image.TransformIndexToPhysicalPoint([int(n) for n in index_zyx[::-1]]))


def test_itk_reads_the_same_labels_at_the_same_places(right_angled, make_findings, tmp_path):
    findings = make_findings(right_angled)
    write_labels(findings, tmp_path / "labels.nii.gz")
    image = SimpleITK.ReadImage(tmp_path / "labels.nii.gz")
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), findings.labels)
    for index in ((0, 0, 0), (5, 0, 0), (0, 9, 0), (0, 0, 13), (5, 9, 13)):
        expected = right_angled.to_world(index)
        assert np.allclose(_world_of_itk(image, index), expected, atol=_FLOAT32_MM)


def test_nibabel_reads_the_same_affine_from_sform_and_qform(right_angled, make_findings, tmp_path):
    findings = make_findings(right_angled)
    write_labels(findings, tmp_path / "labels.nii.gz")
    image = nibabel.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj).T, findings.labels)
    for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        assert np.allclose(affine, right_angled.to_ras_xyz(), atol=_FLOAT32_MM)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_tilted_scan_keeps_its_shear_in_the_sform_alone(tilted, make_findings, tmp_path):
    write_labels(make_findings(tilted), tmp_path / "labels.nii.gz")
    image = nibabel.load(tmp_path / "labels.nii.gz")
    assert image.get_qform(coded=True)[1] == 0
    affine, code = image.get_sform(coded=True)
    assert code == 1
    assert np.allclose(affine, tilted.to_ras_xyz(), atol=_FLOAT32_MM)
    assert np.allclose(image.header.get_zooms(), tilted.spacing_mm_zyx[::-1])
    assert Geometry.from_ras_xyz(image.shape, affine).is_sheared


def test_many_classes_are_int16(make_findings, tmp_path):
    findings = make_findings()
    labels = findings.labels.astype(np.int16) * 300
    write_labels(make_findings(labels=labels), tmp_path / "labels.nii.gz")
    image = SimpleITK.ReadImage(tmp_path / "labels.nii.gz")
    assert image.GetPixelID() == SimpleITK.sitkInt16
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_a_map_of_many_compressed_pieces_is_one_valid_gzip_member(dtype, make_findings, tmp_path):
    geometry = Geometry.from_spacing((21, 300, 400), (1.0, 1.0, 1.0))
    labels = np.random.default_rng(3).integers(0, 3, geometry.shape_zyx).astype(dtype)
    labels[5:9] = 1
    path = tmp_path / "labels.nii.gz"
    write_labels(make_findings(geometry, labels), path)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)), labels)
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj).T, labels)
    content = gzip.decompress(path.read_bytes())
    assert content[352:] == labels.tobytes()
    assert path.read_bytes().count(b"\x1f\x8b\x08\x00\x00\x00\x00\x00") == 1


def test_labels_may_be_a_flipped_or_big_endian_view(make_findings, tmp_path):
    findings = make_findings()
    view = findings.labels[::-1, :, ::-1].astype(">i2")
    write_labels(make_findings(labels=view), tmp_path / "labels.nii.gz")
    image = SimpleITK.ReadImage(tmp_path / "labels.nii.gz")
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), view)


def test_the_same_findings_give_the_same_bytes(make_findings, tmp_path, monkeypatch):
    uids = {"slice_labels": {"1.2.3.1": np.eye(4, dtype=np.uint8), "1.2.3.2": np.zeros((4, 4))}}
    first, second = make_findings(**uids), make_findings(**uids)
    write_labels(first, tmp_path / "a.nii.gz")
    write_slice_labels(first, tmp_path / "a.npz")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_labels(second, tmp_path / "b.nii.gz")
    write_slice_labels(second, tmp_path / "b.npz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_slice_labels_are_found_by_their_uid(make_findings, tmp_path):
    slices = {"1.2.3.1": np.eye(4, dtype=np.uint8), "../../escape": np.ones((4, 4), np.uint8)}
    write_slice_labels(make_findings(slice_labels=slices), tmp_path / "labels_slices.npz")
    with np.load(tmp_path / "labels_slices.npz") as stored:
        assert np.array_equal(stored["1.2.3.1"], slices["1.2.3.1"])
        assert not [name for name in stored.files if "/" in name]
        assert len(stored.files) == 2


def test_labels_of_another_type_or_shape_are_refused(make_findings, tmp_path):
    labels = make_findings().labels
    fractions = make_findings(labels=labels.astype(np.float32))
    with pytest.raises(TypeError, match="float32"):
        write_labels(fractions, tmp_path / "labels.nii.gz")
    one_slice_less = make_findings(labels=labels[1:])
    with pytest.raises(ValueError, match="geometry"):
        write_labels(one_slice_less, tmp_path / "labels.nii.gz")
    assert not list(tmp_path.iterdir())


def test_a_real_scan_keeps_its_place(scans, make_findings, tmp_path):
    stored = nibabel.load(scans / "ct-torso-nifti" / "labels.nii.gz")
    geometry = Geometry.from_ras_xyz(stored.shape, stored.affine)
    labels = np.ascontiguousarray(np.asarray(stored.dataobj).T.astype(np.uint8))
    write_labels(make_findings(geometry, labels), tmp_path / "labels.nii.gz")
    original = SimpleITK.ReadImage(scans / "ct-torso-nifti" / "labels.nii.gz")
    written = SimpleITK.ReadImage(tmp_path / "labels.nii.gz")
    assert np.allclose(written.GetOrigin(), original.GetOrigin(), atol=1e-3)
    assert np.allclose(written.GetDirection(), original.GetDirection(), atol=1e-5)
    assert np.allclose(written.GetSpacing(), original.GetSpacing(), atol=1e-5)
    assert np.array_equal(
        SimpleITK.GetArrayFromImage(written), SimpleITK.GetArrayFromImage(original)
    )
