"""Each shape of tiles has a profile that holds it, and few profiles serve them all."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmed.errors import SeriesError
from fastmed.inference.engines.tensor_rt_profile import Profile, ProfileChooser
from fastmed.spec import Detection, Label, Spec

LIVER = Spec(
    name="liver",
    task="segmentation",
    labels=(Label(1, "liver"),),
    spacing_mm_zyx=(3.0, 3.0, 3.0),
    window_hu=(-160.0, 240.0),
    tile_zyx=(64, 96, 96),
)
SLICES = replace(LIVER, dimensions=2, tile_zyx=(1, 64, 96))
SSD300 = Spec(
    name="lesions",
    task="detection",
    modality="grey",
    dimensions=2,
    labels=(Label(1, "lesion"),),
    spacing_mm_zyx=None,
    size_zyx=(1, 300, 300),
    window_hu=(0.0, 255.0),
    detection=Detection(),
)
WHOLE = Spec(
    name="whole",
    task="classification",
    labels=(Label(1, "ill"),),
    spacing_mm_zyx=(2.0, 2.0, 2.0),
    window_hu=(-1000.0, 400.0),
)
FREE = (None, 1, None, None, None)


def test_the_specs_tile_has_a_profile_of_its_own():
    chooser = ProfileChooser(LIVER, FREE)
    assert chooser.choose((4, 1, 64, 96, 96)) == Profile.of_one((4, 1, 64, 96, 96))
    assert chooser.choose((4, 1, 64, 96, 96)).is_static


def test_all_other_shapes_of_an_archive_share_one_profile():
    chooser = ProfileChooser(LIVER, FREE)
    chooser.choose((4, 1, 64, 96, 96))
    shared = chooser.choose((4, 1, 32, 96, 96))
    assert shared == Profile((1, 1, 16, 16, 16), (4, 1, 64, 96, 96), (4, 1, 64, 96, 96))
    for shape in ((1, 1, 64, 96, 96), (3, 1, 16, 96, 48), (2, 1, 48, 16, 96)):
        assert chooser.choose(shape) is shared


def test_a_small_first_scan_does_not_take_the_tiles_place():
    chooser = ProfileChooser(LIVER, FREE)
    assert not chooser.choose((1, 1, 16, 96, 96)).is_static
    assert chooser.choose((4, 1, 64, 96, 96)).is_static


def test_more_tiles_at_once_take_the_place_of_fewer():
    chooser = ProfileChooser(LIVER, FREE)
    assert chooser.choose((2, 1, 64, 96, 96)).is_static
    assert chooser.choose((4, 1, 64, 96, 96)) == Profile.of_one((4, 1, 64, 96, 96))
    assert not chooser.choose((2, 1, 64, 96, 96)).is_static


def test_the_shared_profile_only_grows():
    chooser = ProfileChooser(LIVER, FREE)
    chooser.choose((9, 1, 16, 96, 96))
    profile = chooser.choose((1, 1, 64, 160, 8))
    assert profile.smallest == (1, 1, 16, 16, 8)
    assert profile.largest == (9, 1, 64, 160, 96)


def test_what_names_no_size_is_built_for_what_comes_first():
    chooser = ProfileChooser(WHOLE, FREE)
    assert chooser.choose((1, 1, 50, 60, 70)) == Profile.of_one((1, 1, 50, 60, 70))
    assert not chooser.choose((1, 1, 51, 60, 70)).is_static


def test_slices_have_profiles_without_depth():
    chooser = ProfileChooser(SLICES, (None, 1, None, None))
    assert chooser.choose((8, 1, 64, 96)).is_static
    assert chooser.choose((3, 1, 32, 96)).largest == (8, 1, 64, 96)


def test_axes_that_the_network_fixes_stay_fixed():
    chooser = ProfileChooser(SSD300, (None, 3, 300, 300))
    chooser.choose((8, 3, 300, 300))
    shared = chooser.choose((5, 3, 300, 300))
    assert (shared.smallest, shared.largest) == ((1, 3, 300, 300), (8, 3, 300, 300))


@pytest.mark.parametrize("shape", [(1, 3, 200, 300), (1, 1, 300, 300), (1, 3, 1, 300, 300)])
def test_what_the_network_cannot_take_is_refused(shape):
    with pytest.raises(SeriesError, match=r"takes images \[any, 3, 300, 300\] and was given"):
        ProfileChooser(SSD300, (None, 3, 300, 300)).choose(shape)


sizes = st.integers(1, 200)


@given(st.lists(st.tuples(st.integers(1, 12), st.just(1), sizes, sizes, sizes), max_size=12))
def test_every_shape_lies_within_its_profile(shapes):
    chooser = ProfileChooser(LIVER, FREE)
    for shape in shapes:
        profile = chooser.choose(shape)
        assert profile.holds(shape)
        assert profile.holds(profile.usual)
        assert not profile.is_static or profile.usual == shape
