"""preview.png shows the patient the right way round, at one scale, in true space."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from fastmed.geometry import Geometry
from fastmed.volume import Volume
from fastmed.writers.images import write_preview
from fastmed.writers.legend import legend_rows
from fastmed.writers.palette import label_color
from fastmed.writers.planes import cut_planes, field_of_view

pytest.importorskip("fastmed.ops")

_UPRIGHT = Geometry.from_spacing((60, 50, 70), (3.0, 2.0, 2.0), (-70.0, -50.0, -90.0))
_WINDOW = (-160.0, 240.0)


def _same_space(name: str) -> Geometry:
    """A grid over the space of _UPRIGHT that stores it in another order."""
    z, y, x = _UPRIGHT.steps_lps_mm
    last = np.array(_UPRIGHT.shape_zyx) - 1
    if name == "flipped":
        return Geometry.from_axes(_UPRIGHT.shape_zyx, _UPRIGHT.to_world(last), (-z, -y, -x))
    if name == "sagittal":
        start = _UPRIGHT.to_world((last[0], 0, 0))
        return Geometry.from_axes((70, 60, 50), start, (x, -z, y))
    if name == "tilted":
        return Geometry.from_axes((50, 50, 70), (-70, -50, -75), (z, y + 0.2 * z, x))
    return _UPRIGHT


def _ball(geometry: Geometry, centre_lps_mm, radius_mm: float) -> np.ndarray:
    index = np.stack(np.indices(geometry.shape_zyx), axis=-1)
    return np.linalg.norm(geometry.to_world(index) - centre_lps_mm, axis=-1) < radius_mm


def _scan(geometry: Geometry, ball_lps_mm=None, radius_mm=12.0):
    """A block of water with a bright ball; its voxels, and the ball as a mask."""
    index = np.stack(np.indices(geometry.shape_zyx), axis=-1)
    world = geometry.to_world(index)
    stored = np.where((np.abs(world) < (64, 44, 80)).all(axis=-1), 1024, 0).astype(np.uint16)
    mask = np.zeros(geometry.shape_zyx, dtype=bool)
    if ball_lps_mm is not None:
        mask = _ball(geometry, ball_lps_mm, radius_mm)
        stored[mask] = 1324
    return Volume(stored, geometry, 1.0, -1024.0), mask


def _planes(volume, findings, pixel_mm=2.0):
    field, centre = field_of_view(volume, findings)
    return cut_planes(
        volume, findings, field, centre, pixel_mm=pixel_mm, window_hu=_WINDOW, label_detail=2
    )


def _side(bright: np.ndarray) -> tuple[float, float]:
    """Where the true pixels lie: (right, down), from -1 to 1."""
    down, right = np.argwhere(bright).mean(axis=0) / (np.array(bright.shape) - 1) * 2 - 1
    return right, down


@pytest.mark.parametrize("name", ["upright", "flipped", "sagittal", "tilted"])
def test_left_is_right_front_and_head_are_up(name, make_findings):
    geometry = _same_space(name)
    left, front, head = 35.0, -25.0, 45.0
    volume, mask = _scan(geometry, (left, front, head))
    axial, coronal, sagittal = _planes(volume, make_findings(geometry, mask.astype(np.uint8)))
    for plane, (goes_right, goes_down) in (
        (axial, (left / 64, front / 44)),
        (coronal, (left / 64, -head / 80)),
        (sagittal, (front / 44, -head / 80)),
    ):
        for picture in (plane.gray == 255, plane.labels == 1):
            right, down = _side(picture)
            assert right * goes_right > 0.05, plane.name
            assert down * goes_down > 0.05, plane.name
    assert [plane.letters for plane in (axial, coronal, sagittal)] == ["RLAP", "RLHF", "APHF"]


@pytest.mark.parametrize("name", ["upright", "sagittal", "tilted"])
def test_a_ball_stays_round_and_has_its_size(name, make_findings):
    geometry = _same_space(name)
    volume, mask = _scan(geometry, (10.0, 5.0, -20.0), radius_mm=20.0)
    planes = _planes(volume, make_findings(geometry, mask.astype(np.uint8)), pixel_mm=1.0)
    for plane in planes:
        bright = plane.gray > 200
        for axis in (0, 1):
            assert np.ptp(np.argwhere(bright)[:, axis]) + 1 == pytest.approx(40, abs=4)


def test_labels_lie_on_their_voxels(make_findings):
    volume, mask = _scan(_same_space("tilted"), (10.0, 5.0, -20.0), radius_mm=20.0)
    findings = make_findings(volume.geometry, mask.astype(np.uint8))
    for plane in _planes(volume, findings, pixel_mm=1.0):
        labelled = plane.labels[::2, ::2] == 1
        bright = plane.gray > 200
        assert (labelled & bright).sum() / (labelled | bright).sum() > 0.85


def test_a_finding_of_one_voxel_is_in_every_plane(make_findings):
    geometry = Geometry.from_spacing((150, 160, 170), (1.0, 1.0, 1.0))
    labels = np.zeros(geometry.shape_zyx, np.uint8)
    labels[101, 33, 67] = 2
    volume = Volume(np.zeros(geometry.shape_zyx, np.int16), geometry)
    for plane in _planes(volume, make_findings(geometry, labels), pixel_mm=1.0):
        assert (plane.labels == 2).sum() == 4


def test_a_long_scan_is_shown_around_its_findings(make_findings):
    geometry = Geometry.from_spacing((400, 40, 50), (5.0, 5.0, 5.0))
    labels = np.zeros(geometry.shape_zyx, np.uint8)
    labels[350:360, 10:20, 10:20] = 1
    volume = Volume(np.zeros(geometry.shape_zyx, np.int16), geometry)
    _, coronal, _ = _planes(volume, make_findings(geometry, labels), pixel_mm=5.0)
    assert coronal.gray.shape[0] < 80
    assert (coronal.labels == 1).any()


@pytest.mark.parametrize("shape", [(60, 50, 70), (1, 50, 70), (1, 1, 1), (3, 200, 2)])
def test_any_shape_gives_a_picture(shape, make_findings, tmp_path):
    geometry = Geometry.from_spacing(shape, (3.0, 2.0, 2.0))
    volume = Volume(np.full(shape, 40, np.int16), geometry)
    for findings in (make_findings(geometry), make_findings(geometry, np.zeros(shape, np.uint8))):
        write_preview(volume, findings, tmp_path / "preview.png")
        with Image.open(tmp_path / "preview.png") as picture:
            assert picture.format == "PNG"
            assert picture.width < 1800
            assert picture.height < 1800


def test_the_overlay_has_the_labels_colour_and_leaves_the_rest_gray(make_findings, tmp_path):
    volume, mask = _scan(_UPRIGHT, (0.0, 0.0, 0.0), radius_mm=25.0)
    findings = make_findings(_UPRIGHT, 2 * mask.astype(np.uint8))
    write_preview(volume, findings, tmp_path / "a.png")
    write_preview(volume, findings, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture).astype(int)
    assert (np.abs(pixels - label_color(2)).max(axis=-1) < 12).sum() > 300
    empty = make_findings(_UPRIGHT, np.zeros(_UPRIGHT.shape_zyx, np.uint8))
    write_preview(volume, empty, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture).astype(int)
    assert np.ptp(pixels, axis=-1).max() < 20


def test_nearby_labels_differ_in_colour():
    colors = np.array([label_color(value) for value in range(1, 119)])
    assert len(np.unique(colors, axis=0)) == 118
    assert min(np.abs(a - b).max() for a, b in pairwise(colors)) > 40


def test_the_legend_counts_what_has_no_room(make_findings):
    names = [f"structure number {k}" for k in range(118)]
    labels = np.arange(_UPRIGHT.shape_zyx[0] * 3500).reshape(_UPRIGHT.shape_zyx) % 119
    findings = make_findings(_UPRIGHT, labels.astype(np.uint8), names)
    rows = legend_rows(findings, 1000, 3)
    shown = [entry for row in rows for entry in row if entry.color]
    assert len(rows) == 3
    assert rows[-1][-1].name == f"and {118 - len(shown)} more"


def test_a_thumbnail_is_the_first_plane_and_always_the_same(make_findings, tmp_path):
    scan, mask = _scan(_UPRIGHT, (0, 0, 0))
    findings = make_findings(_UPRIGHT, mask.astype(np.uint8), names=("ball",))
    for name in ("one", "two"):
        write_preview(scan, findings, tmp_path / name / "preview.png", with_thumbnail=True)
    one, two = ((tmp_path / name / "thumb.jpg").read_bytes() for name in ("one", "two"))
    assert one == two
    with Image.open(tmp_path / "one" / "thumb.jpg") as picture:
        assert max(picture.size) == 192
        assert abs(picture.width / picture.height - 140 / 100) < 0.2  # x by y, of the axial plane
        middle = picture.getpixel((picture.width // 2, picture.height // 2))
    assert max(middle) - min(middle) > 40  # the ball, in its colour
