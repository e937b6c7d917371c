"""Tables of findings: each row becomes a box of its scan, and each that is wrong has a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_sets import scan, touch, write_grey, write_nifti

from fastmed.errors import DataError, UsageError
from fastmed.spec import Detection, Label, Network, Spec
from fastmed.training.box_tables import LeftOutWarning
from fastmed.training.cases import TruthBox
from fastmed.training.layouts import discover
from fastmed.training.split import split
from fastmed.training.survey import survey

NODULES = Spec(
    "nodules", "detection", (Label(1, "nodule"), Label(2, "mass")), (3.0, 2.0, 2.0),
    (-1000.0, 400.0), (8, 16, 16), size_multiple=8,
    detection=Detection(strides=(4,), diameters_mm=((8.0,),)),
)  # fmt: skip
FLAT = replace(
    NODULES, spacing_mm_zyx=None, tile_zyx=None, size_zyx=(1, 300, 300), dimensions=2,
    detection=Detection(), network=Network("ssd300_vgg16"),
)  # fmt: skip
GREY = replace(FLAT, modality="grey", window_hu=(0.0, 255.0), labels=(Label(1, "nodule"),))

HEAD_3D = "path,patient,label,x1,y1,z1,x2,y2,z2\n"
HEAD_2D = "path,patient,slice,label,x1,y1,x2,y2\n"
# Of data_sets.scan: x from -20, y from -30, z from 100 mm on, spacing 1.5, 1.5, 2.5 mm.
INSIDE = "-10,-20,110,-4,-14,118"


def table(folder: Path, name: str, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    head = {"boxes.csv": HEAD_3D, "slices.csv": HEAD_2D}[name]
    (folder / name).write_text(head + "".join(f"{line}\n" for line in lines))
    return folder


def scans(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        volume = scan(number)
        write_nifti(folder / name, volume.voxels, volume.geometry)
    return folder


def test_rows_of_one_scan_are_one_case(tmp_path):
    touch(tmp_path, "s/a.nii.gz", "s/b.nii.gz")
    table(
        tmp_path, "boxes.csv", f"s/a.nii.gz,p,nodule,{INSIDE}", "s/a.nii.gz,p,2,0,1,2,3,4,5.5",
        "s/b.nii.gz,q,,,,,,,",
    )  # fmt: skip
    a, b = discover(tmp_path, NODULES)
    assert (a.name, a.patient) == ("a", "p")
    assert a.boxes == (
        TruthBox(1, (-10.0, -20.0, 110.0, -4.0, -14.0, 118.0)),
        TruthBox(2, (0.0, 1.0, 2.0, 3.0, 4.0, 5.5)),
    )
    assert (b.name, b.boxes, b.has_truth) == ("b", (), True)


def test_slices_of_one_scan_are_one_case_that_knows_where_somebody_looked(tmp_path):
    touch(tmp_path, "a.nii.gz")
    table(
        tmp_path, "slices.csv", "a.nii.gz,p,7,nodule,1,2,8.5,9", "a.nii.gz,p,7,mass,3,3,4,4",
        "a.nii.gz,p,2,,,,,",
    )  # fmt: skip
    (case,) = discover(tmp_path, FLAT)
    assert case.slices == (2, 7)
    assert case.boxes[0] == TruthBox(1, slice=7, box_px=(1.0, 2.0, 8.5, 9.0))
    assert [box.label for box in case.boxes] == [1, 2]


LUNA = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def test_luna16_pairs_by_series_and_scans_without_a_row_have_no_nodule(tmp_path):
    touch(tmp_path, "subset0/1.2.3.mhd", "subset1/1.2.4.nii.gz", "seg-lungs-LUNA16/1.2.3.mhd")
    (tmp_path / "annotations.csv").write_text(LUNA + "1.2.3,10,-20,30,8\n1.9,0,0,0,5\n")
    with pytest.warns(LeftOutWarning, match=r"1 series of it have no scan here, such as 1\.9"):
        a, b = discover(tmp_path, NODULES)
    assert (a.name, a.boxes) == ("1.2.3", (TruthBox(1, (6.0, -24.0, 26.0, 14.0, -16.0, 34.0)),))
    assert (b.name, b.boxes) == ("1.2.4", ())


WRONG_ROWS = {
    "absent": ("c.nii.gz,p,,,,,,,", "boxes.csv line 2: no such file: c.nii.gz"),
    "empty path": (",p,,,,,,,", "no such file: (empty)"),
    "class": (f"a.nii.gz,p,tumour,{INSIDE}", "label 'tumour': unknown class; expected 1 or nodule"),
    "nan": ("a.nii.gz,p,1,nan,0,0,1,1,1", "x1 is nan: expected a finite number"),
    "text": ("a.nii.gz,p,1,0,0,0,1,one,1", "y2 'one': expected a number"),
    "inverted": ("a.nii.gz,p,1,0,5,0,1,4,1", "the box is inverted: y1 5, y2 4"),
    "zero": ("a.nii.gz,p,1,0,0,2,1,1,2", "the box is zero-sized: z1 2, z2 2"),
    "no label": ("a.nii.gz,p,,0,,,,,", "x1 without a label"),
    "patient": (f"a.nii.gz,q,1,{INSIDE}\na.nii.gz,p,,,,,,,", "patient 'p', in a row before 'q'"),
}


@pytest.mark.parametrize(("row", "words"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_a_row_that_is_wrong_has_a_line(tmp_path, row, words):
    touch(tmp_path, "a.nii.gz")
    table(tmp_path, "boxes.csv", row)
    with pytest.raises(DataError) as error:
        discover(tmp_path, NODULES)
    assert words in str(error.value)


def test_a_slice_that_is_no_number_and_a_ball_without_size_have_lines(tmp_path):
    touch(tmp_path, "a.nii.gz")
    with pytest.raises(DataError, match="slice 'x': expected a number from 0"):
        discover(table(tmp_path, "slices.csv", "a.nii.gz,p,x,1,1,1,2,2"), FLAT)
    (tmp_path / "annotations.csv").write_text(LUNA + "a,10,-20,30,0\n")
    with pytest.raises(DataError, match="line 2: diameter_mm 0: expected more than 0"):
        discover(tmp_path, NODULES)


def test_another_layout_is_refused_with_those_that_a_detection_takes(tmp_path):
    touch(tmp_path, "image/a.nii.gz", "label/a.nii.gz")
    with pytest.raises(UsageError, match=r"takes boxes\.csv or annotations\.csv"):
        discover(tmp_path, NODULES)
    (tmp_path / "boxes.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="no column x1, x2, y1"):
        discover(tmp_path, NODULES)


def test_boxes_outside_their_scan_are_problems_and_half_out_are_warnings(tmp_path):
    scans(tmp_path, "a.nii.gz", "b.nii.gz")
    table(
        tmp_path, "boxes.csv", f"a.nii.gz,p,1,{INSIDE}", "a.nii.gz,p,2,-24,-20,110,-16,-14,118",
        "b.nii.gz,q,,,,,,,",
    )  # fmt: skip
    found = survey(discover(tmp_path, NODULES), NODULES, {})
    (warning,) = found.warnings
    assert warning.startswith("a: box [-24.0, -20.0, 110.0, -16.0, -14.0, 118.0] leaves the scan")
    table(tmp_path, "boxes.csv", "a.nii.gz,p,1,-60,-20,110,-40,-14,118")
    with pytest.raises(DataError, match=r"a: box .* outside the scan, its centre is not in it"):
        survey(discover(tmp_path, NODULES), NODULES, {})


def test_a_slice_beyond_the_scan_is_a_problem(tmp_path):
    scans(tmp_path, "a.nii.gz")
    table(tmp_path, "slices.csv", "a.nii.gz,p,20,1,2,2,5,5", "a.nii.gz,p,3,2,2,2,5,5")
    with pytest.raises(
        DataError, match="a: slice 20 outside the scan, which has the slices 0 to 19"
    ):
        survey(discover(tmp_path, FLAT), FLAT, {})


def test_the_survey_counts_findings_and_their_sizes(tmp_path):
    scans(tmp_path, "a.nii.gz", "b.nii.gz")
    table(
        tmp_path, "boxes.csv", f"a.nii.gz,p,1,{INSIDE}", "a.nii.gz,p,1,-10,-20,110,0,-10,120",
        "a.nii.gz,p,2,-10,-20,110,-6,-16,114", "b.nii.gz,q,,,,,,,",
    )  # fmt: skip
    found = survey(discover(tmp_path, NODULES), NODULES, {})
    assert found.counts() == (1, 2, 1)
    assert found.strata() == {"a": (True,), "b": (False,)}
    text = str(found)
    assert "2 findings, 6.7 to 10.0 mm, median 8.3" in text
    assert "1 cases" in text
    assert "without findings" in text


def test_a_class_without_a_finding_is_named(tmp_path):
    scans(tmp_path, "a.nii.gz")
    table(tmp_path, "boxes.csv", f"a.nii.gz,p,1,{INSIDE}")
    with pytest.raises(DataError, match=r"class 2 \(mass\): not one finding of it"):
        survey(discover(tmp_path, NODULES), NODULES, {})


def test_training_cases_without_any_finding_are_an_error(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz")
    (tmp_path / "boxes.csv").write_text(
        HEAD_3D.replace("label", "label,subset")
        + "a.nii.gz,p,,train,,,,,,\nb.nii.gz,q,,train,,,,,,\n"
        + f"c.nii.gz,r,1,val,{INSIDE}\n"
    )
    with pytest.raises(DataError, match="train has 2 scans and not one finding"):
        split(discover(tmp_path, NODULES), shares=(0.7, 0.3, 0.0), seed=0)


def test_a_split_keeps_scans_with_and_without_findings_in_proportion(tmp_path):
    names = [f"{k:02d}.nii.gz" for k in range(40)]
    touch(tmp_path, *names)
    rows = [
        f"{name},{name},1,{INSIDE}" if k < 20 else f"{name},{name},,,,,,," for k, name in
        enumerate(names)
    ]  # fmt: skip
    cases = discover(table(tmp_path, "boxes.csv", *rows), NODULES)
    strata = {case.name: (bool(case.boxes),) for case in cases}
    parts = split(cases, shares=(0.5, 0.25, 0.25), seed=1, strata=strata)
    for subset, count in (("train", 20), ("val", 10), ("test", 10)):
        chosen = getattr(parts, subset)
        assert len(chosen) == count
        assert sum(strata[name][0] for name in chosen) == count / 2


def test_a_grey_image_with_boxes_is_measured_in_pixels(tmp_path):
    write_grey(tmp_path / "a.png", np.full((40, 60), 80, np.uint8))
    table(tmp_path, "slices.csv", "a.png,p,0,nodule,10,10,20,30")
    found = survey(discover(tmp_path, GREY), GREY, {})
    assert found.counts() == (0, 1)
    assert "15.0 to 15.0" in str(found)
