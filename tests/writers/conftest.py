"""Small scans with known findings for the writers' tests."""

import numpy as np
import pytest

from fastmed.findings import Findings, Mask
from fastmed.geometry import Geometry
from fastmed.spec import Label


def _axes(spacing_mm_zyx, turn):
    z, y, x = spacing_mm_zyx
    return [turn @ step for step in ((0, 0, z), (0, y, 0), (x, 0, 0))]


def _turn(axis, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    a, b = [k for k in range(3) if k != axis]
    turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
    return turn


_SHAPE, _ORIGIN = (6, 10, 14), (-31.5, 17.25, -402.125)
_FLIPPED = [(0, 0, -2.5), (0, -0.7, 0), (-0.8, 0, 0)]
_OBLIQUE = _axes((2.5, 0.7, 0.8), _turn(0, 12) @ _turn(2, -31) @ _turn(1, 7))
_TILTED = [(0, 0, 4.0), *_axes((4.0, 0.5, 0.5), _turn(0, 18.5))[1:]]

GEOMETRIES = {
    "upright": Geometry.from_spacing(_SHAPE, (2.5, 0.7, 0.8), _ORIGIN),
    "flipped": Geometry.from_axes(_SHAPE, _ORIGIN, _FLIPPED),
    "mirrored": Geometry.from_axes(_SHAPE, _ORIGIN, [(0, 0, -2.5), (0, 0.7, 0), (0.8, 0, 0)]),
    "sagittal": Geometry.from_axes(_SHAPE, _ORIGIN, [(2.5, 0, 0), (0, 0, -0.7), (0, 0.8, 0)]),
    "oblique": Geometry.from_axes(_SHAPE, _ORIGIN, _OBLIQUE),
    "tilted": Geometry.from_axes(_SHAPE, _ORIGIN, _TILTED),
}


@pytest.fixture(params=[name for name in GEOMETRIES if name != "tilted"])
def right_angled(request) -> Geometry:
    return GEOMETRIES[request.param]


@pytest.fixture
def tilted() -> Geometry:
    return GEOMETRIES["tilted"]


@pytest.fixture
def make_findings():
    """Returns a function that puts random labels (or the given ones) on a geometry."""

    def make(geometry=GEOMETRIES["upright"], labels=None, names=("liver", "spleen"), **changes):
        if labels is None:
            random = np.random.default_rng(7)
            labels = random.integers(0, len(names) + 1, geometry.shape_zyx).astype(np.uint8)
        counts = [int((labels == k).sum()) for k in range(1, len(names) + 1)]
        values = {
            "series": "1.2.3",
            "source": "scans/a",
            "model": "liver-demo",
            "geometry": geometry,
            "labels": labels,
            "classes": tuple(Label(k, name) for k, name in enumerate(names, 1)),
            "masks": tuple(
                Mask(name, n * geometry.voxel_volume_mm3 / 1000, 55.5 if n else None, n)
                for name, n in zip(names, counts, strict=True)
            ),
            "slice_labels": {},
        }
        return Findings(**(values | changes))

    return make
