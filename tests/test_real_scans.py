"""Real scans, end to end: the verdicts, the place and the liver. Each has a synthetic twin."""

import json
import re
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

import fastmed
from fastmed import bundle
from fastmed.geometry import Geometry
from fastmed.inference.sliding_window import sliding_window
from fastmed.ops import dice_score, overlap_counts, window_resample
from fastmed.preprocessing import to_grid

ABDOMEN, HEAD, TORSO = "ct-abdomen-dicom", "ct-head-tilt-dicom", "ct-torso-nifti/ct.nii.gz"
LABELS = ("ct-abdomen-dicom-labels.nii.gz", "ct-torso-nifti/labels.nii.gz")
UNEVEN = (
    "tilted 18.5 degrees, unevenly spaced (1.08, 4.00 and 7.00 mm along the normal; "
    "1.14, 4.22 and 7.38 along the table)"
)


@pytest.fixture(scope="module")
def results(scans, tiny_bundle, tmp_path_factory):
    """Runs over all scans, strict and lenient, on a grid coarse enough to be quick."""
    coarse = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("bundle") / "coarse")
    table = (coarse / "bundle.toml").read_text()
    (coarse / "bundle.toml").write_text(re.sub(r"\b3\.0\b", "6.0", table))
    assert bundle.read(coarse).spec.spacing_mm_zyx == (6.0, 6.0, 6.0)
    runs = {}
    for strict in (True, False):
        output = tmp_path_factory.mktemp("strict" if strict else "lenient")
        settings = {"engine": "auto", "device": "cpu", "strict": strict, "quiet": True}
        runs[strict] = fastmed.infer(scans, output, model=coarse, **settings)
    return runs


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_every_series_gets_the_verdict_that_is_right(scans, strict):
    entries = {entry.source: entry for entry in fastmed.index(scans, strict=strict)}
    assert set(entries) - {"README.md"} == {ABDOMEN, HEAD, TORSO, *LABELS}
    expected = {ABDOMEN: "ok", TORSO: "ok", HEAD: "refused" if strict else "ok"}
    for source, entry in entries.items():
        assert entry.verdict == expected.get(source, "skipped")
        assert entry.kind == ("ct" if source in expected else entry.kind)
    assert [entries[source].kind for source in LABELS] == ["label map", "label map"]
    assert entries[ABDOMEN].reason == "CT volume, uniform 2 mm"
    assert entries[ABDOMEN].shape_zyx == (20, 512, 512)
    assert UNEVEN in entries[HEAD].reason
    assert ("--lenient" in entries[HEAD].reason) == strict
    assert any("millimetres assumed" in warning for warning in entries[TORSO].warnings)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_one_run_over_all_does_what_the_index_promised(results, strict):
    verdicts = {row.source: row.verdict for row in results[strict].rows}
    expected = {ABDOMEN: "done", TORSO: "done", HEAD: "refused" if strict else "done"}
    assert verdicts == {source: expected.get(source, "skipped") for source in verdicts}
    assert set(verdicts) >= {ABDOMEN, HEAD, TORSO, *LABELS}
    assert results[strict].exit_status == int(strict)


def folder_of(run, source):
    (row,) = [row for row in run.rows if row.source == source]
    return run.output / "series" / row.name


def test_labels_of_the_abdomen_lie_where_simpleitk_reads_the_series(scans, results):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(scans / ABDOMEN)))
    scan = reader.Execute()
    labels = sitk.ReadImage(str(folder_of(results[True], ABDOMEN) / "labels.nii.gz"))
    assert labels.GetSize() == scan.GetSize() == (512, 512, 20)
    np.testing.assert_allclose(labels.GetSpacing(), scan.GetSpacing(), atol=1e-4)
    np.testing.assert_allclose(labels.GetOrigin(), scan.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(labels.GetDirection(), scan.GetDirection(), atol=1e-5)


def test_labels_of_the_torso_lie_where_nibabel_reads_the_scan(scans, results):
    labels = nibabel.load(folder_of(results[True], TORSO) / "labels.nii.gz")
    scan = nibabel.load(scans / TORSO)
    assert labels.shape == scan.shape
    np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-4)
    assert labels.header.get_xyzt_units()[0] == "mm"


def test_the_head_is_handled_in_true_space_and_on_its_own_slices(results):
    folder = folder_of(results[False], HEAD)
    labels = nibabel.load(folder / "labels.nii.gz")
    assert labels.shape[:2] == (512, 512)
    geometry = Geometry.from_ras_xyz(labels.shape, labels.affine)
    assert geometry.tilt_degrees == pytest.approx(18.5, abs=0.1)
    assert geometry.is_sheared
    assert int(labels.header["qform_code"]) == 0
    along_the_normal = geometry.steps_lps_mm[0] @ geometry.normal
    assert along_the_normal == pytest.approx(1.075, abs=0.01)
    with np.load(folder / "labels_slices.npz") as slices:
        assert len(slices.files) == 28
        assert all(slices[uid].shape == (512, 512) for uid in slices.files)
    warnings = json.loads((folder / "findings.json").read_text())["warnings"]
    assert any(UNEVEN in warning for warning in warnings)


@pytest.fixture(scope="module")
def abdomen(scans, demo_bundle):
    """The scan, the true liver on its grid, and each engine's logits and labels of the demo."""
    (volume,) = fastmed.read(scans / ABDOMEN)
    spec = bundle.read(demo_bundle).spec
    image, _ = to_grid(volume, spec)
    logits, labels = {}, {}
    for name in ("torch", "ort", "ov"):
        model = fastmed.load(demo_bundle, engine=name, device="cpu")
        options = {"tile_zyx": spec.tile_zyx, "overlap": spec.overlap}
        options |= {"size_multiple": spec.size_multiple, "num_classes": spec.num_classes}
        logits[name] = sliding_window(image, model.engine, **options)
        labels[name] = model(volume).labels
    return volume, _true_liver(scans / LABELS[0], volume.geometry), logits, labels


def _true_liver(path, geometry) -> np.ndarray:
    """The liver (class 5) at the nearest voxel in world space: the file's y axis is flipped."""
    file = nibabel.load(path)
    own = Geometry.from_ras_xyz(file.shape, file.affine)
    stored = np.ascontiguousarray(np.asarray(file.dataobj).T.astype(np.uint8))
    placed = window_resample(
        torch.from_numpy(stored),
        torch.from_numpy(own.matrix_from(geometry)),
        geometry.shape_zyx,
        fill=0,
        mode="nearest",
        dtype=torch.uint8,
    )
    return placed.numpy() == 5


def test_the_truth_is_aligned(scans):
    (volume,) = fastmed.read(scans / ABDOMEN)
    liver = _true_liver(scans / LABELS[0], volume.geometry)
    assert liver.sum() == 366_708
    assert volume.hu()[liver].mean() == pytest.approx(89, abs=1)


def test_the_liver_is_found_in_a_patient_never_seen(abdomen):
    _, truth, _, labels = abdomen
    for name, found in labels.items():
        counts = overlap_counts(torch.from_numpy(found)[None], torch.from_numpy(truth)[None], 2)
        assert dice_score(counts)[0, 1] >= 0.85, name


def test_engines_agree_on_the_liver(abdomen):
    _, _, logits, labels = abdomen
    for name in ("ort", "ov"):
        error = (logits[name] - logits["torch"]).abs().max() / logits["torch"].abs().max()
        assert error <= 2e-3
        assert (labels[name] == labels["torch"]).mean() >= 0.999
