"""The FROC picture: its size, what it shows, and that the same curve gives the same bytes."""

import io

import numpy as np
import pytest
from PIL import Image

from fastmed.metrics.froc import Outcome, froc
from fastmed.writers.froc_picture import froc_png

BLUE, ORANGE = (53, 113, 143), (217, 98, 43)


def curve(hits, false_positives, scans=4, bootstraps=50):
    rng = np.random.default_rng(0)
    return froc(
        Outcome(
            rng.random(hits), rng.integers(0, scans, hits),
            rng.random(false_positives), rng.integers(0, scans, false_positives),
            np.full(scans, hits),
        ),
        bootstraps=bootstraps,
    )  # fmt: skip


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def heights(image, color):
    """Rows of the plot that have a color, as a share of its height from below."""
    return 1 - np.flatnonzero((np.abs(image - color).max(axis=2) < 12).any(axis=1)) / len(image)


@pytest.mark.parametrize("found", [curve(6, 30), curve(6, 0), curve(0, 6), curve(3, 9, 2, 0)])
def test_any_curve_has_a_picture_and_always_the_same(found):
    png = froc_png(found, "6 findings on 4 scans")
    assert pixels(png).shape == (690, 960, 3)
    assert froc_png(found, "6 findings on 4 scans") == png


def test_a_better_detector_stands_higher():
    few = np.zeros(1, int)
    low, high = (
        froc(Outcome(np.ones(n), np.zeros(n, int), np.zeros(1), few, np.array([10])), bootstraps=0)
        for n in (6, 9)
    )
    for color in (BLUE, ORANGE):
        below, above = (heights(pixels(froc_png(one, "")), color) for one in (low, high))
        assert below.max() + 0.2 < above.max()
