"""preview.png of a detection: frames around what was found, never over it, at its place."""

import numpy as np
import pytest
from PIL import Image

from fastmed.findings import Box
from fastmed.geometry import Geometry
from fastmed.spec import Label
from fastmed.volume import Volume
from fastmed.writers.box_picture import boxed_image_picture, boxed_planes_picture
from fastmed.writers.images import write_preview
from fastmed.writers.palette import label_color

pytest.importorskip("fastmed.ops")

WINDOW = (-1000.0, 400.0)
UPRIGHT = Geometry.from_spacing((60, 50, 70), (3.0, 2.0, 2.0), (-70.0, -50.0, -90.0))
LEFT_FRONT_HEAD = np.array([35.0, -20.0, 45.0])
ORANGE = label_color(1)


def _same_space(name: str) -> Geometry:
    z, y, x = UPRIGHT.steps_lps_mm
    if name == "flipped":
        last = np.array(UPRIGHT.shape_zyx) - 1
        return Geometry.from_axes(UPRIGHT.shape_zyx, UPRIGHT.to_world(last), (-z, -y, -x))
    if name == "tilted":
        return Geometry.from_axes((50, 50, 70), (-70, -50, -75), (z, y + 0.2 * z, x))
    return UPRIGHT


def _scan(geometry: Geometry, centre, radius_mm: float) -> Volume:
    """Lung-like dark everywhere in a body of water, with one bright ball."""
    world = geometry.to_world(np.stack(np.indices(geometry.shape_zyx), axis=-1))
    hu = np.where((np.abs(world) < (64, 44, 80)).all(axis=-1), -700, -1000)
    hu[np.linalg.norm(world - centre, axis=-1) < radius_mm] = 400
    return Volume(hu.astype(np.int16), geometry)


def _box(centre, diameter_mm: float, score=0.9) -> Box:
    half = diameter_mm / 2
    return Box("nodule", score, (*(centre - half), *(centre + half)), diameter_mm, (0, 0))


def _picture(volume, findings, window=WINDOW, draw=boxed_planes_picture) -> np.ndarray:
    return np.asarray(draw(volume, findings, window, 0.05)[0]).astype(int)


def _is(picture: np.ndarray, color) -> np.ndarray:
    return (np.abs(picture - np.array(color)) < 4).all(axis=-1)


@pytest.mark.parametrize("name", ["upright", "flipped", "tilted"])
def test_a_frame_goes_around_the_finding_in_each_plane_and_from_near(name, make_findings):
    geometry = _same_space(name)
    volume = _scan(geometry, LEFT_FRONT_HEAD, 9.0)
    boxes = (_box(LEFT_FRONT_HEAD, 18.0),)
    findings = make_findings(geometry, classes=(Label(1, "nodule"),), masks=(), boxes=boxes)
    picture = _picture(volume, findings)
    orange, white = _is(picture, ORANGE), picture.min(axis=-1) >= 250
    frames = _frames(orange)
    assert len(frames) == 6  # three planes, and three squares from near
    for rows, columns in frames:
        inside = white[rows, columns]
        assert inside.mean() > 0.3, "the ball fills the frame"
        edge = np.concatenate([inside[2], inside[-3], inside[:, 2], inside[:, -3]])
        assert not edge.any(), "and touches it nowhere"
        offset = np.argwhere(inside).mean(axis=0) - (np.array(inside.shape) - 1) / 2
        assert np.abs(offset).max() < 2, "and lies in its middle"


def _frames(orange: np.ndarray) -> list:
    from scipy import ndimage

    labels, _ = ndimage.label(orange, np.ones((3, 3)))
    return [s for s in ndimage.find_objects(labels) if min(np.ptp(_ends(s), axis=1)) > 15]


def _ends(slices):
    return [(s.start, s.stop) for s in slices]


def test_six_findings_are_shown_from_near_and_the_others_counted(make_findings):
    volume = _scan(UPRIGHT, LEFT_FRONT_HEAD, 9.0)
    places = [LEFT_FRONT_HEAD - np.array((12.0 * k, 0, 15.0 * k)) for k in range(8)]
    boxes = tuple(_box(place, 10.0, 0.9 - 0.1 * k) for k, place in enumerate(places))
    classes = (Label(1, "nodule"),)
    few = make_findings(UPRIGHT, classes=classes, masks=(), boxes=boxes[:6])
    many = make_findings(UPRIGHT, classes=classes, masks=(), boxes=boxes)
    first, second = _picture(volume, few), _picture(volume, many)
    assert first.shape == second.shape
    differing = np.argwhere((first != second).any(axis=-1))
    assert differing[:, 0].min() > first.shape[0] - 50  # the sentence at the bottom alone


def test_without_findings_the_middle_of_the_scan_is_shown_and_the_threshold_named(
    make_findings, tmp_path
):
    volume = _scan(UPRIGHT, LEFT_FRONT_HEAD, 9.0)
    findings = make_findings(UPRIGHT, masks=(), labels=None, names=())
    for name, threshold in (("a", 0.05), ("b", 0.25)):
        path = tmp_path / f"{name}.png"
        write_preview(volume, findings, path, window_hu=WINDOW, score_threshold=threshold)
    first, second = (np.asarray(Image.open(tmp_path / f"{n}.png")).astype(int) for n in "ab")
    assert not _is(first, ORANGE).any()
    differing = np.argwhere((first != second).any(axis=-1))
    assert len(differing)
    assert differing[:, 0].min() > first.shape[0] - 50


def test_a_finding_beside_the_body_or_outside_the_scan_is_no_error(make_findings):
    volume = _scan(UPRIGHT, LEFT_FRONT_HEAD, 9.0)
    for place in ((-69.0, 49.0, -89.0), (500.0, 0.0, 0.0), (0.0, 0.0, 900.0)):
        boxes = (_box(np.array(place), 8.0), _box(LEFT_FRONT_HEAD, 300.0))
        findings = make_findings(UPRIGHT, masks=(), boxes=boxes)
        assert _picture(volume, findings).shape[1] < 2000


def test_a_box_on_a_grey_image_lies_on_its_pixels(make_findings):
    image = Geometry.from_spacing((1, 100, 140), (1, 1, 1))
    voxels = np.zeros(image.shape_zyx, np.uint8)
    voxels[0, 20:40, 90:120] = 255
    box = Box("lesion", 0.5, (90, 20, 0, 119, 39, 0), 25.0, (0, 0), "", (89.5, 19.5, 119.5, 39.5))
    findings = make_findings(
        image, modality="grey", masks=(), classes=(Label(1, "lesion"),), boxes=(box,)
    )
    picture = _picture(Volume(voxels, image), findings, (0.0, 255.0), boxed_image_picture)
    ((rows, columns),) = _frames(_is(picture, ORANGE))
    frame = picture[rows, columns].min(axis=-1)
    assert frame[6:-6, 6:-6].min() >= 250
    assert all(side[2:-2].max() < 200 for side in (frame[2], frame[-3], *frame.T[[2, -3]]))


def test_the_same_boxes_give_the_same_bytes(make_findings, tmp_path):
    volume = _scan(UPRIGHT, LEFT_FRONT_HEAD, 9.0)
    findings = make_findings(UPRIGHT, masks=(), boxes=(_box(LEFT_FRONT_HEAD, 18.0),))
    for name in ("a.png", "b.png"):
        write_preview(volume, findings, tmp_path / name, window_hu=WINDOW, score_threshold=0.05)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
