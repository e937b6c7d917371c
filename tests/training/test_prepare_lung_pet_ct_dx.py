"""Lung-PET-CT-Dx prepared: paired by UID, joined in mm, everything left out is named."""

import csv
import os
import shutil

import annotated_slices as archive
import numpy as np
import pydicom
import pytest
import scans as make
from annotated_slices import BOX, annotate, patient, xml
from PIL import Image

import fastmed
from fastmed.cli import main
from fastmed.errors import UsageError
from fastmed.training import placed_files
from fastmed.training.prepare_lung_pet_ct_dx import prepare_lung_pet_ct_dx


def prepare(root, **options):
    return prepare_lung_pet_ct_dx(
        root / "dicom", root / "annotations", root / "out", **{"quiet": True} | options
    )


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def problems(root):
    return {
        (row["file"], row["verdict"]): row["problem"] for row in rows(root / "out/problems.csv")
    }


@pytest.fixture
def two(tmp_path):
    """Two patients: A0001 with boxes on slices 1 to 3, B0002 with an empty annotation on one."""
    first, second = patient(tmp_path, "A0001", seed=1), patient(tmp_path, "B0002", seed=2)
    for z in (1, 2, 3):
        annotate(tmp_path, "A0001", first[z], xml(BOX))
    annotate(tmp_path, "B0002", second[4], xml())
    return tmp_path, first, second


def contents(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_slices_and_annotations_are_paired_by_uid_and_written_under_uid_names(two):
    root, first, second = two
    report = prepare(root)
    assert report.exit_status == 0
    assert report.figures["annotation files used"] == 4
    out = root / "out"
    scans = {path.name for path in out.glob("scans/*/*.dcm")}
    assert scans == {f"{uid}.dcm" for uid in first + second}
    assert {path.name for path in (out / "annotations").iterdir()} == {
        f"{uid}.xml" for uid in (*first[1:4], second[4])
    }
    for path in out.glob("scans/*/*.dcm"):
        assert pydicom.dcmread(path).SOPInstanceUID == path.stem
        assert pydicom.dcmread(path).SeriesInstanceUID == path.parent.name


def test_where_files_lie_decides_nothing(two):
    root, *_ = two
    prepare(root)
    before = {name: (root / "out" / name).read_bytes() for name in ("boxes.csv", "slices.csv")}
    for number, path in enumerate(sorted((root / "dicom").rglob("*.dcm"))):
        target = root / "mixed" / str(number % 3) / f"IM{number * 7 % 12:04d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.rmtree(root / "dicom")
    (root / "mixed").rename(root / "dicom")
    assert prepare(root).exit_status == 0
    assert before == {name: (root / "out" / name).read_bytes() for name in before}


def test_slices_csv_holds_each_box_at_the_z_index_that_fastmed_reads(two):
    root, first, second = two
    prepare(root)
    found = rows(root / "out" / "slices.csv")
    by_uid = {row["sop_instance_uid"]: row for row in found}
    assert by_uid.keys() == {*first[1:4], second[4]}
    for uid, row in by_uid.items():
        (volume,) = fastmed.read(root / "out" / row["path"])
        assert volume.slices[int(row["slice"])].sop_instance_uid == uid
    row = by_uid[first[2]]
    assert [row[side] for side in ("x1", "y1", "x2", "y2")] == ["9.5", "11.5", "15.5", "18.5"]
    assert (row["patient"], row["label"]) == ("Lung_Dx-A0001", "nodule")
    assert (by_uid[second[4]]["label"], by_uid[second[4]]["x1"]) == ("", "")


def test_slice_boxes_join_into_boxes_in_lps_mm(two):
    root, *_ = two
    prepare(root)
    box, empty = sorted(rows(root / "out" / "boxes.csv"), key=lambda row: row["patient"])
    # 0.75 mm pixels from (-20, -30), slices 1 to 3 of 2 mm from -111
    expected = [-20 + 0.75 * 9.5, -30 + 0.75 * 11.5, -110, -20 + 0.75 * 15.5, -30 + 0.75 * 18.5]
    found = [float(box[side]) for side in ("x1", "y1", "z1", "x2", "y2", "z2")]
    np.testing.assert_allclose(found, [*expected, -104], atol=1e-3)
    assert (box["label"], box["patient"]) == ("nodule", "Lung_Dx-A0001")
    assert (empty["label"], empty["x1"]) == ("", "")


def test_originals_are_never_touched(two):
    root, *_ = two
    before = contents(root / "dicom"), contents(root / "annotations")
    for copy in (False, True):
        prepare(root, copy=copy)
    assert before == (contents(root / "dicom"), contents(root / "annotations"))


def test_files_are_hard_links_or_copies_by_choice(two):
    root, *_ = two
    original = next((root / "dicom").rglob("0001.dcm"))
    prepare(root)
    uid = pydicom.dcmread(original).SOPInstanceUID
    (made,) = (root / "out").glob(f"scans/*/{uid}.dcm")
    assert os.path.samefile(made, original)
    prepare(root, copy=True)
    assert not os.path.samefile(made, original)
    assert made.read_bytes() == original.read_bytes()


def test_where_the_disk_cannot_link_files_are_copied_and_that_is_said(two, monkeypatch):
    root, *_ = two

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(placed_files.os, "link", refuse)
    report = prepare(root)
    assert report.figures["files copied"] == 16
    assert any("cannot link" in problem.problem for problem in report.problems)
    assert report.exit_status == 0


def test_a_second_run_keeps_what_is_there_and_writes_the_same(two):
    root, *_ = two
    prepare(root, images="png")
    before = {name: content for name, (content, _) in contents(root / "out").items()}
    report = prepare(root, images="png")
    assert report.figures["files there already"] == 16
    assert "files hard-linked" not in report.figures
    assert before == {name: content for name, (content, _) in contents(root / "out").items()}


def test_what_a_killed_run_left_is_removed_and_a_stranger_is_named(two):
    root, *_ = two
    prepare(root)
    folder = sorted((root / "out" / "scans").iterdir())[0]
    (folder / ".1.2.3.dcm.abcdef.tmp").write_bytes(b"half")
    assert prepare(root).exit_status == 0
    assert not list(folder.glob(".*"))
    (folder / "9.9.dcm").write_bytes(b"of an earlier run")
    assert prepare(root).exit_status == 1
    assert "holds 1 other files, such as 9.9.dcm" in str(problems(root))


def test_a_replaced_original_replaces_its_file(two):
    root, first, _ = two
    prepare(root, copy=True)
    path = root / "annotations" / "A0001" / f"{first[2]}.xml"
    path.write_bytes(xml((10, 12, 16, 18)))
    prepare(root, copy=True)
    assert (root / "out" / "annotations" / path.name).read_bytes() == path.read_bytes()
    assert "16.5" in (root / "out" / "slices.csv").read_text()


def damaged(root, first, content, *, folder="A0001"):
    return annotate(root, folder, first[2], content)


FLAWED = {
    "zero-sized": (xml((10, 12, 10, 18)), "zero-sized: xmin 10, xmax 10"),
    "inverted": (xml((15, 12, 10, 18)), "inverted: xmin 15, xmax 10"),
    "outside": (xml((10, 12, 15, 32)), "is outside the image of 32 x 32"),
    "unknown class": (xml(BOX, name="C"), "unknown class 'C'; known are A, B, E, G"),
    "another size": (xml(BOX, size=(64, 48)), "of an image of 64 x 48, its slice has 32 x 32"),
    "no XML": (b"\0\1\2", "not XML"),
}


@pytest.mark.parametrize(("content", "words"), FLAWED.values(), ids=FLAWED.keys())
def test_a_flawed_annotation_is_named_and_left_out_and_the_others_are_used(two, content, words):
    root, first, _ = two
    damaged(root, first, content)
    report = prepare(root)
    assert report.exit_status == 1
    assert words in problems(root)[f"A0001/{first[2]}.xml", "refused"]
    assert report.figures["annotation files used"] == 3
    assert not (root / "out" / "annotations" / f"{first[2]}.xml").exists()
    assert first[2] not in (root / "out" / "slices.csv").read_text()


def test_a_refused_slice_does_not_cut_a_finding_in_two(two):
    root, first, _ = two
    damaged(root, first, b"")
    prepare(root)
    (box,) = [row for row in rows(root / "out" / "boxes.csv") if row["label"]]
    assert (box["z1"], box["z2"]) == ("-110", "-104")


def test_a_scan_whose_only_boxes_are_refused_is_not_called_empty(two):
    root, first, _ = two
    for z in (1, 2):
        annotate(root, "A0001", first[z], b"")
    annotate(root, "A0001", first[3], xml())
    prepare(root)
    assert "Lung_Dx-A0001" not in (root / "out" / "boxes.csv").read_text()
    assert "Lung_Dx-A0001" in (root / "out" / "slices.csv").read_text()


def test_what_is_unpaired_is_reported_on_each_side(two):
    root, *_ = two
    annotate(root, "A0001", "1.2.3.4", xml(BOX))
    annotate(root, "A0001", "notes", xml(BOX))
    report = prepare(root)
    found = problems(root)
    assert found["A0001/1.2.3.4.xml", "refused"] == "no CT slice has this SOPInstanceUID"
    assert found["A0001/notes.xml", "refused"] == "its name is no SOPInstanceUID"
    assert report.figures["slices without annotation in them"] == 3 + 5
    by_patient = {row["patient"]: row for row in rows(root / "out" / "series.csv")}
    assert by_patient["Lung_Dx-A0001"]["slices"] == "6"
    assert by_patient["Lung_Dx-A0001"]["annotated"] == "3"


def test_copies_are_noted_and_contradictions_refused(two):
    root, first, _ = two
    annotate(root, "copy", first[1], xml(BOX))
    annotate(root, "other", first[2], xml((1, 2, 3, 4)))
    series = root / "dicom" / "Lung_Dx-A0001" / "study" / "series"
    shutil.copy(series / "0005.dcm", series / "copy.dcm")
    report = prepare(root)
    found = problems(root)
    assert "the same as" in found[f"copy/{first[1]}.xml", "noted"]
    assert "has another content" in found[f"A0001/{first[2]}.xml", "refused"]
    assert "has another content" in found[f"other/{first[2]}.xml", "refused"]
    copied = "Lung_Dx-A0001/study/series/copy.dcm"
    assert found[copied, "noted"] == "the same as Lung_Dx-A0001/study/series/0005.dcm; left out"
    assert report.figures["annotation files used"] == 3
    assert len(list((root / "out").glob("scans/*/*.dcm"))) == 12


def test_two_unlike_slices_of_one_uid_refuse_their_series(two):
    root, first, _ = two
    series = root / "dicom" / "Lung_Dx-A0001" / "study" / "series"
    make.edit(series / "0001.dcm", SOPInstanceUID=first[5])
    report = prepare(root)
    found = problems(root)
    assert "its content another" in found["Lung_Dx-A0001/study/series/0006.dcm", "refused"]
    assert "have one SOPInstanceUID" in found["Lung_Dx-A0001/study/series", "refused"]
    assert "is refused" in found[f"A0001/{first[1]}.xml", "refused"]
    assert report.figures["annotation files refused"] == 3


def test_a_box_drawn_twice_counts_once(two):
    root, first, _ = two
    damaged(root, first, xml(BOX, BOX))
    report = prepare(root)
    assert report.figures["boxes on slices"] == report.figures["boxes in 3D"] + 2 == 3
    assert "there twice" in problems(root)[f"A0001/{first[2]}.xml", "noted"]


def test_a_doubtful_series_is_refused_with_its_annotations_named(two):
    root, *_ = two
    (root / "dicom" / "Lung_Dx-A0001" / "study" / "series" / "0005.dcm").unlink()
    report = prepare(root)
    found = problems(root)
    assert "1 slice missing" in found["Lung_Dx-A0001/study/series", "refused"]
    assert sum(file.startswith("A0001/") for file, _ in found) == 3
    assert report.figures["annotation files used"] == 1
    assert report.figures["annotation files refused"] == 3


def test_folders_that_name_another_patient_are_noted(two):
    root, *_ = two
    (root / "annotations" / "A0001").rename(root / "annotations" / "A0009")
    report = prepare(root)
    assert report.exit_status == 0
    words = "3 annotations in the folder A0009 are of slices of patient Lung_Dx-A0001"
    assert problems(root)["A0009", "noted"] == words


def test_pet_series_are_counted_as_skipped(two):
    root, *_ = two
    folder = root / "dicom" / "Lung_Dx-A0001" / "study" / "pet"
    paths = make.series(folder, make.volume((3, 8, 8), seed=9))
    make.edit_all(paths, Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
    uid = str(pydicom.dcmread(paths[0]).SOPInstanceUID)
    report = prepare(root)
    assert report.exit_status == 0
    assert report.figures["skipped, no CT slice: PT"] == 3
    annotate(root, "A0001", uid, xml(BOX))
    report = prepare(root)
    assert "not CT" in problems(root)[f"A0001/{uid}.xml", "refused"]


def test_classes_are_mapped_and_kept_apart_where_they_differ(two):
    root, first, _ = two
    annotate(root, "A0001", first[2], xml(BOX, name="B"))
    prepare(root, classes="adenocarcinoma=A,other=B+E+G")
    labels = sorted(row["label"] for row in rows(root / "out" / "boxes.csv"))
    assert labels == ["", "adenocarcinoma", "adenocarcinoma", "other"]


@pytest.mark.parametrize("format", ["png", "bmp"])
def test_images_are_windowed_grey_by_choice(two, format):
    root, first, _ = two
    prepare(root, images=format, window_hu=(-124.0, 76.0))
    image = Image.open(root / "out" / "images" / f"{first[2]}.{format}")
    (volume,) = fastmed.read(root / "dicom" / "Lung_Dx-A0001")
    expected = np.rint(np.clip((volume.hu()[2] + 124) / 200, 0, 1) * 255)
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert len(list((root / "out" / "images").iterdir())) == 4


def test_the_contact_sheet_shows_the_boxes(two):
    from fastmed.writers.palette import label_color

    root, *_ = two
    prepare(root)
    sheet = np.asarray(Image.open(root / "out" / "contact.png"))
    assert (sheet == label_color(1)).all(axis=-1).sum() > 3 * 100


def test_the_command_prints_figures_and_tells_refusals_by_its_exit_status(two, capsys):
    root, first, _ = two
    words = ["prepare", "lung-pet-ct-dx", "--dicom", root / "dicom", "--annotations",
             root / "annotations", "--output", root / "out"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "annotation files used" in out
    assert "files hard-linked" in out
    assert "files copied" not in out
    damaged(root, first, b"")
    assert main([str(word) for word in (*words, "--quiet")]) == 1
    assert capsys.readouterr().out == ""


WRONG = {
    "classes": ({"classes": "nodule"}, "expected LABEL=CLASS"),
    "a class that is none": ({"classes": "nodule=A+Q"}, "'Q' is no class; known are A, B, E, G"),
    "a class twice": ({"classes": "a=A,b=all"}, "class A stands for two labels"),
    "a label twice": ({"classes": "a=A,a=B"}, "a is named twice"),
    "images": ({"images": "gif"}, "expected png or bmp"),
    "window": ({"window_hu": (400.0, -1000.0)}, "expected LO below HI"),
}


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named_before_anything_is_written(two, options, words):
    root, *_ = two
    with pytest.raises(UsageError, match=words):
        prepare(root, **options)
    assert not (root / "out").exists()


def test_an_output_that_holds_the_originals_is_refused(two):
    root, *_ = two
    for output in (root, root / "dicom", root / "annotations"):
        with pytest.raises(UsageError, match="name a folder without originals"):
            prepare_lung_pet_ct_dx(root / "dicom", root / "annotations", output, quiet=True)
    with pytest.raises(UsageError, match="no such file"):
        prepare_lung_pet_ct_dx(root / "nowhere", root / "annotations", root / "out", quiet=True)


def test_an_output_inside_the_input_is_not_read_again(two):
    root, *_ = two
    for _ in range(2):
        report = prepare_lung_pet_ct_dx(
            root / "dicom", root / "annotations", root / "dicom" / "out", quiet=True, copy=True
        )
        assert report.figures["CT slices"] == 2 * archive.SHAPE[0]
        assert report.problems == []


def test_a_data_set_without_any_pair_is_named_and_gives_empty_tables(two):
    root, *_ = two
    shutil.rmtree(root / "annotations")
    annotate(root, "A0001", "1.2.3", xml(BOX))
    report = prepare(root)
    assert report.exit_status == 1
    assert rows(root / "out" / "boxes.csv") == rows(root / "out" / "slices.csv") == []
    assert (root / "out" / "contact.png").is_file()
    assert not (root / "out" / "scans").exists()
