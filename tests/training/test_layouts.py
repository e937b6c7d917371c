"""Layouts: which cases a folder holds, paired by name, and what is wrong with it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import data_sets
import pytest
import scans as make
from data_sets import CHEST, LIVER, SLICES, touch

from fastmed.errors import DataError, UsageError
from fastmed.training import layouts
from fastmed.training.layouts import discover

# Files of a data set -> (case, image, label) of what is found in it.
PAIRED = {
    "equal names": (
        ["image/a.nii.gz", "image/b.mha", "label/a.nii.gz", "label/b.nrrd", "image/README.txt"],
        [("a", "image/a.nii.gz", "label/a.nii.gz"), ("b", "image/b.mha", "label/b.nrrd")],
    ),
    "a folder per case": (
        ["image/7/7.nii", "label/7/7.nii.gz"],
        [("7", "image/7/7.nii", "label/7/7.nii.gz")],
    ),
    "a folder of DICOM files": (
        ["image/p1/IM0", "image/p1/IM1", "label/p1.nii.gz"],
        [("p1", "image/p1", "label/p1.nii.gz")],
    ),
    "Decathlon": (
        ["imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz", "imagesTr/._liver_0.nii.gz"],
        [("liver_0", "imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz")],
    ),
    "nnU-Net": (
        ["imagesTr/liver_001_0000.nii.gz", "labelsTr/liver_001.nii.gz", "dataset.json"],
        [("liver_001", "imagesTr/liver_001_0000.nii.gz", "labelsTr/liver_001.nii.gz")],
    ),
    "a name that ends as nnU-Net's do": (
        ["imagesTr/scan_0000.nii.gz", "labelsTr/scan_0000.nii.gz"],
        [("scan_0000", "imagesTr/scan_0000.nii.gz", "labelsTr/scan_0000.nii.gz")],
    ),
    "ct and labels": (
        ["c1/ct.nii.gz", "c1/labels.nii.gz", "c2/ct/IM0", "c2/labels.nii.gz", "notes.txt"],
        [("c1", "c1/ct.nii.gz", "c1/labels.nii.gz"), ("c2", "c2/ct", "c2/labels.nii.gz")],
    ),
    "numpy": (
        ["image/a.npy", "label/a.npy"],
        [("a", "image/a.npy", "label/a.npy")],
    ),
}


@pytest.mark.parametrize("name", PAIRED)
def test_each_layout_is_recognised_and_paired_by_name(name, tmp_path):
    files, expected = PAIRED[name]
    touch(tmp_path, *files)
    found = [
        (case.name, str(case.image.relative_to(tmp_path)), str(case.label.relative_to(tmp_path)))
        for case in discover(tmp_path, LIVER)
    ]
    assert found == expected


def test_pairs_do_not_depend_on_the_order_of_listing(tmp_path, monkeypatch):
    names = [f"{k}.png" for k in range(12)]
    touch(tmp_path, *(f"image/{n}" for n in names), *(f"label/{n}" for n in names))
    listing = Path.iterdir

    def shuffled(self):
        entries = list(listing(self))
        random.Random(str(self)).shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(Path, "iterdir", shuffled)
    cases = discover(tmp_path, SLICES)
    assert len(cases) == 12
    assert all(case.image.name == case.label.name for case in cases)


# Files of a data set -> a sentence for each thing that is wrong with it.
WRONG = {
    "a missing mask": (
        ["image/a.nii.gz", "image/b.nii.gz", "image/c.nii.gz", "label/b.nii.gz"],
        ["a: no mask of this name in label/", "c: no mask of this name in label/"],
    ),
    "a mask without image": (
        ["image/a.nii.gz", "label/a.nii.gz", "label/z.nii.gz"],
        ["z: a mask in label/ without an image of this name"],
    ),
    "two files of one name": (
        ["image/a.nii.gz", "image/a.nrrd", "label/a.nii.gz"],
        ["image/a.nii.gz and image/a.nrrd: two files of one name"],
    ),
    "a case without labels": (
        ["c1/ct.nii.gz", "c2/ct.nii.gz", "c2/labels.mha", "c2/labels.nii.gz"],
        ["c1: no file of the name labels.*", "c2: two files of the name labels.*"],
    ),
    "a second channel": (
        ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"],
        ["a_0001.nii.gz: a second channel"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_case_that_is_wrong_is_named_at_once(name, tmp_path):
    files, sentences = WRONG[name]
    touch(tmp_path, *files)
    with pytest.raises(DataError) as error:
        discover(tmp_path, LIVER)
    for sentence in sentences:
        assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "fits no known layout"),
        (["pictures/a.png"], "fits no known layout"),
        (
            ["image/a.nii", "label/a.nii", "imagesTr/a.nii", "labelsTr/a.nii"],
            r"several layouts \(image/ \+ label/, imagesTr/ \+ labelsTr/\)",
        ),
        (["labels.csv", "train.txt"], "several layouts"),
    ],
)
def test_a_folder_that_fits_none_or_several_layouts_is_answered_with_the_list(
    files, message, tmp_path
):
    touch(tmp_path, *files)
    with pytest.raises(UsageError, match=message) as error:
        discover(tmp_path, LIVER)
    assert layouts.LAYOUTS in str(error.value)


def test_a_classification_asks_for_a_table(tmp_path):
    touch(tmp_path, "image/a.nii", "label/a.nii")
    with pytest.raises(UsageError, match=r"classification takes labels.csv"):
        discover(tmp_path, CHEST)


def write_table(folder: Path, *lines: str) -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8-sig")
    return path


@pytest.mark.parametrize("by_file", [False, True])
def test_a_table_gives_patients_and_classes(by_file, tmp_path):
    touch(tmp_path, "scans/a.nii.gz", "scans/b.nii.gz", "scans/c.npy")
    table = write_table(
        tmp_path,
        "Path, Patient, Label",
        "scans/b.nii.gz,p2,positive",
        "scans/a.nii.gz,p1,0",
        "scans/c.npy,p2,1",
    )
    cases = discover(table if by_file else tmp_path, CHEST)
    assert [(c.name, c.patient, c.target) for c in cases] == [
        ("a", "p1", 0), ("b", "p2", 1), ("c", "p2", 1),
    ]  # fmt: skip


def test_a_table_names_its_bad_lines(tmp_path):
    touch(tmp_path, "a.nii", "b.nii")
    write_table(
        tmp_path, "path,patient,label,subset", "a.nii,p,2,", "gone.nii,p,1,", "b.nii,p,1,tests",
        "b.nii,p,1,test",
    )  # fmt: skip
    with pytest.raises(DataError) as error:
        discover(tmp_path, CHEST)
    for sentence in (
        "line 2: label '2': expected 0 or negative, 1 or positive",
        "line 3: no such file: gone.nii",
        "line 4: subset 'tests'",
        "b.nii: the same image is listed 2 times",
    ):
        assert sentence in str(error.value)


def test_a_table_may_name_masks(tmp_path):
    touch(tmp_path, "a.nii", "m/a.nii", "b.nii")
    write_table(tmp_path, "path,label", "a.nii,m/a.nii", "b.nii,")
    cases = discover(tmp_path, LIVER)
    assert [(c.name, c.label) for c in cases] == [("a", tmp_path / "m/a.nii"), ("b", None)]


def test_text_files_give_subsets_and_a_line_without_tab_has_no_mask(tmp_path):
    touch(tmp_path, "i/a.png", "m/a_mask.png", "i/b.png", "m/b.png", "other/a.png")
    (tmp_path / "train.txt").write_text("i/a.png\tm/a_mask.png\n\n")
    (tmp_path / "val.txt").write_text("i/b.png\tm/b.png")
    (tmp_path / "test.txt").write_text("other/a.png\n")
    found = {(c.name, c.subset, c.label and c.label.name) for c in discover(tmp_path, SLICES)}
    assert found == {
        ("i__a", "train", "a_mask.png"), ("b", "val", "b.png"), ("other__a", "test", None),
    }  # fmt: skip


def test_text_files_name_what_is_absent_and_what_is_listed_twice(tmp_path):
    touch(tmp_path, "a.png", "m.png")
    (tmp_path / "train.txt").write_text("a.png\tm.png\nb.png\tm.png\na.png\t\n")
    (tmp_path / "test.txt").write_text("a.png\n")
    with pytest.raises(DataError) as error:
        discover(tmp_path, SLICES)
    for sentence in (
        "train.txt line 2: no such file: b.png",
        "train.txt line 3: no such file: no mask after the TAB",
        "a.png: the same image is listed 2 times",
    ):
        assert sentence in str(error.value)


def test_lists_count_where_they_lie_beside_folders(tmp_path):
    touch(tmp_path, "image/a.png", "label/a.png", "image/b.png", "label/b.png")
    (tmp_path / "train.txt").write_text("image/a.png\tlabel/a.png\n")
    assert [case.name for case in discover(tmp_path, SLICES)] == ["a"]


def test_patients_come_from_a_table_beside_the_data(tmp_path):
    touch(tmp_path, "image/a.png", "label/a.png", "image/b.png", "label/b.png")
    (tmp_path / "patients.csv").write_text("name,patient\na,p1\nb,p1\n")
    assert {case.patient for case in discover(tmp_path, SLICES)} == {"p1"}
    (tmp_path / "patients.csv").write_text("name,patient\na,p1\n")
    with pytest.raises(DataError, match=r"b: not in patients.csv"):
        discover(tmp_path, SLICES)


def test_patients_come_from_a_pattern_where_one_is_given(tmp_path):
    for name in ("p1-1", "p1-2", "p2-1"):
        touch(tmp_path, f"image/{name}.png", f"label/{name}.png")
    assert [c.patient for c in discover(tmp_path, SLICES)] == ["p1-1", "p1-2", "p2-1"]
    pattern = "(.+)-[0-9]+"
    cases = discover(tmp_path, SLICES, patient_pattern=pattern)
    assert [c.patient for c in cases] == ["p1", "p1", "p2"]
    with pytest.raises(DataError, match="does not fit"):
        discover(tmp_path, SLICES, patient_pattern="(q.+)")


def test_patients_come_from_the_dicom_files(tmp_path):
    for name, patient in (("s1", "ID-7"), ("s2", "ID-7"), ("s3", "")):
        paths = make.series(tmp_path / "image" / name)
        make.edit_all(paths, PatientID=patient)
        touch(tmp_path, f"label/{name}.nii.gz")
    assert [c.patient for c in discover(tmp_path, LIVER)] == ["ID-7", "ID-7", "s3"]


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        discover(tmp_path / "absent", replace(LIVER, name="x"))


def test_found_cases_can_be_read(tmp_path):
    from fastmed.training.cases import read_image, read_label

    data_sets.write_pair(tmp_path, "a")
    (case,) = discover(tmp_path, LIVER)
    assert (read_image(case, LIVER).voxels == data_sets.scan().voxels).all()
    assert (read_label(case, LIVER)[0] == data_sets.organ()).all()
