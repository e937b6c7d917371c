"""Mirror: what is said of mirror images is mirrored back and averaged, whatever the task."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from fastmed.boxes import WEIGHTS_3D, default_boxes, encode
from fastmed.boxes.defaults import diameters_in_voxels
from fastmed.inference.mirror import mirrored
from fastmed.spec import Detection, Label, Spec
from fastmed.spec_toml import spec_from_table, spec_to_table

SEGMENT = Spec(
    name="s",
    task="segmentation",
    labels=(Label(1, "liver"),),
    spacing_mm_zyx=(3.0, 3.0, 3.0),
    window_hu=(-160.0, 240.0),
    tile_zyx=(16, 16, 16),
)
CLASSIFY = replace(
    SEGMENT, task="classification", tile_zyx=None, spacing_mm_zyx=None, size_zyx=(16, 16, 16)
)
DETECT = replace(
    SEGMENT,
    task="detection",
    spacing_mm_zyx=(2.0, 1.0, 1.0),
    detection=Detection(strides=(4, 8), diameters_mm=((6.0, 8.0), (10.0, 12.0))),
)
AXES = [axes for axes in product([False, True], repeat=3) if any(axes)]
TILES = torch.rand(2, 1, 16, 24, 32, generator=torch.Generator().manual_seed(0))
KERNEL = torch.rand(2, 1, 3, 3, 3, generator=torch.Generator().manual_seed(1))


def one_sided(tiles):
    """Logits that depend on which side of a voxel its neighbours are."""
    return F.conv3d(tiles, KERNEL, padding=1)


def even(tiles):
    """The same with a kernel that is its own mirror image."""
    kernel = sum(
        KERNEL.flip([axis + 2 for axis in range(3) if on[axis]]) for on in [*AXES, (0,) * 3]
    )
    return F.conv3d(tiles, kernel, padding=1)


def boxes_of(tiles):
    """Raw outputs of a detection that says of every default box where the brightest voxel is."""
    sizes = tuple(tiles.shape[2:])
    cubes = diameters_in_voxels(DETECT.detection.diameters_mm, DETECT.spacing_mm_zyx)
    defaults = default_boxes(sizes, DETECT.detection.strides, cubes)
    said = []
    for tile in tiles[:, 0]:
        z, y, x = torch.unravel_index(tile.argmax(), sizes)
        middle = torch.stack([x, y, z]).float()
        box = torch.cat([middle - torch.tensor([2.0, 3, 1]), middle + torch.tensor([2.0, 3, 1])])
        nearness = -(defaults[:, :3] + defaults[:, 3:] - 2 * middle).abs().sum(1, keepdim=True)
        said.append(torch.cat([encode(box, defaults, WEIGHTS_3D), nearness, nearness * 0], 1))
    return torch.stack(said)


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize(
    ("spec", "network"), [(SEGMENT, even), (DETECT, boxes_of)], ids=["segmentation", "detection"]
)
def test_a_network_that_mirrors_with_its_tile_says_the_same(spec, network, axes):
    found = mirrored(network, replace(spec, mirror_zyx=axes))(TILES)
    torch.testing.assert_close(found, network(TILES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_the_mean_over_all_mirror_images_counts(axes):
    spec = replace(SEGMENT, mirror_zyx=axes)
    chosen = [axis + 2 for axis in range(3) if axes[axis]]
    turns = [
        [axis for axis, on in zip(chosen, bits, strict=True) if on]
        for bits in product([0, 1], repeat=len(chosen))
    ]
    expected = sum(one_sided(TILES.flip(turn)).flip(turn) for turn in turns) / len(turns)
    torch.testing.assert_close(mirrored(one_sided, spec)(TILES), expected)
    assert (expected - one_sided(TILES)).abs().max() > 0.1


def test_a_classification_is_the_mean_of_its_looks():
    spec = replace(CLASSIFY, mirror_zyx=(False, False, True))
    found = mirrored(lambda tiles: tiles[:, 0, 0, 0, :2], spec)(TILES)
    corner, other = TILES[:, 0, 0, 0, :2], TILES.flip(4)[:, 0, 0, 0, :2]
    torch.testing.assert_close(found, (corner + other) / 2)


def test_an_engine_may_give_the_same_memory_each_time():
    memory = torch.empty(2, 2, 16, 24, 32)

    def engine(tiles):
        return memory.copy_(one_sided(tiles))

    spec = replace(SEGMENT, mirror_zyx=(True, True, True))
    torch.testing.assert_close(mirrored(engine, spec)(TILES), mirrored(one_sided, spec)(TILES))


def test_without_axes_it_is_the_network_itself():
    assert mirrored(one_sided, SEGMENT) is one_sided


def test_what_is_not_finite_in_one_look_is_not_finite():
    looks = iter([torch.zeros(2, 2), torch.full((2, 2), float("nan"))])
    spec = replace(CLASSIFY, mirror_zyx=(False, True, False))
    assert mirrored(lambda tiles: next(looks), spec)(TILES).isnan().all()


def test_the_axes_stand_in_the_bundle():
    spec = replace(SEGMENT, mirror_zyx=(False, True, True))
    table = spec_to_table(spec)
    assert table["grid"]["mirror_zyx"] == [False, True, True]
    assert spec_from_table(table) == spec
    assert "mirror_zyx" not in spec_to_table(SEGMENT)["grid"]
    table["grid"]["mirror_zyx"] = [1, 0, 0]
    with pytest.raises(ValueError, match="mirror_zyx: expected a list of true and false"):
        spec_from_table(table)


WRONG = {
    "two": (SEGMENT, (True, True), "expected three of true and false"),
    "numbers": (SEGMENT, (1, 0, 0), "expected three of true and false"),
    "z of slices": (
        replace(SEGMENT, dimensions=2, tile_zyx=(1, 16, 16)), (True, False, False), "have no z",
    ),
    "strides": (replace(DETECT, size_multiple=4), (False, False, True), "no multiple of each"),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "axes", "words"), WRONG.values(), ids=WRONG.keys())
def test_axes_that_cannot_be_are_named(spec, axes, words):
    with pytest.raises(ValueError, match=words):
        replace(spec, mirror_zyx=axes)
