"""The code of a box says how it differs from its default box."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.boxes import WEIGHTS_2D, WEIGHTS_3D, decode, encode

LOG2 = 0.6931471805599453

# default box, box, code by hand
TABLE = [
    ((0, 0, 4, 8), (0, 0, 4, 8), (0, 0, 0, 0)),
    ((0, 0, 4, 8), (2, 0, 6, 16), (5, 5, 0, 5 * LOG2)),  # centre (2, 4) -> (4, 8), height 8 -> 16
    ((0, 0, 4, 8), (1, 2, 3, 6), (0, 0, -5 * LOG2, -5 * LOG2)),
    ((0, 0, 0, 4, 8, 2), (2, 0, 1, 6, 16, 3), (5, 5, 5, 0, 5 * LOG2, 0)),
    ((-1, -1, -1, 1, 1, 1), (-1, -1, -2, 1, 1, 2), (0, 0, 0, 0, 0, 5 * LOG2)),
]


@pytest.mark.parametrize(("default", "box", "code"), TABLE)
def test_table_of_codes(default, box, code):
    default, box, code = (torch.tensor([n], dtype=torch.float64) for n in (default, box, code))
    weights = WEIGHTS_2D if default.shape[1] == 4 else WEIGHTS_3D
    torch.testing.assert_close(encode(box, default, weights), code)
    torch.testing.assert_close(decode(code, default, weights), box)


sides = st.floats(0.5, 50)
places = st.floats(-100, 100)
boxes = st.tuples(st.tuples(places, places, places), st.tuples(sides, sides, sides)).map(
    lambda box: [*box[0], *(low + side for low, side in zip(*box, strict=True))]
)


@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_decoding_undoes_encoding(pairs):
    box, default = (torch.tensor(each, dtype=torch.float64) for each in zip(*pairs, strict=True))
    codes = encode(box, default, WEIGHTS_3D)
    # Boxes of a 2D grid are those of 3D without z.
    plane = [0, 1, 3, 4]
    torch.testing.assert_close(
        encode(box[:, plane], default[:, plane], WEIGHTS_2D), codes[:, plane]
    )
    back = decode(codes, default, WEIGHTS_3D)
    # A growth of 100 in side is beyond what a code may say.
    may_say = (codes[:, 3:] / 5 <= 4.13).all(1)
    torch.testing.assert_close(back[may_say], box[may_say])


def test_a_wild_code_grows_to_62_and_a_half_sides_at_most():
    code = torch.tensor([[0, 0, 0, 1e6, 0, -1e6]])
    box = decode(code, torch.tensor([[-1.0, -1, -1, 1, 1, 1]]), WEIGHTS_3D)
    torch.testing.assert_close(box, torch.tensor([[-62.5, -1, 0, 62.5, 1, 0]]))


def test_codes_of_a_batch_meet_the_same_default_boxes():
    defaults = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]])
    codes = torch.randn(3, 2, 4)
    together = decode(codes, defaults, WEIGHTS_2D)
    torch.testing.assert_close(together[2], decode(codes[2], defaults, WEIGHTS_2D))
