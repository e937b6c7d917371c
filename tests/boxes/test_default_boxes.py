"""Default boxes stand where the networks' answers do, and in their order."""

import pytest
import torch

from fastmed.boxes import (
    SSD300_PER_LEVEL,
    boxes_per_level,
    default_boxes,
    default_boxes_ssd300,
    diameters_in_voxels,
)

SIZE = (5, 8, 9)
STRIDES = (4, 8)
DIAMETERS = [[(2, 4, 6), (1, 1, 1)], [(8, 8, 8), (2, 2, 2)]]  # dz, dy, dx

# Places of stride 4: z 1.5, 5.5; y 1.5, 5.5; x 1.5, 5.5, 9.5.
# Of stride 8: z 3.5; y 3.5; x 3.5, 11.5.
TABLE = {
    0: (-1.5, -0.5, 0.5, 4.5, 3.5, 2.5),
    1: (1, 1, 1, 2, 2, 2),
    2: (2.5, -0.5, 0.5, 8.5, 3.5, 2.5),  # the next along x
    6: (-1.5, 3.5, 0.5, 4.5, 7.5, 2.5),  # the next along y
    12: (-1.5, -0.5, 4.5, 4.5, 3.5, 6.5),  # the next along z
    24: (-0.5, -0.5, -0.5, 7.5, 7.5, 7.5),  # the next level
    27: (10.5, 2.5, 2.5, 12.5, 4.5, 4.5),
}


@pytest.mark.parametrize("index", TABLE)
def test_table_of_default_boxes_in_3d(index):
    assert default_boxes(SIZE, STRIDES, DIAMETERS)[index].tolist() == list(TABLE[index])


def test_levels_have_as_many_boxes_as_counted():
    assert boxes_per_level(SIZE, STRIDES, 2) == (24, 4)
    assert default_boxes(SIZE, STRIDES, DIAMETERS).shape == (28, 6)


def test_a_place_is_the_middle_of_the_voxels_that_it_sums_up():
    boxes = default_boxes((8, 8, 8), (4,), [[(4, 4, 4)]])
    # Voxel i spans i - 0.5 to i + 0.5: the first cube is made of voxels 0 to 3.
    assert boxes[0].tolist() == [-0.5, -0.5, -0.5, 3.5, 3.5, 3.5]
    assert boxes[-1].tolist() == [3.5, 3.5, 3.5, 7.5, 7.5, 7.5]


def test_diameters_in_mm_become_voxels_of_an_uneven_grid():
    assert diameters_in_voxels([[4, 8], [16, 20]], (2, 1, 0.5)) == (
        ((2, 4, 8), (4, 8, 16)),
        ((8, 16, 32), (10, 20, 40)),
    )


# torchvision's ssd300_vgg16 by hand, in its pixels: centres (i + 0.5) * step; sides 300 * scale,
# 300 * sqrt(scale * next scale), and 300 * scale times and over sqrt(ratio), at most 300.
SSD300 = {
    0: (-6.5, -6.5, 14.5, 14.5),  # 4 +- 10.5
    1: (-11.370427, -11.370427, 19.370427, 19.370427),
    2: (-10.849242, -3.424621, 18.849242, 11.424621),
    3: (-3.424621, -10.849242, 11.424621, 18.849242),
    4: (1.5, -6.5, 22.5, 14.5),  # the next along x
    152: (-6.5, 1.5, 14.5, 22.5),  # the next along y
    5776: (-14.5, -14.5, 30.5, 30.5),  # level 2: 8 +- 22.5
    7946: (-69.736515, -12.578838, 101.736515, 44.578838),  # level 3: 16, ratio 3
    8728: (19.5, 19.5, 280.5, 280.5),  # level 6: 150 +- 130.5
    8730: (0, 57.722570, 300, 242.277430),  # its side of 369 is cut to the image's
}


@pytest.mark.parametrize("index", SSD300)
def test_table_of_ssd300_which_is_half_a_pixel_from_torchvisions(index):
    expected = torch.tensor(SSD300[index]) - 0.5
    torch.testing.assert_close(default_boxes_ssd300()[index], expected, rtol=0, atol=2e-5)


def test_ssd300_has_8732_default_boxes_on_six_levels():
    assert SSD300_PER_LEVEL == (5776, 2166, 600, 150, 36, 4)
    assert default_boxes_ssd300().shape == (8732, 4)


@pytest.mark.parametrize(
    ("size", "strides", "diameters", "message"),
    [
        ((8, 8, 8), (), [], r"strides \(\): expected one per level"),
        ((8, 8, 8), (4, 8), [[(1, 1, 1)]], r"strides \(4, 8\): expected one per level"),
        ((8, 0, 8), (4,), [[(1, 1, 1)]], r"size_zyx \(8, 0, 8\).*above 0"),
    ],
)
def test_what_cannot_be_laid_is_named(size, strides, diameters, message):
    with pytest.raises(ValueError, match=message):
        default_boxes(size, strides, diameters)
