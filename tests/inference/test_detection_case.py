"""A detection runs through the same Model: tiles and slices leave no trace in its boxes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastmed.boxes import WEIGHTS_2D, WEIGHTS_3D, encode
from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.inference.case import Model
from fastmed.inference.engines import NetworkEngine
from fastmed.spec import Detection, Label, Spec
from fastmed.tasks.candidates import default_boxes_of
from fastmed.volume import SourceSlice, Volume

NODULES = Spec(
    name="nodules",
    task="detection",
    labels=(Label(1, "nodule"),),
    spacing_mm_zyx=(2.0, 1.0, 1.0),
    window_hu=(-1000.0, 0.0),
    tile_zyx=(24, 32, 32),
    overlap=0.5,
    size_multiple=8,
    detection=Detection(strides=(4, 8), diameters_mm=((6.0, 8.0), (10.0, 12.0))),
)
SLICES = replace(
    NODULES,
    spacing_mm_zyx=None,
    size_zyx=(1, 300, 300),
    dimensions=2,
    tile_zyx=None,
    detection=Detection(),
)


class Blobs(nn.Module):
    """Finds the bright boxes of an image, each as far as it sees it: cut where the image ends.

    Every default box whose centre lies in a bright box says that box, all with the same score.
    """

    def __init__(self, spec: Spec, size: tuple[int, ...] | None = None):
        super().__init__()
        self.spec, self.calls = spec, []

    def forward(self, x):
        from scipy import ndimage

        self.calls.append(tuple(x.shape))
        k = self.spec.dimensions
        defaults = default_boxes_of(self.spec, tuple(x.shape[-3:]))
        weights = WEIGHTS_3D if k == 3 else WEIGHTS_2D
        middle = (defaults[:, :k] + defaults[:, k:]) / 2
        output = torch.zeros(len(x), len(defaults), 2 * k + 2)
        output[..., -1] = -9.0
        for item, image in zip(output, x[:, x.shape[1] // 2], strict=True):
            pieces, _ = ndimage.label(image.numpy() > 0.5)
            for found in ndimage.find_objects(pieces):
                low = torch.tensor([axis.start - 0.5 for axis in reversed(found)])
                high = torch.tensor([axis.stop - 0.5 for axis in reversed(found)])
                inside = ((middle > low) & (middle < high)).all(-1)
                item[inside, : 2 * k] = encode(torch.cat([low, high]), defaults[inside], weights)
                item[inside, -1] = 2.0
        return output


def scan_of(boxes, shape=(40, 70, 80), spacing=(2.0, 1.0, 1.0), **fields) -> Volume:
    """A scan at -900 HU with boxes (x1, y1, z1, x2, y2, z2) of its voxels, ends excluded, at 0."""
    hu = np.full(shape, -900, np.int16)
    for x1, y1, z1, x2, y2, z2 in boxes:
        hu[z1:z2, y1:y2, x1:x2] = 0
    geometry = Geometry.from_spacing(shape, spacing, (-10.0, 20.0, 5.0))
    return Volume(hu, geometry, name="scan", source="a/scan", **fields)


def model_of(spec, batch=None, network=None) -> Model:
    return Model(spec, NetworkEngine(network or Blobs(spec), spec, "cpu"), batch=batch)


def in_voxels(findings) -> list[tuple]:
    """Boxes as `scan_of` takes them, in their order along z, y, x."""
    geometry = findings.geometry
    corners = np.array([box.box_lps_mm for box in findings.boxes]).reshape(-1, 2, 3)
    index = geometry.to_index(corners)[..., ::-1].reshape(-1, 6) + 0.5
    return sorted(map(tuple, np.round(index, 3).tolist()), key=lambda box: box[::-1])


# No larger than half a tile, 12 x 16 x 16 voxels, at every place relative to the tiles' borders.
MANY = [
    (x, y, z, x + 8 + z % 5, y + 8 + x % 7, z + 6 + y % 5)
    for z in (0, 11, 22, 33)
    for y in (1, 19, 37, 54)
    for x in (0, 17, 33, 50, 65)
]
MANY = [tuple(min(end, n) for end, n in zip(box, (80, 70, 40) * 2, strict=True)) for box in MANY]


@pytest.mark.parametrize("overlap", [0.5, 0.6, 0.75])
@pytest.mark.parametrize("batch", [1, 3])
def test_findings_that_tiles_cut_come_out_once_and_whole(overlap, batch):
    spec = replace(NODULES, overlap=overlap)
    findings = model_of(spec, batch)(scan_of(MANY))
    expected = sorted((tuple(map(float, box)) for box in MANY), key=lambda box: box[::-1])
    np.testing.assert_allclose(in_voxels(findings), expected, atol=2e-3)


@pytest.mark.parametrize("shift", range(0, 24, 3))
def test_a_finding_on_the_border_of_what_two_tiles_own_is_found_once(shift):
    # Tiles of 32 with a step of 16 own up to x = 23.5, 39.5, ...
    box = (10 + shift, 30, 10, 20 + shift, 40, 18)
    assert len(model_of(NODULES)(scan_of([box])).boxes) == 1


class Astray(Blobs):
    """Draws each box 0.75 voxels nearer to the border of its tile: neighbours disagree by 1.5."""

    def forward(self, x):
        output = super().forward(x)
        defaults = default_boxes_of(self.spec, tuple(x.shape[-3:]))
        aside = torch.sign((defaults[:, 0] + defaults[:, 3]) / 2 - 15.5) * 0.75
        output[..., 0] += 10 * aside / (defaults[:, 3] - defaults[:, 0])
        return output


@pytest.mark.parametrize("x", [17, 18, 19, 20])
def test_tiles_that_disagree_about_a_centre_do_not_both_disown_it(x):
    box = (x, 30, 10, x + 10, 40, 18)
    assert len(model_of(NODULES, network=Astray(NODULES))(scan_of([box])).boxes) == 1


@pytest.mark.parametrize("shape", [(5, 70, 80), (40, 9, 11), (3, 3, 3)], ids=str)
def test_a_scan_shorter_than_a_tile_is_extended_and_nothing_is_found_beyond_it(shape):
    z, y, x = (n // 3 for n in shape)
    box = (x, y, z, min(x + 10, shape[2]), min(y + 8, shape[1]), min(z + 6, shape[0]))
    model = model_of(NODULES)
    findings = model(scan_of([box], shape))
    assert in_voxels(findings) == [tuple(map(float, box))]
    assert all(size % 8 == 0 for call in model.engine._network.calls for size in call[2:])


def test_tiles_that_nothing_reaches_never_meet_the_network_and_hold_nothing():
    volume = scan_of([(5, 5, 5, 13, 13, 11)])
    volume.voxels[:, :, 40:] = -1000
    model = model_of(replace(NODULES, detection=replace(NODULES.detection, score_threshold=0.0)))
    findings = model(volume)
    assert sum(box.score > 0.5 for box in findings.boxes) == 1
    assert 0 < len(model.engine._network.calls) < 3 * 4 * 4
    volume.voxels[:] = -1000
    assert model(volume).boxes == ()


def test_a_finding_says_where_it_lies_in_the_patient_and_on_the_scan():
    slices = tuple(SourceSlice(f"1.{k}", float(k)) for k in range(40))
    volume = scan_of([(30, 20, 11, 40, 28, 17)], slices=slices, warnings=("mended",))
    findings = model_of(NODULES)(volume)
    (box,) = findings.boxes
    assert (findings.labels, findings.masks, findings.scores) == (None, (), ())
    assert (findings.series, findings.model, findings.warnings) == ("scan", "nodules", ("mended",))
    assert box.label == "nodule"
    assert box.score == pytest.approx(1 / (1 + np.exp(-2.0)))
    # Voxels 30..39 of 1 mm from x = -10 mm, 20..27 from y = 20 mm, 11..16 of 2 mm from z = 5 mm.
    np.testing.assert_allclose(box.box_lps_mm, (19.5, 39.5, 26, 29.5, 47.5, 38), atol=2e-3)
    assert box.diameter_mm == pytest.approx((10 + 8 + 12) / 3, abs=1e-3)
    assert box.slices == (11, 16)
    assert box.key_sop_instance_uid in ("1.13", "1.14")
    np.testing.assert_allclose(box.key_box_px, (29.5, 19.5, 39.5, 27.5), atol=2e-3)


def test_a_scan_seen_from_the_other_side_has_the_same_box_on_its_own_slices():
    volume = scan_of([(30, 20, 11, 40, 28, 17)])
    steps = volume.geometry.steps_lps_mm * [[-1], [1], [-1]]
    last = volume.geometry.to_world((39, 0, 79))
    turned = Volume(
        np.ascontiguousarray(volume.voxels[::-1, :, ::-1]),
        Geometry.from_axes(volume.voxels.shape, last, steps),
    )
    (box,), (expected,) = model_of(NODULES)(turned).boxes, model_of(NODULES)(volume).boxes
    np.testing.assert_allclose(box.box_lps_mm, expected.box_lps_mm, atol=1e-6)
    assert box.slices == (40 - 17, 39 - 11)
    np.testing.assert_allclose(box.key_box_px, (39.5, 19.5, 49.5, 27.5), atol=2e-3)


def test_boxes_come_by_falling_score_and_no_more_than_asked_for():
    class Ranked(Blobs):
        def forward(self, x):
            output = super().forward(x)
            found = output[..., -1] > 0
            output[..., -1][found] = output[..., 0].abs()[found] / 100
            return output

    spec = replace(NODULES, detection=replace(NODULES.detection, max_boxes=7))
    scores = [box.score for box in model_of(spec, network=Ranked(spec))(scan_of(MANY)).boxes]
    assert len(scores) == 7
    assert scores == sorted(scores, reverse=True)


def test_joined_boxes_of_slices_come_by_falling_score_too():
    class Bright(Blobs):
        def forward(self, x):
            output = super().forward(x)
            found = output[..., -1] > 0
            output[..., -1][found] = x.amax((1, 2, 3))[:, None].expand_as(found)[found]
            return output

    volume = on_slices((40, 30, 1, 80, 60, 2), (40, 30, 5, 80, 60, 6))
    volume.voxels[1][volume.voxels[1] == 0] = -300
    found = model_of(SLICES, network=Bright(SLICES))(volume).boxes
    assert [box.slices for box in found] == [(5, 5), (1, 1)]
    assert found[0].score > found[1].score


def test_what_is_found_on_the_grid_of_a_tilted_scan_beside_the_scan_itself_is_nothing():
    class Everywhere(Blobs):
        def forward(self, x):
            defaults = default_boxes_of(self.spec, tuple(x.shape[-3:]))
            output = torch.zeros(len(x), len(defaults), 8)
            output[..., 6:] = torch.tensor([0.0, 2.0])
            return output

    volume = scan_of([(5, 5, 5, 75, 65, 35)])
    steps = volume.geometry.steps_lps_mm.copy()
    steps[0] -= (0.0, 1.5, 0.0)
    geometry = Geometry.from_axes(volume.voxels.shape, (-10.0, 20.0, 5.0), steps)
    tilted = replace(volume, geometry=geometry)
    found = model_of(NODULES, network=Everywhere(NODULES))(tilted).boxes
    assert len(found) > 10
    for box in found:
        x1, y1, z1, x2, y2, z2 = box.box_lps_mm
        corners = [(x, y, z) for x in (x1, x2) for y in (y1, y2) for z in (z1, z2)]
        index = geometry.to_index(corners)
        assert (index.max(axis=0) > -0.5).all()
        assert (index.min(axis=0) < np.array(geometry.shape_zyx) - 0.5).all()


class Noise(nn.Module):
    """Says of each image what only that image decides: many boxes, of all scores."""

    def __init__(self, spec, labels=1):
        super().__init__()
        self.spec, self.labels = spec, labels

    def forward(self, x):
        defaults = default_boxes_of(self.spec, tuple(x.shape[-3:]))
        width = 2 * self.spec.dimensions + 1 + self.labels
        outputs = []
        for image in x:
            generator = torch.Generator().manual_seed(int(image.sum() * 1000) % 2**31)
            outputs.append(torch.randn(len(defaults), width, generator=generator))
        return torch.stack(outputs)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("spec", [NODULES, SLICES], ids=["tiles", "slices"])
def test_a_call_picks_as_it_goes_and_finds_what_all_that_the_network_said_holds(spec, threshold):
    volume = scan_of([(5, 5, 5, 13, 13, 11)], (30, 50, 60))
    volume.voxels[:, :, 35:] = -1000  # void where it is tiles
    detection = replace(spec.detection, score_threshold=threshold)
    spec = replace(spec, detection=detection, labels=(Label(1, "a"), Label(2, "b")))
    model = model_of(spec, network=Noise(spec, labels=2))
    raw, grid = model.see(volume)
    found, expected = model(volume).boxes, model.decode(raw, grid, volume).boxes
    assert found == expected
    assert (len(found) > 5) == (threshold < 1)


class Fixed(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output.expand(len(x), *self.output.shape[1:])


N_TILE = len(default_boxes_of(NODULES))
WRONG = {
    "axes": (NODULES, (1, 8), "returned boxes of 2 axes; those of a detection have 3"),
    "default boxes": (
        NODULES,
        (1, N_TILE + 1, 8),
        rf"for {N_TILE + 1} default boxes; bundle.toml's \[detection\] strides and .* {N_TILE}",
    ),
    "classes": (NODULES, (1, N_TILE, 9), "returns 9 numbers .* names 1 labels and the background"),
    "code of 2 dimensions": (NODULES, (1, N_TILE, 6), "returns 6 numbers"),
    "default boxes of slices": (SLICES, (1, 8000, 6), r"\[grid\] size_zyx"),
}


@pytest.mark.parametrize(("spec", "shape", "words"), WRONG.values(), ids=WRONG)
def test_outputs_of_another_network_fail_the_series_and_name_the_entry(spec, shape, words):
    with pytest.raises(SeriesError, match=words):
        model_of(spec, network=Fixed(torch.zeros(shape)))(scan_of([], (24, 32, 32)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [0, 7])
def test_outputs_that_are_not_finite_fail_the_series(value, column):
    output = torch.zeros(1, N_TILE, 8)
    output[0, 5, 7] = 1.0  # the code of what the network is not sure of is never read
    output[0, 5, column] = value
    with pytest.raises(SeriesError, match="not finite"):
        model_of(NODULES, network=Fixed(output))(scan_of([], (24, 32, 32)))


def on_slices(*boxes, shape=(9, 150, 200)):
    return scan_of(boxes, shape, (3.0, 0.8, 0.7))


@pytest.mark.parametrize("batch", [1, 4])
def test_boxes_on_slices_join_into_one_where_they_overlap(batch):
    volume = on_slices((40, 30, 2, 80, 60, 5), (120, 90, 4, 150, 120, 5), (40, 30, 7, 80, 60, 8))
    model = model_of(SLICES, batch)
    findings = model(volume)
    assert {call[1:] for call in model.engine._network.calls} == {(1, 300, 300)}
    boxes = sorted(findings.boxes, key=lambda box: (box.slices, box.box_lps_mm))
    assert [box.slices for box in boxes] == [(2, 4), (4, 4), (7, 7)]
    np.testing.assert_allclose(boxes[0].key_box_px, (39.5, 29.5, 79.5, 59.5), atol=0.51)
    x1, _, z1, x2, _, z2 = boxes[0].box_lps_mm
    assert (z1, z2) == pytest.approx((5 + 1.5 * 3, 5 + 4.5 * 3))
    assert (x1, x2) == pytest.approx((-10 + 39.5 * 0.7, -10 + 79.5 * 0.7), abs=0.5)
    assert boxes[0].diameter_mm == pytest.approx((28 + 24 + 9) / 3, abs=0.5)
    assert boxes[1].diameter_mm == pytest.approx((21 + 24) / 2, abs=0.5)  # of the two in the plane


def test_a_slice_that_the_network_missed_does_not_break_a_finding():
    boxes = [(40, 30, z, 80, 60, z + 1) for z in (2, 4, 7)]
    found = sorted(box.slices for box in model_of(SLICES)(on_slices(*boxes)).boxes)
    assert found == [(2, 4), (7, 7)]


def test_a_single_grey_image_has_boxes_in_its_own_pixels():
    spec = replace(SLICES, modality="grey")
    volume = scan_of([(40, 30, 0, 80, 60, 1), (90, 30, 0, 120, 61, 1)], (1, 150, 200))
    boxes = model_of(spec)(volume).boxes
    assert len(boxes) == 2
    for box in boxes:
        x1, y1, z1, x2, y2, z2 = box.box_lps_mm
        assert (z1, z2) == (-0.5, 0.5)
        assert (x1, y1, x2, y2) == box.key_box_px
        assert box.diameter_mm == pytest.approx((x2 - x1 + y2 - y1) / 2)
        assert box.slices == (0, 0)


def test_a_slice_is_seen_between_its_neighbours_and_the_outermost_repeats():
    seen = []

    class Look(Fixed):
        def forward(self, x):
            seen.append(x[0, :, 0, 0].clone())
            return super().forward(x)

    spec = replace(SLICES, slices=5, window_hu=(0.0, 10.0))
    volume = scan_of([], (4, 20, 20))
    volume.voxels[:] = np.arange(4)[:, None, None]
    model_of(spec, network=Look(torch.zeros(1, 8732, 6)))(volume)
    middle = [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]
    torch.testing.assert_close(torch.stack(seen), torch.tensor(middle) / 10.0)


class Channels(nn.Module):
    """Takes images of so many channels and finds nothing."""

    def __init__(self, channels):
        super().__init__()
        self.stem, self.seen = nn.Conv2d(channels, 1, 1), []

    def forward(self, x):
        self.seen.append(x)
        return torch.zeros(len(x), 8732, 6)


def test_a_network_of_three_channels_sees_a_grey_slice_in_each():
    network = Channels(3)
    model_of(SLICES, network=network)(on_slices((40, 30, 2, 80, 60, 5)))
    assert all(x.shape == (1, 3, 300, 300) for x in network.seen)
    assert all((x == x[:, :1]).all() for x in network.seen)


def test_slices_that_are_not_as_many_as_the_networks_channels_fail_the_series():
    with pytest.raises(SeriesError, match=r"images of 3 channels; .* slices gives 5"):
        model_of(replace(SLICES, slices=5), network=Channels(3))(on_slices())


def test_slices_of_a_tilted_scan_are_its_own():
    volume = on_slices((40, 30, 2, 80, 60, 5))
    steps = volume.geometry.steps_lps_mm.copy()
    steps[0] += (0.0, 1.0, 0.0)  # each slice 1 mm further back: a tilt of 18 degrees
    tilted = replace(
        volume, geometry=Geometry.from_axes(volume.voxels.shape, (-10.0, 20.0, 5.0), steps)
    )
    (box,), (upright,) = model_of(SLICES)(tilted).boxes, model_of(SLICES)(volume).boxes
    assert box.slices == upright.slices
    np.testing.assert_allclose(box.key_box_px, upright.key_box_px, atol=1e-6)
