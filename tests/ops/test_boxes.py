"""box_iou and box_giou: values, gradients, and what torch makes of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.ops import box_giou, box_iou
from fastmed.testing import (
    box_giou_reference,
    box_iou_reference,
    random_boxes,
    with_degenerate,
)

NAN, INFINITY = float("nan"), float("inf")

# box, other box, IoU, GIoU
TABLE = {
    "itself": ([0, 0, 2, 2], [0, 0, 2, 2], 1, 1),
    "half of each": ([0, 0, 2, 1], [1, 0, 3, 1], 1 / 3, 1 / 3),
    "one inside the other": ([0, 0, 4, 4], [1, 1, 3, 3], 1 / 4, 1 / 4),
    "a corner": ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
    "touching": ([0, 0, 1, 1], [1, 0, 2, 1], 0, 0),
    "apart": ([0, 0, 1, 1], [3, 0, 4, 1], 0, -1 / 2),
    "inverted": ([2, 0, 0, 2], [0, 0, 2, 2], 0, 0),
    "inverted in both axes": ([2, 2, 0, 0], [0, 0, 2, 2], 0, 0),
    "empty": ([1, 0, 1, 2], [0, 0, 2, 2], 0, 0),
    "two points in one place": ([1, 1, 1, 1], [1, 1, 1, 1], 0, 0),
    "two points apart": ([0, 0, 0, 0], [1, 1, 1, 1], 0, -1),
    "not a number": ([NAN, 0, 1, 1], [0, 0, 1, 1], NAN, NAN),
    "3D, itself": ([0, 0, 0, 2, 2, 2], [0, 0, 0, 2, 2, 2], 1, 1),
    "3D, half": ([0, 0, 0, 2, 2, 2], [0, 0, 1, 2, 2, 3], 1 / 3, 1 / 3),
    "3D, a corner": ([0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3], 1 / 15, 1 / 15 - 12 / 27),
    "3D, apart in z": ([0, 0, 0, 1, 1, 1], [0, 0, 3, 1, 1, 4], 0, -1 / 2),
    "3D, flat": ([0, 0, 1, 2, 2, 1], [0, 0, 0, 2, 2, 2], 0, 0),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLE)
def test_table(name, dtype, device):
    first, second, iou, giou = TABLE[name]
    first = torch.tensor([first], dtype=dtype, device=device)
    second = torch.tensor([second], dtype=dtype, device=device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for op, expected in ((box_iou, iou), (box_giou, giou)):
        for pair in ((first, second), (second, first)):
            result = op(*pair)
            assert result.dtype == wide
            torch.testing.assert_close(
                result, torch.tensor([[expected]], dtype=wide, device=device), equal_nan=True
            )


@settings(max_examples=30, deadline=None)
@given(
    axes=st.sampled_from([2, 3]),
    count1=st.integers(0, 70),
    count2=st.integers(0, 70),
    batch=st.sampled_from([(), (1,), (3,), (2, 2), (0,)]),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_agrees_with_the_reference(axes, count1, count2, batch, double, seed):
    dtype = torch.float64 if double else torch.float32
    boxes1 = with_degenerate(random_boxes([*batch, count1], axes, dtype, seed=seed))
    boxes2 = with_degenerate(random_boxes([*batch, count2], axes, dtype, seed=seed + 1))
    assert torch.equal(box_iou(boxes1, boxes2), box_iou_reference(boxes1, boxes2))
    assert torch.equal(box_giou(boxes1, boxes2), box_giou_reference(boxes1, boxes2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count2", [1, 15, 16, 17, 20, 31, 32, 33, 48, 100])
def test_rows_may_end_anywhere_in_a_vector(count2, dtype):
    for axes in (2, 3):
        boxes1 = with_degenerate(random_boxes([3, 21], axes, dtype, seed=count2))
        boxes2 = with_degenerate(random_boxes([3, count2], axes, dtype, seed=1 + count2))
        assert torch.equal(box_iou(boxes1, boxes2), box_iou_reference(boxes1, boxes2))
        assert torch.equal(box_giou(boxes1, boxes2), box_giou_reference(boxes1, boxes2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axes", [2, 3])
def test_nan_of_either_sign_and_infinity_agree_with_the_reference(axes, dtype, device):
    special = torch.tensor([NAN, -NAN, INFINITY, -INFINITY, -0.0, 0.0, 1.0, 2.0], dtype=dtype)
    places = torch.randint(8, (2, 200, 2 * axes), generator=torch.Generator().manual_seed(0))
    boxes1, boxes2 = special[places].to(device)
    of_nan = boxes1.isnan().any(1)[:, None] | boxes2.isnan().any(1)
    for op, reference in ((box_iou, box_iou_reference), (box_giou, box_giou_reference)):
        result = op(boxes1, boxes2)
        torch.testing.assert_close(
            result, reference(boxes1, boxes2), rtol=0, atol=0, equal_nan=True
        )
        assert result[of_nan].isnan().all()


def test_values_lie_in_their_ranges(device):
    boxes = with_degenerate(random_boxes([400], 3, sides=(0.0, 90.0), device=device))
    iou, giou = box_iou(boxes, boxes), box_giou(boxes, boxes)
    assert iou.min() >= 0
    assert iou.max() <= 1
    assert torch.equal(iou, iou.mT)
    assert giou.min() >= -1
    assert (giou <= iou + 1e-6).all()


def test_dtypes_promote(device):
    boxes = random_boxes([5], 3, device=device)
    assert box_iou(boxes.half(), boxes).dtype == torch.float32
    assert box_iou(boxes.half(), boxes.double()).dtype == torch.float64


def test_views_count_as_their_copies(device):
    boxes = random_boxes([6, 40], 3, device=device)
    turned = boxes.transpose(0, 1)
    assert torch.equal(box_iou(turned, turned), box_iou(turned.contiguous(), turned.contiguous()))


def test_autocast_leaves_float32(device):
    boxes = random_boxes([9], 3, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        for given_boxes in (boxes, boxes.bfloat16(), boxes.half()):
            assert box_giou(given_boxes, given_boxes).dtype == torch.float32
        assert torch.equal(box_iou(boxes, boxes), box_iou_reference(boxes, boxes))


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("op", [box_iou, box_giou])
def test_gradcheck(op, axes, batch, device):
    boxes1 = random_boxes([*batch, 5], axes, torch.float64, device=device).requires_grad_()
    boxes2 = random_boxes(
        [*batch, 19], axes, torch.float64, sides=(30.0, 90.0), device=device, seed=1
    ).requires_grad_()
    assert torch.autograd.gradcheck(op, (boxes1, boxes2))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(
    ("op", "reference"), [(box_iou, box_iou_reference), (box_giou, box_giou_reference)]
)
def test_gradients_at_kinks_are_those_of_the_reference(op, reference, axes, device):
    # Shared corners, copies, inverted and empty boxes, points.
    boxes = with_degenerate(
        random_boxes([70], axes, torch.float64, extent=6.0, sides=(1.0, 6.0), device=device).round()
    )
    weights = random_boxes([70], 35, torch.float64, device=device, seed=3)
    grads = []
    for each in (op, reference):
        boxes1, boxes2 = boxes.clone().requires_grad_(), boxes.flip(0).clone().requires_grad_()
        (each(boxes1, boxes2) * weights).sum().backward()
        grads += [boxes1.grad, boxes2.grad]
    torch.testing.assert_close(grads[0], grads[2])
    torch.testing.assert_close(grads[1], grads[3])


@pytest.mark.parametrize("op", [box_iou, box_giou])
def test_gradients_of_degenerate_boxes_are_finite(op, device):
    tiny = 1e-30
    boxes = torch.tensor(
        [[1, 1, 1, 1], [2, 2, 1, 1], [0, 0, tiny, tiny], [0, 0, tiny, 1], [0, 0, 0, 1]],
        device=device,
    )
    for other in (boxes, boxes + 5):
        leaf = boxes.clone().requires_grad_()
        op(leaf, other).sum().backward()
        assert leaf.grad.isfinite().all()
    point = boxes[:1].clone().requires_grad_()
    op(point, boxes[:1]).sum().backward()
    assert point.grad.tolist() == [[0, 0, 0, 0]]


def test_gradients_keep_the_dtype_and_only_where_asked(device):
    boxes1 = random_boxes([4], 3, torch.float16, device=device).requires_grad_()
    boxes2 = random_boxes([5], 3, device=device, seed=1)
    box_giou(boxes1, boxes2).sum().backward()
    assert boxes1.grad.dtype == torch.float16
    assert boxes2.grad is None
    empty = boxes1.detach()[:0].requires_grad_()
    box_iou(empty, boxes2).sum().backward()
    assert empty.grad.shape == (0, 6)


def test_a_second_derivative_is_refused(device):
    boxes = random_boxes([3], 2, device=device).requires_grad_()
    (grad,) = torch.autograd.grad(box_iou(boxes, boxes.detach()).sum(), boxes, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


def test_gradients_repeat_themselves_whatever_the_threads(one_thread_then_two):
    boxes1, boxes2 = random_boxes([300], 3), random_boxes([900], 3, seed=1)

    def gradients():
        leaves = boxes1.clone().requires_grad_(), boxes2.clone().requires_grad_()
        box_giou(*leaves).sum().backward()
        return torch.cat([leaf.grad for leaf in leaves])

    one, two = one_thread_then_two(gradients)
    assert torch.equal(one, two)


BOXES = torch.zeros(3, 6)
BAD = [
    ("boxes1", TypeError, (BOXES.int(), BOXES)),
    ("boxes2", TypeError, (BOXES, BOXES.long())),
    ("boxes1", ValueError, (BOXES[0], BOXES)),
    ("boxes1", ValueError, (BOXES[:, :5], BOXES[:, :5])),
    ("boxes2", ValueError, (BOXES, BOXES[:, :4])),
    ("boxes2", ValueError, (BOXES, BOXES[None])),
    ("boxes2", ValueError, (BOXES[None], BOXES.expand(2, 3, 6))),
    ("boxes2", ValueError, (BOXES, BOXES.to("meta"))),
]


@pytest.mark.parametrize(("name", "error", "arguments"), BAD)
@pytest.mark.parametrize("op", [box_iou, box_giou])
def test_errors_name_the_argument(op, name, error, arguments):
    with pytest.raises(error, match=f"^{name}: "):
        op(*arguments)
