"""Boxes slice by slice: on all slices from first to last, in VOC's and in COCO's pixels."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastmed.findings import Box
from fastmed.geometry import Geometry
from fastmed.spec import Label
from fastmed.volume import SourceSlice, Volume
from fastmed.writers.coco import write_coco
from fastmed.writers.slice_boxes import boxes_by_slice
from fastmed.writers.voc import whole_pixels, write_voc

WORLD = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
GEOMETRY = Geometry.from_spacing((6, 30, 40), (2.0, 1.0, 1.0))
# A pixel-true box of 10 <= column <= 14, 5 <= row <= 6 is 9.5..14.5, 4.5..6.5.
LOW = Box("nodule", 0.75, WORLD, 5.0, (1, 3), "1.2.2", (9.5, 4.5, 14.5, 6.5))
HIGH = Box("mass", 0.5, WORLD, 5.0, (3, 4), "1.2.4", (20.0, 20.0, 30.0, 24.0))
UNPLACED = Box("nodule", 0.25, WORLD, 5.0, (0, 5), "1.2.4", None)


def volume_of(z_indices=range(6), uids=True, **changes) -> Volume:
    slices = tuple(SourceSlice(f"1.2.{k}", float(z)) for k, z in enumerate(z_indices))
    values = {"voxels": np.zeros(GEOMETRY.shape_zyx, np.int16), "geometry": GEOMETRY}
    return Volume(**(values | {"slices": slices if uids else ()} | changes))


@pytest.fixture
def findings(make_findings):
    return make_findings(GEOMETRY, names=("nodule", "mass"), boxes=(LOW, HIGH, UNPLACED), masks=())


def test_a_box_lies_on_all_slices_from_its_first_to_its_last(findings):
    found = boxes_by_slice(findings, volume_of())
    assert [(at.sop_instance_uid, [box.finding for box in at.boxes]) for at in found] == [
        ("1.2.1", [1]), ("1.2.2", [1]), ("1.2.3", [1, 2]), ("1.2.4", [2]),
    ]  # fmt: skip
    assert {at.name for at in found} == {f"1.2.{k}" for k in (1, 2, 3, 4)}
    assert found[0].file_name == "1.2.1.dcm"
    assert (found[0].slice, found[0].width, found[0].height) == (1, 40, 30)


def test_of_uneven_slices_those_within_reach_and_the_key_slice_count(findings):
    found = boxes_by_slice(findings, volume_of((0.0, 2.4, 5.0)))
    assert [(at.sop_instance_uid, [box.finding for box in at.boxes]) for at in found] == [
        ("1.2.1", [1]), ("1.2.2", [1]),
    ]  # fmt: skip


def test_of_frames_that_share_a_uid_one_is_the_key_slice_and_each_has_its_own_name(make_findings):
    box = Box("nodule", 0.75, WORLD, 5.0, (1, 3), "1.2.9", (9.5, 4.5, 14.5, 6.5))
    findings = make_findings(GEOMETRY, names=("nodule",), boxes=(box,), masks=())
    slices = tuple(SourceSlice("1.2.9", float(z), frame=6 - z) for z in range(6))
    found = boxes_by_slice(findings, volume_of(slices=slices))
    assert [(at.name, at.frame) for at in found] == [("1.2.9-5", 5), ("1.2.9-4", 4), ("1.2.9-3", 3)]
    assert [at.boxes[0].is_key for at in found] == [False, True, False]
    assert {at.file_name for at in found} == {"1.2.9.dcm"}


@pytest.mark.parametrize("uid", ["", "../../etc/passwd", "1.2.x"])
def test_without_a_sound_uid_a_slice_is_named_by_its_number(findings, uid):
    slices = (SourceSlice(uid, 2.0),) if uid else ()
    names = {at.name for at in boxes_by_slice(findings, volume_of(slices=slices))}
    assert names == ({"0002"} if uid else {"0001", "0002", "0003", "0004"})


def test_a_single_image_keeps_its_name(make_findings):
    image = Geometry.from_spacing((1, 30, 40), (1, 1, 1))
    box = Box("nodule", 1.0, WORLD, 5.0, (0, 0), "", (1.0, 1.0, 3.0, 3.0))
    findings = make_findings(image, source="a/one.png", boxes=(box,), masks=())
    volume = Volume(np.zeros(image.shape_zyx, np.uint8), image)
    (at,) = boxes_by_slice(findings, volume)
    assert (at.name, at.file_name) == ("one", "a/one.png")


@pytest.mark.parametrize(
    ("box_px", "expected"),
    [
        ((9.5, 4.5, 14.5, 6.5), (10, 5, 14, 6)),  # pixel-true
        ((9.4, 4.6, 14.6, 6.4), (10, 5, 14, 6)),  # edges go to the nearest edges of pixels
        ((9.1, 4.0, 14.0, 6.9), (10, 4, 14, 6)),
        ((9.6, 4.5, 9.9, 6.5), (9, 5, 10, 6)),  # at least two pixels
        ((9.6, 4.5, 10.1, 5.5), (9, 5, 10, 6)),
        ((-3.0, -9.0, 2.0, 99.0), (0, 0, 2, 29)),  # within the image
        ((50.0, 4.0, 60.0, 5.0), (38, 4, 39, 5)),
    ],
)
def test_voc_counts_pixels_whose_centres_lie_in_the_box(box_px, expected):
    assert whole_pixels(box_px, (40, 30)) == expected


@given(
    st.integers(0, 39), st.integers(0, 39), st.integers(0, 29), st.integers(0, 29),
    st.floats(-0.49, 0.49),
)  # fmt: skip
def test_whole_pixels_undo_the_half_pixel_of_the_conventions(a, b, c, d, off):
    (xmin, xmax), (ymin, ymax) = sorted((a, b)), sorted((c, d))
    assume(xmin < xmax and ymin < ymax)
    box = (xmin - 0.5 + off, ymin - 0.5 - off, xmax + 0.5 + off, ymax + 0.5 - off)
    assert whole_pixels(box, (40, 30)) == (xmin, ymin, xmax, ymax)


def test_voc_says_where_what_and_how_sure(findings, tmp_path):
    (at,) = (at for at in boxes_by_slice(findings, volume_of()) if len(at.boxes) == 2)
    write_voc(at, tmp_path / "a.xml", folder="1.2")
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert root.findtext("folder") == "1.2"
    assert root.findtext("filename") == "1.2.3.dcm"
    assert [root.findtext(f"size/{n}") for n in ("width", "height", "depth")] == ["40", "30", "1"]
    said = [
        (o.findtext("name"), float(o.findtext("score")), [int(n.text) for n in o.find("bndbox")])
        for o in root.iter("object")
    ]
    assert said == [("nodule", 0.75, [10, 5, 14, 6]), ("mass", 0.5, [20, 20, 30, 24])]
    assert [n.tag for n in root.find("object/bndbox")] == ["xmin", "ymin", "xmax", "ymax"]


def test_voc_holds_any_label_as_text(make_findings, tmp_path):
    label = "<a>&\x00\x1b\udcff]]>"
    box = Box(label, 1.0, WORLD, 5.0, (2, 2), "", (1.0, 1.0, 3.0, 3.0))
    (at,) = boxes_by_slice(make_findings(GEOMETRY, boxes=(box,)), volume_of(uids=False))
    write_voc(at, tmp_path / "a.xml")
    assert ElementTree.parse(tmp_path / "a.xml").findtext("object/name") == "<a>&???]]>"


def test_coco_has_an_image_per_slice_and_boxes_from_its_corner(findings, tmp_path):
    slices = [("1.2", at) for at in boxes_by_slice(findings, volume_of())]
    labels = (Label(1, "nodule"), Label(2, "mass"))
    write_coco(slices, labels, tmp_path / "coco.json", description="of a model")
    content = json.loads((tmp_path / "coco.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "nodule"}, {"id": 2, "name": "mass"}]
    assert content["images"][2] == {
        "id": 3, "file_name": "1.2.3.dcm", "width": 40, "height": 30,
        "series": "1.2", "slice": 3, "sop_instance_uid": "1.2.3",
    }  # fmt: skip
    assert [(a["image_id"], a["category_id"], a["finding"]) for a in content["annotations"]] == [
        (1, 1, 1), (2, 1, 1), (3, 1, 1), (3, 2, 2), (4, 2, 2),
    ]  # fmt: skip
    assert content["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [10.0, 5.0, 5.0, 2.0], "area": 10.0,
        "iscrowd": 0, "score": 0.75, "finding": 1,
    }  # fmt: skip


def test_coco_without_findings_is_a_file_too(tmp_path):
    write_coco([], (Label(1, "nodule"),), tmp_path / "coco.json")
    content = json.loads((tmp_path / "coco.json").read_text())
    assert (content["images"], content["annotations"]) == ([], [])
