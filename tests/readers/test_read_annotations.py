"""Annotation files as records: VOC XML, LUNA16's table, COCO-style JSON, and each flaw by name."""

import json

import pytest

from fastmed.errors import DataError
from fastmed.readers.annotations import LabelledBox
from fastmed.readers.coco import read_coco
from fastmed.readers.luna16 import read_luna16
from fastmed.readers.voc import read_voc

GOOD = (
    "<annotation><filename>1-01</filename><size><width>32</width><height>24</height></size>"
    "<object><name>A</name><bndbox><xmin>0</xmin><ymin>5</ymin><xmax>31</xmax><ymax>23</ymax>"
    "</bndbox></object></annotation>"
)
BOMB = (
    '<!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
)
EXTERNAL = '<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


def voc(tmp_path, content, **options):
    path = tmp_path / "1.2.3.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_voc(path, **options)


def test_voc_boxes_count_pixels_inclusively(tmp_path):
    found = voc(tmp_path, GOOD)
    assert (found.image, found.width, found.height) == ("1-01", 32, 24)
    assert found.boxes == (LabelledBox("A", (-0.5, 4.5, 31.5, 23.5)),)


def test_voc_classes_become_labels(tmp_path):
    assert voc(tmp_path, GOOD, classes={"A": "nodule"}).boxes[0].label == "nodule"


def test_voc_without_objects_is_an_image_without_findings(tmp_path):
    content = GOOD[: GOOD.index("<object>")] + "</annotation>"
    assert voc(tmp_path, content).boxes == ()


VOC_FLAWS = {
    "empty": ("", "an empty file"),
    "text": ("no markup", "not XML"),
    "cut short": (GOOD[:-30], "not XML"),
    "binary": (bytes(range(256)), "not XML"),
    "another encoding": ("<?xml version='1.0' encoding='utf-7'?>" + GOOD, "encoding"),
    "an unknown encoding": ("<?xml version='1.0' encoding='nope'?>" + GOOD, "encoding"),
    "entity bomb": (BOMB + GOOD.replace("1-01", "&c;"), "it holds a DTD"),
    "external entity": (EXTERNAL + GOOD.replace("1-01", "&a;"), "it holds a DTD"),
    "DTD by reference": ('<!DOCTYPE b SYSTEM "http://127.0.0.1/x.dtd">' + GOOD, "it holds a DTD"),
    "too large": (GOOD + " " * (1 << 20), "more than 1048576 bytes"),
    "another root": (GOOD.replace("annotation", "html"), "its root is 'html'"),
    "no size": (GOOD.replace("size>", "sighs>"), "no size: 0 times size/width"),
    "no width": (GOOD.replace("width>32</width", "width></width"), "no size: size/width '' is no"),
    "size zero": (GOOD.replace(">24<", ">0<"), "no size: size/height 0"),
    "half a pixel": (GOOD.replace(">24<", ">24.5<"), "no size: size/height 24.5"),
    "no class": (GOOD.replace(">A<", "><"), "box 1: a box without a class"),
    "unknown class": (GOOD.replace(">A<", ">X<"), "box 1: unknown class 'X'; known are A, B"),
    "steering text": (GOOD.replace(">A<", ">\x1b[2J<"), "not XML"),
    "zero-sized": (GOOD.replace("<xmin>0", "<xmin>31"), "zero-sized: xmin 31, xmax 31"),
    "inverted": (GOOD.replace("<ymin>5", "<ymin>24"), "inverted: ymin 24, ymax 23"),
    "right of the image": (GOOD.replace(">31<", ">32<"), "x 0 to 32, y 5 to 23 is outside the im"),
    "left of the image": (GOOD.replace("<xmin>0", "<xmin>-1"), "is outside the image of 32 x 24"),
    "NaN": (GOOD.replace("<xmin>0", "<xmin>NaN"), "bndbox/xmin 'NaN' is no number"),
    "infinite": (GOOD.replace("<xmax>31", "<xmax>inf"), "bndbox/xmax 'inf' is no number"),
    "huge": (GOOD.replace("<xmax>31", "<xmax>1e999"), "bndbox/xmax '1e999' is too large"),
    "a word": (GOOD.replace("<xmax>31", "<xmax>wide"), "bndbox/xmax 'wide' is no number"),
    "underscore": (GOOD.replace("<xmax>31", "<xmax>3_1"), "bndbox/xmax '3_1' is no number"),
    "no corner": (GOOD.replace("xmin>", "xmen>"), "0 times bndbox/xmin"),
    "two corners": (GOOD.replace("<xmin>", "<xmin>1</xmin><xmin>"), "2 times bndbox/xmin"),
    "a box outside of objects": (
        GOOD.replace("<object><name>A</name>", "").replace("</object>", ""),
        "1 bndbox outside of an object",
    ),
    "two flaws": (
        GOOD.replace("<xmin>0", "<xmin>31").replace("width>", "w>"),
        "no size: 0 times size/width: expected one; box 1: zero-sized",
    ),
}


@pytest.mark.parametrize(("content", "words"), VOC_FLAWS.values(), ids=VOC_FLAWS.keys())
def test_a_flawed_voc_file_is_named_with_its_flaws(tmp_path, content, words):
    with pytest.raises(DataError) as error:
        voc(tmp_path, content, classes={"A": "a", "B": "b"})
    assert str(error.value).startswith(f"{tmp_path / '1.2.3.xml'}: ")
    assert words in str(error.value)
    assert str(error.value).isprintable()


def test_an_absent_voc_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.xml: No such file"):
        read_voc(tmp_path / "absent.xml")


HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def luna(tmp_path, content):
    path = tmp_path / "annotations.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_luna16(path)


@pytest.mark.parametrize("tab", [",", "\t"])
def test_luna16_rows_are_balls_in_lps_mm(tmp_path, tab):
    text = HEADER + "1.2.3,-128.5,-175,-298.25,5\n\n1.2.4,1,2,3,4.5\n"
    one, other = luna(tmp_path, text.replace(",", tab))
    assert one.box_lps_mm == (-131.0, -177.5, -300.75, -126.0, -172.5, -295.75)
    assert (other.series_uid, other.diameter_mm) == ("1.2.4", 4.5)


LUNA_FLAWS = {
    "empty": ("", "no column seriesuid, coordx"),
    "no diameter": (HEADER.replace("diameter_mm", "class"), "no column diameter_mm"),
    "binary": (b"\xff\xfe\x00\x01", "no text in UTF-8 at byte 0"),
    "no series": (HEADER + ",1,2,3,4\n", "line 2: seriesuid is empty"),
    "NaN": (HEADER + "a,1,2,3,4\nb,nan,2,3,4\n", "line 3: coordx 'nan' is no number"),
    "huge": (HEADER + "a,1,2,1e999,4\n", "line 2: coordz '1e999' is too large"),
    "cut short": (HEADER + "a,1,2\n", "line 2: coordz '' is no number"),
    "no size": (HEADER + "a,1,2,3,0\n", "line 2: diameter_mm 0: expected more than 0"),
}


@pytest.mark.parametrize(("content", "words"), LUNA_FLAWS.values(), ids=LUNA_FLAWS.keys())
def test_a_flawed_luna16_table_is_named_with_its_lines(tmp_path, content, words):
    with pytest.raises(DataError) as error:
        luna(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path / 'annotations.csv'}: ")
    assert words in str(error.value)


COCO = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 32, "height": 24},
        {"id": 8, "file_name": "b.png", "width": 32, "height": 24},
    ],
    "categories": [{"id": 1, "name": "nodule"}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 5, 32, 19]}],
}


def coco(tmp_path, content, **options):
    path = tmp_path / "coco.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(path, **options)


def test_coco_boxes_have_edges_at_integers(tmp_path):
    one, other = coco(tmp_path, COCO)
    assert one.boxes == (LabelledBox("nodule", (-0.5, 4.5, 31.5, 23.5)),)
    assert (one.image, one.width, one.height) == ("a.png", 32, 24)
    assert (other.image, other.boxes) == ("b.png", ())


def changed(**entry):
    return COCO | {"annotations": [COCO["annotations"][0] | entry]}


COCO_FLAWS = {
    "no JSON": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "no list of images"),
    "no categories": ({**COCO, "categories": None}, "no list of categories"),
    "an id twice": ({**COCO, "images": COCO["images"][:1] * 2}, "images 2: id '7' is absent or"),
    "no id": ({**COCO, "images": [{}]}, "images 1: id 'None' is absent"),
    "no name": ({**COCO, "images": [{"id": 7, "width": 2, "height": 2}]}, "no file_name"),
    "no width": ({**COCO, "images": [{"id": 7, "file_name": "a"}]}, "width and height are"),
    "unknown image": (changed(image_id=9), "annotation 1: no image has the id '9'"),
    "unknown category": (changed(category_id=[]), "annotation 1: no category has the id '[]'"),
    "three numbers": (changed(bbox=[1, 2, 3]), "expected [x, y, width, height]"),
    "words": (changed(bbox=[1, 2, 3, "4"]), "expected [x, y, width, height]"),
    "NaN": (changed(bbox=[1, 2, 3, float("nan")]), "is not finite"),
    "huge": (changed(bbox=[1, 2, 3, 10**400]), "too large"),
    "zero-sized": (changed(bbox=[1, 2, 0, 4]), "is zero-sized"),
    "inverted": (changed(bbox=[1, 2, -3, 4]), "is inverted"),
    "outside": (changed(bbox=[1, 2, 32, 4]), "is outside the image of 32 x 24"),
    "a crowd": (changed(iscrowd=1), "a crowd"),
}


@pytest.mark.parametrize(("content", "words"), COCO_FLAWS.values(), ids=COCO_FLAWS.keys())
def test_a_flawed_coco_file_is_named_with_its_flaws(tmp_path, content, words):
    with pytest.raises(DataError) as error:
        coco(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path / 'coco.json'}: ")
    assert words in str(error.value)


def test_coco_categories_become_labels_and_unknown_ones_are_flaws(tmp_path):
    assert coco(tmp_path, COCO, classes={"nodule": "mass"})[0].boxes[0].label == "mass"
    with pytest.raises(DataError, match="unknown class 'nodule'; known are a"):
        coco(tmp_path, COCO, classes={"a": "mass"})
