"""nms, batched_nms and nms_mask: the greedy rule, its limits, and what torch makes of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.ops import batched_nms, box_iou, nms, nms_mask
from fastmed.testing import (
    batched_nms_reference,
    nms_reference,
    random_boxes,
    random_scores,
    with_degenerate,
)

NAN, INFINITY = float("nan"), float("inf")
UNIT, HALF, FAR = [0, 0, 1, 1], [0, 0, 1, 0.5], [5, 5, 6, 6]
CUBE, SLAB, ABOVE = [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0.5], [0, 0, 2, 1, 1, 3]

# boxes, scores, threshold, kept
TABLE = {
    "the better of two": ([UNIT, HALF], [0.1, 0.9], 0.4, [1]),
    "an IoU equal to the threshold stays": ([UNIT, HALF], [0.1, 0.9], 0.5, [1, 0]),
    "apart": ([UNIT, FAR], [0.1, 0.9], 0.0, [1, 0]),
    "touching": ([UNIT, [1, 0, 2, 1]], [0.9, 0.1], 0.0, [0, 1]),
    "equal scores keep the lower index": ([FAR, UNIT, UNIT], [0.5, 0.5, 0.5], 0.5, [0, 1]),
    "a suppressed box suppresses nothing": (
        [[0, 0, 2, 1], [1, 0, 3, 1], [2, 0, 4, 1]],
        [0.9, 0.8, 0.7],
        0.3,
        [0, 2],
    ),
    "below 0 all but the first": ([UNIT, FAR, HALF], [0.1, 0.9, 0.5], -0.1, [1]),
    "above 1 all": ([UNIT, UNIT], [0.1, 0.9], 1.5, [1, 0]),
    "a threshold of 1 keeps copies": ([UNIT, UNIT], [0.1, 0.9], 1.0, [1, 0]),
    "empty and inverted boxes overlap nothing": (
        [UNIT, [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]],
        [0.9, 0.8, 0.7, 0.6],
        0.0,
        [0, 1, 2, 3],
    ),
    "infinite scores": ([UNIT, FAR, HALF], [-INFINITY, 0.0, INFINITY], 0.4, [2, 1]),
    "zeros of either sign are equal": ([FAR, UNIT, UNIT], [0.0, -0.0, 0.0], 0.5, [0, 1]),
    "a NaN score": ([UNIT, HALF], [NAN, 0.1], 0.4, [1]),
    "a NaN coordinate": ([[0, 0, 1, NAN], HALF, UNIT], [0.9, 0.8, 0.7], 0.4, [1]),
    "a NaN coordinate, below 0": ([[0, 0, 1, NAN], UNIT, FAR], [0.9, 0.8, 0.7], -1.0, [1]),
    "nothing but NaN": ([[NAN] * 4, UNIT], [0.9, NAN], 0.4, []),
    "3D": ([CUBE, SLAB, ABOVE], [0.1, 0.9, 0.5], 0.4, [1, 2]),
    "3D, an IoU equal to the threshold": ([CUBE, SLAB, ABOVE], [0.1, 0.9, 0.5], 0.5, [1, 2, 0]),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLE)
def test_table(name, dtype, device):
    boxes, scores, threshold, kept = TABLE[name]
    boxes = torch.tensor(boxes, dtype=dtype, device=device)
    scores = torch.tensor(scores, dtype=dtype, device=device)
    result = nms(boxes, scores, threshold)
    assert result.dtype == torch.int64
    assert result.tolist() == kept
    for most in range(4):
        assert nms(boxes, scores, threshold, max_output=most).tolist() == kept[:most]
    mask = nms_mask(boxes, scores, None, threshold)
    assert mask.nonzero()[:, 0].tolist() == sorted(kept)


def test_groups_keep_to_themselves(device):
    boxes = torch.tensor([UNIT, UNIT, UNIT, HALF, UNIT], device=device)
    scores = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2], device=device)
    groups = torch.tensor([7, -(2**40), 7, 2**40, -(2**40)], device=device)
    assert batched_nms(boxes, scores, groups, 0.4).tolist() == [3, 1, 2]
    assert batched_nms(boxes, scores, groups, 0.4, max_output=2).tolist() == [3, 1]
    assert nms_mask(boxes, scores, groups, 0.4).tolist() == [False, True, True, True, False]


# Around the lanes, and a few times them.
SIZES = st.sampled_from([1, 2, 15, 16, 17, 200, 256, 257, 700, 1100])


@settings(max_examples=40, deadline=None)
@given(
    axes=st.sampled_from([2, 3]),
    count=SIZES,
    threshold=st.sampled_from([-0.5, 0.0, 1e-30, 0.1, 1 / 3, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    levels=st.sampled_from([None, 1, 20]),
    extent=st.sampled_from([0.0, 20.0, 100.0, 600.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_greedy_rule(axes, count, threshold, dtype, levels, extent, seed):
    boxes = with_degenerate(random_boxes([count], axes, dtype, extent=extent, seed=seed))
    scores = random_scores([count], levels=levels, seed=seed)
    kept = nms(boxes, scores, threshold)
    assert torch.equal(kept, nms_reference(boxes, scores, threshold))


@settings(max_examples=25, deadline=None)
@given(
    axes=st.sampled_from([2, 3]),
    count=SIZES,
    groups=st.sampled_from([1, 2, 40, 3000]),
    seed=st.integers(0, 1000),
)
def test_batched_is_the_union_of_its_groups(axes, count, groups, seed):
    boxes = with_degenerate(random_boxes([count], axes, seed=seed))
    scores = random_scores([count], levels=100, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(-groups, groups, [count], generator=generator)
    kept = batched_nms(boxes, scores, group, 0.2)
    assert torch.equal(kept, batched_nms_reference(boxes, scores, group, 0.2))
    members = (torch.nonzero(group == each)[:, 0] for each in group.unique())
    union = torch.cat([each[nms(boxes[each], scores[each], 0.2)] for each in members])
    assert torch.equal(kept.sort()[0], union.sort()[0])
    mask = nms_mask(boxes, scores, group, 0.2)
    assert torch.equal(mask.nonzero()[:, 0], kept.sort()[0])


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("axes", [2, 3])
def test_many_kept_boxes_equal_the_greedy_rule(axes, threshold, device):
    # More than fit a list of kept boxes, in space enough that most are.
    extent = 2000.0 if axes == 2 else 400.0
    boxes = with_degenerate(random_boxes([3000], axes, extent=extent, device=device))
    scores = random_scores([3000], levels=500, device=device)
    kept = nms(boxes, scores, threshold)
    assert len(kept) > 1500
    assert torch.equal(kept, nms_reference(boxes, scores, threshold))


@pytest.mark.parametrize(
    ("count", "extent"), [(50, 100.0), (700, 100.0), (6000, 100.0), (6000, 400.0)]
)
def test_kept_boxes_and_only_they_survive_box_iou(count, extent, device):
    boxes = with_degenerate(random_boxes([count], 3, extent=extent, device=device))
    scores = random_scores([count], levels=30, device=device)
    kept = nms(boxes, scores, 0.15)
    rank = torch.full([count], count, device=device)
    rank[scores.sort(descending=True, stable=True)[1]] = torch.arange(count, device=device)
    above = (box_iou(boxes[kept], boxes) > 0.15) & (rank[kept][:, None] < rank)
    expected = torch.ones(count, dtype=torch.bool, device=device)
    expected[above.any(0)] = False
    assert torch.equal(kept.sort()[0], expected.nonzero()[:, 0])


@settings(max_examples=20, deadline=None)
@given(count=SIZES, seed=st.integers(0, 1000))
def test_the_order_of_the_boxes_changes_nothing(count, seed):
    boxes = random_boxes([count], 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randperm(count, generator=generator).double()
    moved = torch.randperm(count, generator=generator)
    assert torch.equal(nms(boxes, scores, 0.1), moved[nms(boxes[moved], scores[moved], 0.1)])


@pytest.mark.parametrize("count", [3000, 40_000])
def test_any_number_of_threads_keeps_the_same(count, one_thread_then_two):
    boxes, scores = random_boxes([count], 3, extent=300.0), random_scores([count], levels=1000)
    groups = torch.arange(count) * 7 % 3
    one, two = one_thread_then_two(lambda: nms(boxes, scores, 0.1))
    assert torch.equal(one, two)
    one, two = one_thread_then_two(lambda: batched_nms(boxes, scores, groups, 0.1))
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_long_rows_rank_as_short_ones_do(dtype):
    # Rows of 32,768 scores and more are sorted by integer keys.
    scores = random_scores([40_000], levels=300) - 0.5
    special = torch.tensor([0.0, -0.0, INFINITY, -INFINITY, NAN, -NAN, 1e-45, -1e-45])
    scores = torch.cat([scores, special.repeat(5)]).to(dtype)
    boxes = 2 * torch.arange(len(scores), dtype=torch.float64)[:, None] + torch.tensor([0, 0, 1, 1])
    ranked = scores.sort(descending=True, stable=True)[1]
    assert torch.equal(nms(boxes, scores, 0.5), ranked[~scores[ranked].isnan()])


def test_boxes_of_very_different_sizes_and_places():
    small = random_boxes([2000], 3, extent=100.0, sides=(0.5, 2.0))
    large = random_boxes([300], 3, extent=100.0, sides=(50.0, 200.0), seed=1)
    far = random_boxes([300], 3, extent=1e6, sides=(1.0, 1e5), seed=2)
    huge = torch.tensor([[-3e38, -3e38, -3e38, 3e38, 3e38, 3e38]]).expand(20, 6)
    boxes = torch.cat([small, large, far, huge])
    scores = random_scores([len(boxes)])
    for threshold in (0.0, 1e-6, 0.1):
        assert torch.equal(nms(boxes, scores, threshold), nms_reference(boxes, scores, threshold))


def test_volumes_below_the_smallest_normal_number():
    boxes = random_boxes([600], 3, extent=1e-14, sides=(1e-15, 1e-14))
    scores = random_scores([600])
    for threshold in (-1e300, 0.0, 0.3, 0.9, 1e300):
        assert torch.equal(nms(boxes, scores, threshold), nms_reference(boxes, scores, threshold))


def test_items_of_a_batch_are_apart(device):
    boxes = random_boxes([2, 3, 500], 3, device=device)
    scores = random_scores([2, 3, 500], levels=50, device=device)
    groups = (torch.arange(3000, device=device) % 4).reshape(2, 3, 500)
    for given_groups in (None, groups):
        mask = nms_mask(boxes, scores, given_groups, 0.1)
        for i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3)):
            item = None if given_groups is None else given_groups[i, j]
            assert torch.equal(mask[i, j], nms_mask(boxes[i, j], scores[i, j], item, 0.1))


def test_empty_inputs(device):
    for axes in (2, 3):
        boxes = torch.empty(2, 0, 2 * axes, device=device)
        scores, groups = boxes[..., 0], boxes[..., 0].long()
        assert nms(boxes[0], scores[0], 0.5).tolist() == []
        assert batched_nms(boxes[0], scores[0], groups[0], 0.5, max_output=3).tolist() == []
        assert nms_mask(boxes, scores, groups, 0.5).shape == (2, 0)
        none = torch.empty(0, 5, 2 * axes, device=device)
        assert nms_mask(none, none[..., 0], None, 0.5).shape == (0, 5)


@pytest.mark.parametrize("count", [2, 400, 5000])
@pytest.mark.parametrize("value", [INFINITY, -INFINITY])
def test_infinite_coordinates_raise_where_the_host_waits(value, count, device):
    boxes, scores = random_boxes([count], 3, device=device), random_scores([count], device=device)
    boxes[count // 2, 4] = value
    groups = torch.zeros(count, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"^boxes: .*infinite"):
        nms(boxes, scores, 0.5)
    with pytest.raises(ValueError, match=r"^boxes: .*infinite"):
        batched_nms(boxes, scores, groups, 0.5)
    as_nan = torch.where(boxes.isinf(), NAN, boxes)
    assert torch.equal(nms_mask(boxes, scores, None, 0.5), nms_mask(as_nan, scores, None, 0.5))


def test_autocast_changes_nothing(device):
    boxes, scores = random_boxes([500], 3, device=device), random_scores([500], device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = nms(boxes, scores, 0.3), nms(boxes.half(), scores.half(), 0.3)
    assert torch.equal(inside[0], nms(boxes, scores, 0.3))
    assert torch.equal(inside[1], nms(boxes.half(), scores.half(), 0.3))


def test_inputs_may_require_a_gradient(device):
    boxes = random_boxes([50], 3, device=device).requires_grad_()
    scores = random_scores([50], device=device).requires_grad_()
    assert not nms(boxes, scores, 0.3).requires_grad
    assert nms_mask(boxes, scores, None, 0.3).sum() == len(nms(boxes, scores, 0.3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_cuda_graph_replays_the_mask():
    boxes = random_boxes([3000], 3, device="cuda")
    scores = random_scores([3000], device="cuda")
    nms_mask(boxes, scores, None, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask = nms_mask(boxes, scores, None, 0.1)
    boxes.copy_(random_boxes([3000], 3, device="cuda", seed=5))
    graph.replay()
    assert torch.equal(mask, nms_mask(boxes, scores, None, 0.1))


BOXES, SCORES, GROUPS = torch.zeros(3, 6), torch.zeros(3), torch.zeros(3, dtype=torch.int64)
BAD = [
    ("boxes", TypeError, (BOXES.int(), SCORES, GROUPS, 0.5)),
    ("boxes", ValueError, (BOXES[:, :5], SCORES, GROUPS, 0.5)),
    ("scores", TypeError, (BOXES, SCORES.long(), GROUPS, 0.5)),
    ("scores", ValueError, (BOXES, SCORES[:2], GROUPS, 0.5)),
    ("scores", ValueError, (BOXES, SCORES.to("meta"), GROUPS, 0.5)),
    ("iou_threshold", ValueError, (BOXES, SCORES, GROUPS, NAN)),
    ("iou_threshold", ValueError, (BOXES, SCORES, GROUPS, INFINITY)),
]
BAD_GROUPS = [
    ("groups", TypeError, (BOXES, SCORES, GROUPS.float(), 0.5)),
    ("groups", ValueError, (BOXES, SCORES, GROUPS[:1], 0.5)),
    ("groups", ValueError, (BOXES, SCORES, GROUPS.to("meta"), 0.5)),
]


@pytest.mark.parametrize(("name", "error", "arguments"), BAD + BAD_GROUPS)
@pytest.mark.parametrize("op", [batched_nms, nms_mask])
def test_errors_name_the_argument(op, name, error, arguments):
    with pytest.raises(error, match=f"^{name}: "):
        op(*arguments)


@pytest.mark.parametrize(("name", "error", "arguments"), BAD)
def test_errors_of_nms_name_the_argument(name, error, arguments):
    boxes, scores, _, threshold = arguments
    with pytest.raises(error, match=f"^{name}: "):
        nms(boxes, scores, threshold)


def test_batches_and_negative_limits_are_refused():
    with pytest.raises(ValueError, match=r"^boxes: "):
        nms(BOXES[None], SCORES[None], 0.5)
    with pytest.raises(ValueError, match=r"^max_output: "):
        nms(BOXES, SCORES, 0.5, max_output=-1)
