"""The spec of a detection is read back as it was written, and says what cannot be."""

import tomllib

import pytest
import tomli_w

from fastmed.spec import Detection, Label, Spec
from fastmed.spec_toml import spec_from_table, spec_to_table


def detection(**changes) -> Spec:
    values = {
        "name": "nodules",
        "task": "detection",
        "labels": (Label(1, "nodule"),),
        "spacing_mm_zyx": (2.0, 1.5, 1.5),
        "window_hu": (-1000.0, 400.0),
        "tile_zyx": (32, 64, 64),
        "detection": Detection(strides=(4, 8), diameters_mm=((4.0, 6.5), (10.0, 15.0))),
    }
    return Spec(**(values | changes))


FLAT = {
    "dimensions": 2,
    "tile_zyx": None,
    "spacing_mm_zyx": None,
    "size_zyx": (1, 300, 300),
    "slices": 3,
    "detection": Detection(score_threshold=0.01, iou_threshold=0.45, max_boxes=200),
}


@pytest.mark.parametrize("changes", [{}, FLAT], ids=["3d", "2d"])
def test_the_spec_of_a_detection_is_read_back_from_its_table_equal(changes):
    spec = detection(**changes)
    assert spec_from_table(tomllib.loads(tomli_w.dumps(spec_to_table(spec)))) == spec


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tile_zyx": None}, "tile_zyx"),
        ({"detection": None}, "detection"),
        ({"detection": Detection()}, "strides"),
        ({"slices": 3}, "slices"),
        (FLAT | {"slices": 2}, "slices"),
        (FLAT | {"tile_zyx": (1, 300, 300)}, "tile_zyx"),
        (FLAT | {"size_zyx": (3, 300, 300)}, "size_zyx"),
        ({"task": "segmentation"}, "detection"),
    ],
)
def test_a_spec_that_no_detection_can_have_names_its_field(changes, named):
    with pytest.raises(ValueError, match=named):
        detection(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"strides": (4,)}, "strides"),
        ({"strides": (0, 8)}, "strides"),
        ({"diameters_mm": ((4.0,), (8.0, 9.0))}, "diameters_mm"),
        ({"diameters_mm": ((4.0,), (-8.0,))}, "diameters_mm"),
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"iou_threshold": -0.1}, "iou_threshold"),
        ({"max_boxes": 0}, "max_boxes"),
    ],
)
def test_bad_settings_of_a_detection_name_their_field(changes, named):
    with pytest.raises(ValueError, match=named):
        Detection(**({"strides": (4, 8), "diameters_mm": ((4.0,), (8.0,))} | changes))
