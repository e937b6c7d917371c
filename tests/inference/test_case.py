"""One case: what the network saw comes out at the same place of the patient, on the scan's grid."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from fastmed.errors import SeriesError
from fastmed.findings import measure_masks
from fastmed.geometry import Geometry
from fastmed.inference.case import Model, StageClock, load
from fastmed.preprocessing import to_grid
from fastmed.spec import Label
from fastmed.volume import SourceSlice, Volume

CENTRE, RADIUS = np.array((12.0, -30.0, 45.0)), 17.0
STONE, STONE_RADIUS = np.array((-14.0, -38.0, 60.0)), 6.0


@dataclass
class Threshold:
    """A network that knows the answer: label 1 where the windowed intensity is above one half."""

    channels: int = 2
    device: str = "cpu"
    name: str = "threshold"

    def __call__(self, tiles):
        above = 20 * (tiles - 0.5)
        zeros = torch.zeros_like(tiles).expand(-1, self.channels - 1, -1, -1, -1)
        return torch.cat([zeros, above], dim=1)


@pytest.fixture
def oracle(tiny_spec):
    """A model whose labels are the bodies of `scan_of`."""
    spec = replace(
        tiny_spec, spacing_mm_zyx=(1.5, 1.5, 1.5), window_hu=(-500.0, 500.0), network=None
    )

    def make(engine=None, **changes):
        return Model(replace(spec, **changes), engine or Threshold(), "as told")

    return make


def depth_mm(world) -> np.ndarray:
    """Millimetres inside two spheres of one patient, negative outside."""
    sphere = RADIUS - np.linalg.norm(world - CENTRE, axis=-1)
    return np.maximum(sphere, STONE_RADIUS - np.linalg.norm(world - STONE, axis=-1))


def world_of(geometry) -> np.ndarray:
    return geometry.to_world(np.moveaxis(np.indices(geometry.shape_zyx), 0, -1))


def scan_of(geometry, slope=1.0, intercept=-1024.0, **fields) -> Volume:
    """A CT of the two spheres: 0 HU at their surface, 100 HU more per mm of depth."""
    hu = np.clip(100 * depth_mm(world_of(geometry)), -500, 500)
    stored = np.rint((hu - intercept) / slope).astype(np.int16)
    return Volume(stored, geometry, slope, intercept, name="scan", source="scan", **fields)


def around(steps, shape) -> Geometry:
    """A grid whose middle lies near, but not on, the middle of the bodies."""
    middle = np.add(CENTRE, (3, -2, 4)) - (np.array(shape) - 1) / 2 @ np.array(steps)
    return Geometry.from_axes(shape, middle, steps)


def turned(steps) -> np.ndarray:
    a, b = np.radians((24, 11))
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return np.array(steps) @ (about_z @ about_x).T


UPRIGHT = np.array([(0, 0, 1.2), (0, 0.9, 0), (0.8, 0, 0)])
LEAN = np.radians(18.5)
TILTED = [(0, 0, 1.6), (0, np.cos(LEAN), -np.sin(LEAN)), (1.0, 0, 0)]
GEOMETRIES = {
    "upright": around(UPRIGHT, (50, 70, 80)),
    "feet first": around(UPRIGHT * [[-1], [1], [1]], (50, 70, 80)),
    "flipped": around(-UPRIGHT, (50, 70, 80)),
    "sagittal": around([(1.2, 0, 0), (0, 0, -0.9), (0, 0.8, 0)], (56, 70, 80)),
    "oblique": around(turned(UPRIGHT), (60, 80, 90)),
    "thick slices": around(UPRIGHT * [[4], [1], [1]], (13, 70, 80)),
    "thin slices": around(UPRIGHT * [[0.4], [2], [2]], (120, 35, 40)),
    "tilted": around(TILTED, (50, 72, 72)),
    "tilted feet first": around(np.array(TILTED) * [[-1], [1], [1]], (50, 72, 72)),
    "tilted oblique": around(turned(TILTED), (60, 80, 80)),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_labels_lie_where_the_body_is(oracle, geometry):
    findings = oracle()(scan_of(geometry))
    assert findings.geometry == geometry
    assert findings.labels.shape == geometry.shape_zyx
    assert findings.labels.dtype == np.uint8
    truth = depth_mm(world_of(geometry)) > 0
    found = findings.labels == 1
    dice = 2 * (truth & found).sum() / (truth.sum() + found.sum())
    assert dice > 0.985
    centroid = geometry.to_world(np.argwhere(found)).mean(axis=0)
    expected = geometry.to_world(np.argwhere(truth)).mean(axis=0)
    np.testing.assert_allclose(centroid, expected, atol=0.15)
    spheres_ml = 4 / 3 * np.pi * (RADIUS**3 + STONE_RADIUS**3) / 1000
    assert findings.masks[0].volume_ml == pytest.approx(spheres_ml, rel=0.05)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("spacing", [3.0, 7.0])
def test_a_body_that_fills_the_scan_is_labelled_to_its_last_voxel(oracle, geometry, spacing):
    full = Volume(np.full(geometry.shape_zyx, 200, np.int16), geometry)
    inside = oracle(spacing_mm_zyx=(spacing,) * 3, outside_hu=200.0)(full)
    assert (inside.labels == 1).all()


def test_outside_a_tilted_scan_stands_air(oracle):
    volume = Volume(np.full((50, 72, 72), 200, np.int16), GEOMETRIES["tilted"])
    image, grid = to_grid(volume, oracle().spec)
    index = volume.geometry.to_index(world_of(grid))
    outside = ((index < -1) | (index > np.array(volume.geometry.shape_zyx))).any(axis=-1)
    assert outside.any()
    assert (image.numpy()[outside] == 0).all()


def test_uneven_slices_get_labels_of_their_own(oracle):
    uniform = around(UPRIGHT, (50, 70, 80))
    at = [0.0, 1.0, 2.5, 7.0, 11.25, *range(15, 45, 3), 47.5, 49.0]
    slices = tuple(SourceSlice(f"1.2.{k}", z) for k, z in enumerate(at))
    findings = oracle()(scan_of(uniform, slices=slices))
    assert list(findings.slice_labels) == [source.sop_instance_uid for source in slices]
    assert findings.labels.shape == uniform.shape_zyx
    for source in slices:
        truth = depth_mm(world_of(uniform.slab(source.z_index))[0]) > 0
        found = findings.slice_labels[source.sop_instance_uid] == 1
        assert found.shape == truth.shape
        assert (truth != found).mean() < 0.01
    even = tuple(SourceSlice(f"1.2.{k}", float(k)) for k in range(50))
    assert oracle()(scan_of(uniform, slices=even)).slice_labels == {}


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (0.5, -1000.0), (-2.0, 100.0)])
def test_figures_are_in_millilitres_and_hu_whatever_the_rescale(oracle, slope, intercept):
    volume = scan_of(GEOMETRIES["oblique"], slope, intercept)
    findings = oracle()(volume)
    (mask,) = findings.masks
    inside = findings.labels == 1
    assert mask.voxels == inside.sum()
    assert mask.volume_ml == pytest.approx(inside.sum() * 1.2 * 0.9 * 0.8 / 1000)
    assert mask.mean_hu == pytest.approx(volume.hu()[inside].mean(), abs=0.01)


def test_a_label_that_is_absent_has_no_mean():
    geometry = Geometry.from_spacing((2, 3, 4), (1, 1, 1))
    volume = Volume(np.full((2, 3, 4), 50, np.uint16), geometry, 2.0, -10.0)
    labels = np.zeros((2, 3, 4), np.int16)
    labels[0, 0, :3] = 300
    classes = (Label(1, "absent"), Label(300, "there"))
    absent, there = measure_masks(volume, labels, classes)
    assert (absent.voxels, absent.volume_ml, absent.mean_hu) == (0, 0.0, None)
    assert (there.voxels, there.volume_ml, there.mean_hu) == (3, 0.003, 90.0)


@pytest.mark.parametrize("at_once", [1, 50, 10**6])
def test_figures_do_not_depend_on_how_many_voxels_are_measured_at_once(monkeypatch, at_once):
    random = np.random.default_rng(0)
    voxels = random.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    labels = random.integers(0, 3, voxels.shape).astype(np.uint8)
    volume = Volume(voxels, Geometry.from_spacing(voxels.shape, (1, 1, 1)))
    monkeypatch.setattr("fastmed.findings._VOXELS_AT_ONCE", at_once)
    for mask, value in zip(
        measure_masks(volume, labels, (Label(1, "one"), Label(2, "two"))), (1, 2), strict=True
    ):
        assert mask.voxels == (labels == value).sum()
        assert mask.mean_hu == pytest.approx(voxels[labels == value].mean())


def test_one_output_channel_means_a_sigmoid(oracle):
    volume = scan_of(GEOMETRIES["upright"])
    one, two = oracle(Threshold(channels=1))(volume), oracle()(volume)
    assert (one.labels == two.labels).mean() > 0.9999


def test_another_number_of_classes_is_an_error(oracle):
    with pytest.raises(SeriesError, match=r"3 classes; bundle.toml names 1 labels"):
        oracle(Threshold(channels=3))(scan_of(GEOMETRIES["upright"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_never_become_background(oracle, value):
    class Broken(Threshold):
        def __call__(self, tiles):
            logits = super().__call__(tiles)
            logits[0, 1, 3, 4, 5] = value
            return logits

    with pytest.raises(SeriesError, match="not finite"):
        oracle(Broken())(scan_of(GEOMETRIES["upright"]))


def test_the_clock_knows_every_stage_and_progress_reaches_its_total(oracle):
    clock, calls = StageClock(), []
    oracle()(
        scan_of(GEOMETRIES["upright"]),
        clock=clock,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert set(clock.seconds) == {"resample", "network", "stitch", "decode"}
    assert all(seconds >= 0 for seconds in clock.seconds.values())
    assert calls[-1][0] == calls[-1][1] == len(calls)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_stored_types_make_no_difference(oracle, dtype):
    geometry = GEOMETRIES["thin slices"]
    stored = np.rint((np.clip(100 * depth_mm(world_of(geometry)), -500, 500) + 500) / 5)
    volume = Volume(stored.astype(dtype), geometry, 5.0, -500.0)
    expected = oracle()(Volume(stored.astype(np.int16), geometry, 5.0, -500.0))
    assert np.array_equal(oracle()(volume).labels, expected.labels)


def test_views_of_arrays_are_volumes_too(oracle):
    geometry = GEOMETRIES["upright"]
    volume = scan_of(geometry)
    view = np.ascontiguousarray(volume.voxels[::-1])[::-1]
    assert np.array_equal(oracle()(replace(volume, voxels=view)).labels, oracle()(volume).labels)


def test_the_same_scan_gives_the_same_findings(tiny_bundle):
    volume = scan_of(GEOMETRIES["thick slices"])
    model = load(tiny_bundle, engine="torch", device="cpu")
    one, two = model(volume), model(volume)
    assert np.array_equal(one.labels, two.labels)
    assert one.masks == two.masks
    assert one.model == "tiny"
