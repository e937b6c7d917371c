"""What is no nodule: each kind differs from a nodule in the way that its docstring says."""

import numpy as np
import pytest
from scipy import ndimage

from fastmed.geometry import Geometry
from fastmed.phantom import nodule_distractors as distractors
from fastmed.phantom.opacities import Scene

AIR_HU = -850.0
GRID = Geometry.from_spacing((90, 90, 90), (1.0, 1.0, 1.0), (-45.0, -45.0, -45.0))
MIDDLE = np.zeros(3)


@pytest.fixture
def scene(monkeypatch):
    """Lung without end, in which everything comes to lie about the middle."""
    monkeypatch.setattr(distractors, "find_place", lambda *anything: MIDDLE)
    inside = np.full(GRID.shape_zyx, 99.0, np.float32)
    hu = np.full(GRID.shape_zyx, AIR_HU, np.float32)
    return Scene(GRID, inside, inside, inside > 0, hu, 1.0)


def drawn(scene) -> np.ndarray:
    """Voxels (x, y, z in mm) at least half filled."""
    return GRID.to_world(np.argwhere(scene.hu > AIR_HU + 375))


def axes_mm(points) -> np.ndarray:
    """Of the ellipsoid with these second moments, short to long."""
    return 2 * np.sqrt(5 * np.linalg.eigvalsh(np.cov(points.T)))


@pytest.mark.parametrize("seed", range(5))
def test_a_lentil_is_as_wide_as_a_nodule_and_a_third_as_thick(scene, seed):
    distractors._lentil(np.random.default_rng(seed), scene, [])
    thick, *wide = axes_mm(drawn(scene))
    assert 2 < thick < 0.45 * min(wide)
    assert 6 < max(wide) < 18


@pytest.mark.parametrize("seed", range(5))
def test_a_rod_is_longer_than_a_nodule_may_be(scene, seed):
    distractors._stub(np.random.default_rng(seed), scene, [])
    axes = axes_mm(drawn(scene))
    assert max(axes) > 2.2 * min(axes)


@pytest.mark.parametrize("seed", range(5))
def test_vessels_cross_without_a_body_wider_than_they_are(scene, seed):
    distractors._knot(np.random.default_rng(seed), scene, [])
    depth = ndimage.distance_transform_edt(scene.hu > AIR_HU + 375)
    away = np.linalg.norm(GRID.to_world(np.argwhere(depth > 0)), axis=1)
    assert away.max() > 8
    assert depth.max() < 5.5  # three to five of at most 3 mm, drawn into each other


@pytest.mark.parametrize("seed", range(5))
def test_a_cyst_holds_air(scene, seed):
    distractors._cyst(np.random.default_rng(seed), scene, [])
    assert scene.hu[45, 45, 45] < AIR_HU - 50
    assert 3 < np.linalg.norm(drawn(scene), axis=1).mean() < 9.5


@pytest.mark.parametrize("seed", range(5))
def test_vessels_lead_into_a_nodule_from_outside_of_it(scene, seed):
    distractors.feed(np.random.default_rng(seed), scene, [(MIDDLE, 5.0)], MIDDLE, 5.0)
    away = np.linalg.norm(drawn(scene), axis=1)
    assert away.max() > 10
    assert ndimage.distance_transform_edt(scene.hu > AIR_HU + 375).max() < 3  # of radius 1.65
    assert ndimage.label(scene.hu > AIR_HU + 375, np.ones((3, 3, 3)))[1] == 1


def test_vessels_of_a_nodule_keep_off_its_neighbours(scene):
    around = [(13.0 * at, 4.0) for at in np.argwhere(np.ones((3, 3, 3))) - 1 if at.any()]
    taken = [(MIDDLE, 5.0), *around]
    distractors.feed(np.random.default_rng(0), scene, taken, MIDDLE, 5.0)
    points = drawn(scene)
    for centre, radius in around:
        if len(points):
            assert np.linalg.norm(points - centre, axis=1).min() > radius


@pytest.mark.parametrize("draw", [distractors._knot, distractors._lentil, distractors._cyst])
def test_nothing_is_drawn_upon_what_is_taken(scene, draw):
    draw(np.random.default_rng(0), scene, [(MIDDLE, 4.0)])
    assert (scene.hu == AIR_HU).all()
