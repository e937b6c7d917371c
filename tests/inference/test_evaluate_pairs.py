"""Evaluate, segmentation: results and truths pair by name; what has no partner is named."""

import pytest
from evaluations import PREDICTION, TRUTH, evaluate, infer_result, one_pair, write
from PIL import Image

from fastmed.errors import FastmedError


@pytest.fixture
def files(tmp_path):
    return one_pair(tmp_path)


def test_what_has_no_partner_is_named_on_either_side(files):
    write(files[0] / "b.nii.gz", TRUTH)
    write(files[1] / "c.nii.gz", TRUTH)
    found = evaluate(*files)
    assert found.exit_status == 1
    assert [p.split("/")[-1] for p in found.problems] == [
        "b.nii.gz: no truth is named b", "c.nii.gz: no prediction is named c",
    ]  # fmt: skip
    assert list(found.scores["per_case"]) == ["a"]


def test_files_are_paired_by_name_and_never_by_their_order(tmp_path):
    for name in "ab":
        write(tmp_path / "p" / f"{name}.nii.gz", PREDICTION)
    for name in "bc":
        write(tmp_path / "t" / f"{name}.nii.gz", TRUTH)
    assert list(evaluate(tmp_path / "p", tmp_path / "t").scores["per_case"]) == ["b"]
    with pytest.raises(FastmedError, match="no prediction has the name of a truth"):
        evaluate(tmp_path / "p" / "a.nii.gz", tmp_path / "t")


NAMES = {  # name of the result folder: the truth's path
    "a file": ("a.nii.gz", "a.nii.gz"),
    "another container": ("a.mha", "a.nii.gz"),
    "in folders": ("x__a.nii.gz", "x/a.nii.gz"),
    "a series": ("1.2.840.5", "1.2.840.5.nii.gz"),
    "nnU-Net": ("a_0000.nii.gz", "a.nii.gz"),
    "case/ct and case/labels": ("a__ct.nii.gz", "a/labels.nii.gz"),
    "case as a series": ("a", "a/labels.nii.gz"),
}


@pytest.mark.parametrize(("name", "truth"), NAMES.values(), ids=NAMES.keys())
def test_results_of_infer_are_paired_with_their_truth(name, truth, tmp_path):
    infer_result(tmp_path / "out", name, PREDICTION)
    write(tmp_path / "t" / truth, TRUTH)
    if truth.endswith("labels.nii.gz"):
        write(tmp_path / "t" / "a" / "ct.nii.gz", TRUTH)
    found = evaluate(tmp_path / "out", tmp_path / "t")
    (case,) = found.scores["per_case"].values()
    assert case["labels"]["liver"]["dice"] == pytest.approx(2 / 3)
    assert found.exit_status == 0


def test_one_result_and_one_truth_need_no_common_name(tmp_path):
    infer_result(tmp_path / "out", "1.2.840.5", PREDICTION)
    write(tmp_path / "t" / "other.nii.gz", TRUTH)
    file = tmp_path / "out" / "series" / "1.2.840.5" / "labels.nii.gz"
    assert list(evaluate(file, tmp_path / "t" / "other.nii.gz").scores["per_case"]) == ["1.2.840.5"]


def test_a_dicom_series_is_paired_by_its_uid_or_else_by_its_folder(tmp_path):
    for uid, source in (("1.2.1", "wards/a"), ("1.2.2", "b"), ("1.2.3", "two"), ("1.2.4", "two")):
        infer_result(tmp_path / "out", uid, PREDICTION, source=source)
    for truth in ("wards/a", "1.2.2", "1.2.3", "two"):
        write(tmp_path / "t" / f"{truth}.nii.gz", TRUTH)
    found = evaluate(tmp_path / "out", tmp_path / "t")
    assert list(found.scores["per_case"]) == ["1.2.1", "1.2.2", "1.2.3"]
    assert [p.split("/")[-1] for p in found.problems] == [
        "labels.nii.gz: no truth is named 1.2.4", "two.nii.gz: no prediction is named two",
    ]  # fmt: skip


def test_findings_that_are_damaged_are_named(tmp_path):
    infer_result(tmp_path / "out", "a", PREDICTION)
    (tmp_path / "out" / "series" / "a" / "findings.json").write_text("{}")
    write(tmp_path / "t" / "a.nii.gz", TRUTH)
    with pytest.raises(FastmedError, match=r"findings\.json: not readable as findings"):
        evaluate(tmp_path / "out", tmp_path / "t")


def test_a_series_without_a_label_map_is_named(tmp_path):
    infer_result(tmp_path / "out", "a.nii.gz", PREDICTION)
    (tmp_path / "out" / "series" / "b.nii.gz").mkdir()
    write(tmp_path / "t" / "a.nii.gz", TRUTH)
    found = evaluate(tmp_path / "out", tmp_path / "t")
    assert found.exit_status == 1
    assert "b.nii.gz: it holds no labels.nii.gz" in found.problems[0]


def test_a_preview_is_no_label_map(tmp_path):
    preview = tmp_path / "out" / "series" / "a.png" / "preview.png"
    preview.parent.mkdir(parents=True)
    Image.new("L", (4, 4)).save(preview)
    write(tmp_path / "t" / "a.nii.gz", TRUTH)
    with pytest.raises(FastmedError, match=r"a\.png: it holds no labels\.nii\.gz"):
        evaluate(tmp_path / "out", tmp_path / "t")


def test_two_files_of_one_name_are_an_error(files):
    write(files[1] / "a.nii", TRUTH)
    with pytest.raises(FastmedError, match="both are named a"):
        evaluate(*files)
