"""A run of a detection: which files it writes of its boxes, and where there is no report."""

import csv
import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import scans as make
from highdicom.sr import srread
from torch import nn

import fastmed
from fastmed import bundle
from fastmed.errors import UsageError
from fastmed.findings import Box, Findings
from fastmed.inference import archive, run_model
from fastmed.spec import Detection, Label, Spec

NODULES = Spec(
    name="nodules",
    task="detection",
    labels=(Label(1, "nodule", snomed_ct="27925004"),),
    spacing_mm_zyx=(1.0, 1.0, 1.0),
    window_hu=(-1000.0, 400.0),
    tile_zyx=(16, 16, 16),
    detection=Detection(strides=(4,), diameters_mm=((4.0,),)),
)
LESIONS = Spec(
    name="lesions",
    task="detection",
    modality="grey",
    dimensions=2,
    labels=(Label(1, "lesion"),),
    spacing_mm_zyx=None,
    size_zyx=(1, 300, 300),
    window_hu=(0.0, 255.0),
    detection=Detection(),
)


def found_in(volume, spec) -> Findings:
    """Two boxes in a scan: one over three slices, one on the last."""
    uids = [at.sop_instance_uid for at in volume.slices] or [""] * len(volume.voxels)
    last = len(volume.voxels) - 1
    middle = last // 2
    name = spec.labels[0].name
    boxes = tuple(
        Box(name, score, (*low, *(low + 4)), 4.0, slices, uids[key], (3.0, 4.0, 7.0, 8.0))
        for score, key, slices, low in (
            (
                0.75,
                middle,
                (max(middle - 1, 0), min(middle + 1, last)),
                make_corner(volume, middle),
            ),
            (0.5, last, (last, last), make_corner(volume, last)),
        )
    )
    return Findings(
        volume.name, volume.source, spec.name, volume.geometry, None, spec.labels,
        boxes=boxes, modality=spec.modality, warnings=volume.warnings,
    )  # fmt: skip


def make_corner(volume, z):
    return volume.geometry.to_world((z, 5.0, 4.0))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a detection whose network is left out: its boxes are `found_in`'s."""

    def run(input, spec=NODULES, **options):
        bundle.write(tmp_path / "bundle", spec, nn.Linear(1, 1))

        class Model:
            engine = SimpleNamespace(name="none", device="cpu", precision="fp32")
            engine_choice = "no engine"
            batch = None

            def __init__(self):
                self.spec, self.bundle = spec, bundle.read(tmp_path / "bundle")

            def prepare(self, volume, *, clock):
                return None, None

            def look(self, image, grid, **_):
                return None

            def decode(self, said, grid, volume, *, clock):
                return found_in(volume, spec)

        monkeypatch.setattr(run_model, "load", lambda *_, **__: Model())
        settings = {"model": tmp_path / "bundle", "quiet": True} | options
        return fastmed.infer(input, tmp_path / "out", **settings)

    return run


def files_below(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_by_default_a_detection_writes_figures_and_pictures(run, tmp_path):
    make.series(tmp_path / "in")
    result = run(tmp_path / "in")
    (row,) = result.rows
    assert files_below(result.output) == {
        f"series/{row.name}/findings.json", f"series/{row.name}/preview.png",
        f"series/{row.name}/thumb.jpg",
        "findings.csv", "report.html", "manifest.json", "journal.sqlite",
    }  # fmt: skip


def test_every_format_of_boxes_says_the_same(run, tmp_path):
    make.series(tmp_path / "in")
    result = run(tmp_path / "in", write=archive.FORMATS)
    (row,) = result.rows
    folder = result.output / "series" / row.name
    boxes = json.loads((folder / "findings.json").read_text())["boxes"]
    assert [box["score"] for box in boxes] == [0.75, 0.5]
    with open(result.output / "marks.csv") as file:
        marks = list(csv.DictReader(file))
    for mark, box in zip(marks, boxes, strict=True):
        assert mark["seriesuid"] == row.name
        centre = np.reshape(box["box_lps_mm"], (2, 3)).mean(axis=0)
        assert np.allclose([float(mark[f"coord{c}"]) for c in "XYZ"], centre)
    coco = json.loads((result.output / "coco.json").read_text())
    images = {image["sop_instance_uid"] for image in coco["images"]}
    assert len(images) == 4
    assert {p.stem for p in (folder / "voc").iterdir()} == images
    report = srread(folder / "findings.sr.dcm")
    assert {sop for _, _, sop, _ in report.get_evidence()} == images
    assert not row.findings["warnings"]


def test_a_scan_that_is_no_dicom_has_no_report_and_says_so(run, tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 400, (12, 10, 8)).astype(np.int16)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(hu, np.eye(4)), tmp_path / "in" / "a.nii.gz")
    result = run(tmp_path / "in", write=["json", "sr", "voc", "report"])
    (row,) = result.rows
    assert row.verdict == "done"
    folder = result.output / "series" / "a.nii.gz"
    names = {"findings.json", "preview.png", "thumb.jpg"} | {
        f"voc/000{z}.xml" for z in (2, 3, 4, 7)
    }
    assert files_below(folder) == names
    warning = "findings.sr.dcm is left out: a.nii.gz is no DICOM"
    assert warning in json.loads((folder / "findings.json").read_text())["warnings"][-1]
    assert warning in (result.output / "report.html").read_text()


@pytest.mark.parametrize("write", [["luna"], ["sr"], ["luna", "sr", "nifti"]])
def test_a_grey_image_has_no_marks_in_mm_and_no_report(run, tmp_path, write):
    with pytest.raises(UsageError, match=r"--write .*: the model lesions writes boxes"):
        run(tmp_path, LESIONS, write=write)


def test_a_detection_has_no_label_maps(run, tmp_path):
    with pytest.raises(UsageError, match="--write nifti: the model nodules writes boxes"):
        run(tmp_path, write=["nifti"])


def test_the_same_scan_gives_the_same_bytes(run, tmp_path):
    make.series(tmp_path / "in")

    def contents(output):
        names = files_below(output) - {"manifest.json", "report.html", "journal.sqlite"}
        return {name: (output / name).read_bytes() for name in names}

    before = contents(run(tmp_path / "in", write=archive.FORMATS).output)
    assert contents(run(tmp_path / "in", write=archive.FORMATS, fresh=True).output) == before


def test_the_terminal_sums_up_the_findings(run, tmp_path, capsys):
    make.series(tmp_path / "in")
    run(tmp_path / "in", quiet=False)
    assert "2 findings · largest 4.0 mm · highest score 0.75" in capsys.readouterr().err
