"""LUNA16's table and COCO JSON prepared: boxes by scan or picture, everything left out is named."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import scans as make
import SimpleITK as sitk
from PIL import Image

import fastmed
from fastmed.cli import main
from fastmed.errors import DataError
from fastmed.training.prepare import BOX_COLUMNS, PROBLEM_COLUMNS, SLICE_COLUMNS
from fastmed.training.prepare_coco import prepare_coco
from fastmed.training.prepare_luna16 import prepare_luna16
from fastmed.training.prepare_lung_pet_ct_dx import SERIES_COLUMNS


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def problems(root):
    found = rows(root / "out" / "problems.csv")
    return {row["file"]: row["problem"] for row in found if row["verdict"] == "refused"}


def write_mhd(path, *, labels=False):
    scan = make.volume()
    voxels = scan.hu().astype(np.int16)
    if labels:
        voxels = np.zeros(voxels.shape, np.uint8)
        voxels[2:6, 3:8, 2:5], voxels[2:6, 3:8, 8:12] = 3, 4
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin(scan.geometry.origin_lps_mm.tolist())
    image.SetSpacing(scan.geometry.spacing_mm_zyx[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def luna(tmp_path):
    """Two scans in subset folders, nodules in one of them, and a lung mask of the same name."""
    write_mhd(tmp_path / "luna" / "subset0" / "1.2.mhd")
    write_mhd(tmp_path / "luna" / "subset1" / "1.3.mhd")
    write_mhd(tmp_path / "luna" / "seg-lungs" / "1.2.mhd", labels=True)
    table = tmp_path / "annotations.csv"
    table.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,-15,-25,-100,3\n")
    return tmp_path


def prepare_luna(root):
    return prepare_luna16(root / "luna", root / "annotations.csv", root / "out", quiet=True)


def add(root, line):
    with open(root / "annotations.csv", "a") as file:
        file.write(line + "\n")


def test_luna16_nodules_become_boxes_beside_the_paths_of_their_scans(luna):
    report = prepare_luna(luna)
    assert report.problems == []
    with_box, without = rows(luna / "out" / "boxes.csv")
    for row, name in ((with_box, "1.2"), (without, "1.3")):
        (volume,) = fastmed.read(luna / "out" / row["path"])
        assert (volume.name, row["patient"]) == (f"{name}.mhd", name)
    sides = ("label", "x1", "y1", "z1", "x2", "y2", "z2")
    expected = ["nodule", "-16.5", "-26.5", "-101.5", "-13.5", "-23.5", "-98.5"]
    assert [with_box[side] for side in sides] == expected
    assert [without[side] for side in sides] == [""] * 7
    assert report.figures["label maps skipped"] == 1


def test_luna16_unknown_series_and_nodules_outside_of_their_scan_are_named(luna):
    add(luna, "9.9,1,2,3,4")
    add(luna, "1.3,-15,-25,900,4")
    report = prepare_luna(luna)
    assert report.exit_status == 1
    found = problems(luna)
    assert found["annotations.csv"] == "series 9.9, 1 annotations: no scan has this name"
    assert "(-15, -25, 900) mm is outside of its scan" in found["subset1/1.3.mhd"]
    paths = [row["path"] for row in rows(luna / "out" / "boxes.csv")]
    assert not any("1.3" in path for path in paths), "its nodule is lost: it is not an empty scan"


def test_luna16_scans_that_cannot_be_read_are_named_with_their_annotations(luna):
    (luna / "luna" / "subset0" / "1.2.raw").write_bytes(b"")
    assert prepare_luna(luna).exit_status == 1
    found = problems(luna)
    assert "cannot be read" in found["subset0/1.2.mhd"]
    assert found["annotations.csv"] == "series 1.2, 1 annotations: its scan is refused"


def test_luna16_two_scans_of_one_name_are_named(luna):
    write_mhd(luna / "luna" / "subset2" / "1.3.mhd")
    assert prepare_luna(luna).exit_status == 1
    assert "subset1/1.3.mhd has the same name" in problems(luna)["subset2/1.3.mhd"]


def test_luna16_bad_lines_stop_the_command(luna, capsys):
    add(luna, "1.3,nan,2,3,4")
    words = ["prepare", "luna16", "--scans", luna / "luna", "--annotations",
             luna / "annotations.csv", "--output", luna / "out"]  # fmt: skip
    assert main([str(word) for word in words]) == 1
    assert "line 3: coordx 'nan' is no number" in capsys.readouterr().err
    assert not (luna / "out").exists()


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "pictures").mkdir()
    images = []
    for number, name in enumerate(("a.png", "b.png")):
        shades = np.random.default_rng(number).integers(0, 256, (24, 32), dtype=np.uint8)
        Image.fromarray(shades).save(tmp_path / "pictures" / name)
        images.append({"id": number, "file_name": name, "width": 32, "height": 24})
    write_json(tmp_path, images)
    return tmp_path, images


def write_json(root, images):
    boxes = [{"id": 1, "image_id": 0, "category_id": 3, "bbox": [4, 5, 6.5, 7]}]
    categories = [{"id": 3, "name": "nodule"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "coco.json").write_text(json.dumps(content))


def prepare_pictures(root):
    return prepare_coco(root / "pictures", root / "coco.json", root / "out", quiet=True)


def test_coco_boxes_become_rows_of_slices_csv(coco):
    root, _ = coco
    assert prepare_pictures(root).problems == []
    one, other = rows(root / "out" / "slices.csv")
    sides = ("slice", "label", "x1", "y1", "x2", "y2")
    assert [one[side] for side in sides] == ["0", "nodule", "3.5", "4.5", "10", "11.5"]
    assert [other[side] for side in sides] == ["0", "", "", "", "", ""]
    assert os.path.samefile(root / "out" / one["path"], root / "pictures" / "a.png")
    assert (root / "out" / "contact.png").is_file()


COCO_PROBLEMS = {
    "absent": ({"file_name": "c.png"}, "c.png", "no such file"),
    "outside": ({"file_name": "../coco.json"}, "../coco.json", "it is outside of"),
    "another size": ({"width": 33}, "b.png", "it has 32 x 24 pixels, the JSON says 33 x 24"),
}


@pytest.mark.parametrize(("entry", "file", "words"), COCO_PROBLEMS.values(), ids=COCO_PROBLEMS)
def test_coco_images_that_do_not_fit_are_named(coco, entry, file, words):
    root, images = coco
    write_json(root, [images[0], images[1] | entry])
    assert prepare_pictures(root).exit_status == 1
    assert words in problems(root)[file]
    assert len(rows(root / "out" / "slices.csv")) == 1


def test_coco_flaws_stop_the_command(coco):
    root, images = coco
    write_json(root, images[1:])
    with pytest.raises(DataError, match=r"coco\.json: 1 flaws\n  annotation 1: no image has"):
        prepare_pictures(root)


def test_the_tables_printed_in_the_docs_have_the_columns_that_are_written():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    for columns in (
        BOX_COLUMNS,
        (*SLICE_COLUMNS, "sop_instance_uid"),
        SERIES_COLUMNS,
        PROBLEM_COLUMNS,
    ):
        header = "    " + ",".join(columns) + "\n"
        assert header in text
        for row in text.split(header)[1:]:
            (cells,) = csv.reader([row.splitlines()[0].strip()])
            assert len(cells) == len(columns)
