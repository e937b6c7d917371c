"""Clean-up: literal label maps; each switch does its own thing and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from fastmed.spec import CleanUp, Label, Spec
from fastmed.tasks.clean_up import clean

SPEC = Spec(
    name="two",
    task="segmentation",
    labels=(Label(1, "organ"), Label(2, "lesion")),
    spacing_mm_zyx=(1.0, 1.0, 1.0),
    window_hu=(0.0, 1.0),
    tile_zyx=(16, 16, 16),
)


def asked(dimensions=3, **switches) -> Spec:
    tile = (1, 16, 16) if dimensions == 2 else (16, 16, 16)
    return replace(SPEC, clean_up=CleanUp(**switches), dimensions=dimensions, tile_zyx=tile)


def picture(*slices: str) -> np.ndarray:
    """[D, H, W] uint8 of drawings: rows of digits, . for background."""
    rows = [[line.strip() for line in one.split()] for one in slices]
    return np.array(
        [[[int(c.replace(".", "0")) for c in row] for row in one] for one in rows], np.uint8
    )


LARGEST = picture("11..2 11... ....2 1..22")
LARGEST_CLEANED = picture("11... 11... ....2 ...22")

RING = picture("..... .111. .1.1. .111. .....")
DISC = picture("..... .111. .111. .111. .....")

SMALL = picture("11..2 11... ...2. 1....")
SMALL_CLEANED = picture("11... 11... ..... .....")

LITERAL = {
    "largest piece of each label": ({"largest_component": True}, LARGEST, LARGEST_CLEANED),
    "diagonal neighbours are one piece": (
        {"largest_component": True},
        picture("1... .1.. ..1. 1..."),
        picture("1... .1.. ..1. ...."),
    ),
    "also across slices": (
        {"largest_component": True},
        picture("1.. ... ...", "... .1. ..1", "... ... ..."),
        picture("1.. ... ...", "... .1. ..1", "... ... ..."),
    ),
    "of equals the first one stays": (
        {"largest_component": True},
        picture("...1 1... 1..1"),
        picture(".... 1... 1..."),
    ),
    "a hole in a slice": ({"fill_holes": True}, RING, DISC),
    "a gap at a corner is no opening": (
        {"fill_holes": True},
        picture("..... ..1.. .1.1. ..1.. ....."),
        picture("..... ..1.. .111. ..1.. ....."),
    ),
    "open to the border of the image": (
        {"fill_holes": True},
        picture("111 1.. 111"),
        picture("111 1.. 111"),
    ),
    "another label is not overwritten": (
        {"fill_holes": True},
        picture("11111 1...1 1.2.1 1...1 11111"),
        picture("11111 11111 11211 11111 11111"),
    ),
    "the inner label fills its hole first": (
        {"fill_holes": True},
        picture("1111111 1.....1 1.222.1 1.2.2.1 1.222.1 1.....1 1111111"),
        picture("1111111 1111111 1122211 1122211 1122211 1111111 1111111"),
    ),
    "small pieces of each label": ({"smallest_ml": 0.3}, SMALL, SMALL_CLEANED),
    "a piece of just that volume stays": ({"smallest_ml": 0.4}, SMALL, SMALL_CLEANED),
    "the largest piece may be too small": (
        {"largest_component": True, "smallest_ml": 0.5},
        SMALL,
        picture("..... ..... ..... ....."),
    ),
    "all off": ({}, SMALL, SMALL),
}


@pytest.mark.parametrize(("switches", "labels", "wanted"), LITERAL.values(), ids=LITERAL.keys())
def test_literal_label_maps(switches, labels, wanted):
    given = labels.copy()
    cleaned = clean(given, asked(**switches), voxel_volume_ml=0.1)
    np.testing.assert_array_equal(cleaned, wanted)
    np.testing.assert_array_equal(given, labels)
    assert cleaned.dtype == labels.dtype


def shell() -> np.ndarray:
    """A hollow cube, and a ring that is open above and below."""
    labels = np.zeros((7, 7, 16), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[2:5, 2:5, 2:5] = 0
    labels[3, 1:6, 9:14] = 2
    labels[3, 2:5, 10:13] = 0
    return labels


def test_in_3d_a_cavity_is_filled_and_a_ring_is_not():
    cleaned = clean(shell(), asked(fill_holes=True), 1.0)
    assert np.count_nonzero(cleaned == 1) == 5**3
    assert np.count_nonzero(cleaned == 2) == 5**2 - 3**2


def test_a_spec_of_2_dimensions_fills_slice_by_slice():
    cleaned = clean(shell(), asked(dimensions=2, fill_holes=True), 1.0)
    assert np.count_nonzero(cleaned == 1) == 5**3
    assert np.count_nonzero(cleaned == 2) == 5**2


def test_holes_are_filled_before_pieces_are_measured_and_after_the_largest_is_kept():
    switches = {"fill_holes": True, "smallest_ml": 9.0}
    np.testing.assert_array_equal(clean(RING, asked(**switches), 1.0), DISC)
    island_in_a_ring = picture("111111 1....1 1.2..1 1....1 111111 .....2 ....22")
    cleaned = clean(island_in_a_ring, asked(largest_component=True, fill_holes=True), 1.0)
    assert (cleaned[0, :5] == 1).all()  # the island is gone before the hole is filled


def test_an_empty_map_stays_empty():
    empty = np.zeros((3, 4, 5), np.int16)
    spec = asked(largest_component=True, fill_holes=True, smallest_ml=1.0)
    assert not clean(empty, spec, 1.0).any()


@pytest.mark.parametrize("seed", range(6))
def test_random_maps_keep_what_a_plain_loop_keeps(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((8, 9, 10)) < 0.15).astype(np.uint8)
    pieces, count = ndimage.label(labels, np.ones((3, 3, 3)))
    sizes = [np.count_nonzero(pieces == k) for k in range(1, count + 1)]
    first = [np.flatnonzero(pieces == k)[0] for k in range(1, count + 1)]
    best = min(range(count), key=lambda k: (-sizes[k], first[k])) + 1
    cleaned = clean(labels, asked(largest_component=True), 1.0)
    np.testing.assert_array_equal(cleaned, (pieces == best).astype(np.uint8))
    cleaned = clean(labels, asked(smallest_ml=3.0), 1.0)
    large = [k + 1 for k in range(count) if sizes[k] >= 3]
    np.testing.assert_array_equal(cleaned, np.isin(pieces, large).astype(np.uint8))
    filled = clean(labels, asked(fill_holes=True), 1.0)
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(labels).astype(np.uint8))


@pytest.mark.parametrize("seed", range(6))
def test_of_pieces_of_equal_size_the_first_stays_wherever_they_lie(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((9, 20, 20), np.uint8)
    for z, y, x in rng.permutation([(z, y, x) for z in (0, 4) for y in (2, 8) for x in (3, 9, 15)]):
        labels[z : z + 2, y : y + 2, x] = 1
        labels[z + 2, y - 1, x + 1] = 1
    cleaned = clean(labels, asked(largest_component=True), 1.0)
    assert np.flatnonzero(cleaned)[0] == np.flatnonzero(labels)[0]
    assert np.count_nonzero(cleaned) == 5
