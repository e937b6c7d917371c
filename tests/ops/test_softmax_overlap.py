"""softmax_overlap, its gradient, and the exponential function they are made of."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.ops import softmax_overlap
from fastmed.testing import label_map, random_logits, softmax_overlap_reference

NAN, INF = float("nan"), float("inf")
THIRD = math.log(2)  # against 0: two thirds to one third

# logits per class, target, ignore_index, expected intersection, prediction, target per class
TABLE = {
    "equal logits share": ([[0, 0], [0, 0]], [0, 1], None, [0.5, 0.5], [1, 1], [1, 1]),
    "two thirds": ([[THIRD, 0], [0, THIRD]], [0, 0], None, [1, 0], [1, 1], [2, 0]),
    "far logits": ([[500, -500], [-500, 500]], [0, 0], None, [1, 0], [1, 1], [2, 0]),
    "minus infinity is never": ([[0, -INF], [-INF, 0]], [0, 1], None, [1, 1], [1, 1], [1, 1]),
    "ignored voxel": ([[0, 0], [0, 0]], [0, 7], 7, [0.5, 0], [0.5, 0.5], [1, 0]),
    "ignored NaN": ([[0, NAN], [0, 0]], [0, 7], 7, [0.5, 0], [0.5, 0.5], [1, 0]),
    "label of no class": ([[0, 0], [0, 0]], [0, 7], None, [0.5, 0], [1, 1], [1, 0]),
    "NaN": ([[0, NAN], [0, 0]], [0, 0], None, [NAN, 0], [NAN, NAN], [2, 0]),
    "infinity": ([[0, INF], [0, 0]], [0, 0], None, [NAN, 0], [NAN, NAN], [2, 0]),
    "one class is sigmoid": ([[0, THIRD, 0]], [0, 1, 1], None, [2 / 3 + 0.5], [2 / 3 + 1], [2]),
    "sigmoid of infinity": ([[INF, -INF, 0]], [1, 1, 0], None, [1], [1.5], [2]),
}
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LABELS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64]
RESOLUTION = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_table(name, dtype, device):
    logits, target, ignore_index, *expected = TABLE[name]
    sums = softmax_overlap(
        torch.tensor([logits], dtype=dtype, device=device),
        torch.tensor([target], device=device),
        ignore_index=ignore_index,
    )
    for each, values in zip(sums, expected, strict=True):
        assert each.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            each.cpu().double(),
            torch.tensor([values], dtype=torch.float64),
            rtol=RESOLUTION[dtype],
            atol=RESOLUTION[dtype],
            equal_nan=True,
        )


@pytest.mark.parametrize("label_dtype", LABELS, ids=str)
def test_targets_of_any_integer_dtype(label_dtype, device):
    logits = random_logits((2, 4, 5, 6), device=device)
    target = label_map((2, 5, 6), 6, device=device)
    assert all(
        map(
            torch.equal,
            softmax_overlap(logits, target.to(label_dtype), ignore_index=2),
            softmax_overlap(logits, target, ignore_index=2),
        )
    )


def test_bool_targets_of_a_sigmoid(device):
    logits = random_logits((1, 1, 9), device=device)
    truth = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0, 1]], dtype=torch.bool, device=device)
    assert all(
        map(torch.equal, softmax_overlap(logits, truth), softmax_overlap(logits, truth.long()))
    )


def test_negative_labels_count_for_no_class_and_may_be_ignored(device):
    logits = torch.zeros(1, 2, 3, device=device)
    target = torch.tensor([[-1, 0, 1]], device=device)
    assert [each.tolist() for each in softmax_overlap(logits, target)] == [
        [[0.5, 0.5]],
        [[1.5, 1.5]],
        [[1, 1]],
    ]
    _, prediction, _ = softmax_overlap(logits, target, ignore_index=-1)
    assert prediction.tolist() == [[1, 1]]


def gradient_of(overlap, logits, target, weights, ignore_index):
    leaf = logits.clone().requires_grad_()
    intersection, prediction, _ = overlap(leaf, target, ignore_index=ignore_index)
    ((intersection * weights[0]).sum() + (prediction * weights[1]).sum()).backward()
    return leaf.grad


@settings(max_examples=30, deadline=None)
@given(
    items=st.integers(1, 3),
    classes=st.sampled_from([1, 2, 3, 5, 14, 40]),
    voxels=st.integers(1, 40_000),
    dtype=st.sampled_from(FLOATS),
    ignore_index=st.sampled_from([None, 0, 1, 255]),
    seed=st.integers(0, 100),
)
def test_sums_and_gradients_agree_with_the_reference(
    items, classes, voxels, dtype, ignore_index, seed
):
    logits = random_logits((items, classes, voxels), dtype, seed=seed)
    target = label_map((items, voxels), classes + 2, seed=seed)
    sums = softmax_overlap(logits, target, ignore_index=ignore_index)
    expected = softmax_overlap_reference(logits, target, ignore_index=ignore_index)
    torch.testing.assert_close(sums, expected, rtol=2e-6, atol=1e-5)
    weights = torch.randn([2, items, classes], generator=torch.Generator().manual_seed(seed))
    gradient = gradient_of(softmax_overlap, logits, target, weights, ignore_index)
    exact = gradient_of(
        softmax_overlap_reference, logits.double(), target, weights.double(), ignore_index
    )
    assert gradient.dtype == dtype
    tolerance = max(3e-6, RESOLUTION[dtype]) if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(gradient.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("ignore_index", [None, 1])
def test_gradcheck(classes, ignore_index, device):
    logits = random_logits((2, classes, 3, 4), torch.float64, device=device).requires_grad_()
    target = label_map((2, 3, 4), classes + 1, device=device)

    def sums(values):
        return softmax_overlap(values, target, ignore_index=ignore_index)[:2]

    assert torch.autograd.gradcheck(sums, logits)


def test_ignored_voxels_get_no_gradient_even_from_nan(device):
    logits = torch.tensor([[[0.0, NAN], [1.0, 0.0]]], device=device, requires_grad=True)
    target = torch.tensor([[0, 9]], device=device)
    intersection, prediction, _ = softmax_overlap(logits, target, ignore_index=9)
    (intersection.sum() + 2 * prediction[0, 0]).backward()
    assert logits.grad[0, :, 1].tolist() == [0, 0]
    assert torch.isfinite(logits.grad).all()


def test_the_target_column_has_no_gradient():
    *_, target = softmax_overlap(random_logits((1, 2, 3)).requires_grad_(), label_map((1, 3), 2))
    assert not target.requires_grad


def test_half_logits_under_autocast_give_float32_sums(device):
    weight = torch.eye(3, device=device, requires_grad=True)
    voxels = random_logits((1, 50, 3), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = (voxels @ weight).movedim(2, 1)
        sums = softmax_overlap(logits, label_map((1, 50), 3, device=device))
    assert logits.dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in sums)
    sums[0].sum().backward()
    assert weight.grad.abs().sum() > 0


def test_views_count_as_their_copies(device):
    logits = random_logits((2, 6, 7, 3), device=device).movedim(3, 1)
    target = label_map((2, 7, 6), 3, device=device).transpose(1, 2)
    copies = softmax_overlap(logits.contiguous(), target.contiguous())
    assert all(map(torch.equal, softmax_overlap(logits, target), copies))
    every_other = softmax_overlap(logits[..., ::2], target[..., ::2])
    copies = softmax_overlap(logits[..., ::2].contiguous(), target[..., ::2].contiguous())
    assert all(map(torch.equal, every_other, copies))


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 3, 4, 0, 5), (0, 3, 4)])
def test_empty_inputs(shape, device):
    logits = torch.zeros(shape, device=device, requires_grad=True)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.uint8, device=device)
    sums = softmax_overlap(logits, target)
    assert [each.tolist() for each in sums] == [[[0] * 3] * shape[0]] * 3
    (sums[0] + sums[1]).sum().backward()
    assert logits.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_threads_change_no_bit(dtype, one_thread_then_two):
    logits = random_logits((2, 3, 50_001), dtype)
    target = label_map((2, 50_001), 3)
    weights = torch.tensor([1.0, -0.5])[:, None, None].expand(2, 2, 3)

    def sums_and_gradient():
        gradient = gradient_of(softmax_overlap, logits, target, weights, None)
        return *softmax_overlap(logits, target), gradient

    assert all(map(torch.equal, *one_thread_then_two(sums_and_gradient)))


@pytest.mark.parametrize(("dtype", "ulps"), [(torch.float32, 2), (torch.float64, 4)], ids=str)
def test_the_exponential_is_within_units_in_the_last_place(dtype, ulps):
    # Of two classes, the other at 0, sigmoid(x) = e / (1 + e); far below 0 that is e itself.
    lowest = -87 if dtype == torch.float32 else -700
    x = torch.linspace(lowest, -40, 20_001, dtype=dtype)
    logits = torch.stack([x, torch.zeros_like(x)], 1)[:, :, None]
    _, prediction, _ = softmax_overlap(logits, torch.zeros(len(x), 1, dtype=torch.uint8))
    exact = x.double().exp()
    relative = (prediction[:, 0].double() - exact).abs() / exact
    assert relative.max() <= ulps * torch.finfo(dtype).eps


def test_exponentials_below_the_normal_range_are_zero():
    logits = torch.tensor([[[-90.0], [0.0]], [[-200.0], [0.0]]])
    _, prediction, _ = softmax_overlap(logits, torch.zeros(2, 1, dtype=torch.uint8))
    assert prediction.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("ignore_index", [None, 1])
def test_opcheck(classes, ignore_index, device):
    logits = random_logits((2, classes, 10), device=device)
    target = label_map((2, 10), classes + 1, device=device)
    fastmed = torch.ops.fastmed
    torch.library.opcheck(
        fastmed.softmax_overlap.default, (logits.requires_grad_(), target, ignore_index)
    )
    grads = [torch.ones(2, classes, device=device) for _ in range(2)]
    torch.library.opcheck(
        fastmed.softmax_overlap_backward.default, (*grads, logits.detach(), target, ignore_index)
    )


def dice_loss(logits, target):
    intersection, prediction, truth = softmax_overlap(logits, target, ignore_index=3)
    return 1 - ((2 * intersection + 1) / (prediction + truth + 1)).mean()


def test_compile_runs_forward_and_backward():
    target = label_map((2, 5, 6), 4)
    gradients = []
    for loss in (dice_loss, torch.compile(dice_loss, backend="aot_eager", fullgraph=True)):
        logits = random_logits((2, 3, 5, 6)).requires_grad_()
        loss(logits, target).backward()
        gradients.append(logits.grad)
    assert torch.equal(*gradients)


class _Overlap(torch.nn.Module):
    def forward(self, logits, target):
        return softmax_overlap(logits, target)


def test_export_with_a_depth_known_only_later():
    depth = torch.export.Dim("depth", min=2, max=64)
    inputs = random_logits((2, 3, 5, 6)), label_map((2, 5, 6), 4)
    program = torch.export.export(_Overlap(), inputs, dynamic_shapes=({2: depth}, {1: depth}))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "fastmed.softmax_overlap.default" in called
    logits, target = random_logits((2, 3, 9, 6)), label_map((2, 9, 6), 4)
    assert all(map(torch.equal, program.module()(logits, target), softmax_overlap(logits, target)))


LOGITS, TARGET = torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.uint8)
BAD = [
    ("logits", TypeError, (LOGITS.long(), TARGET)),
    ("logits", ValueError, (LOGITS[:, :, 0], TARGET[:, 0])),
    ("logits", ValueError, (LOGITS[:, :0], TARGET)),
    ("target", TypeError, (LOGITS, TARGET.float())),
    ("target", ValueError, (LOGITS, TARGET[:1])),
    ("target", ValueError, (LOGITS, TARGET[:, None])),
]


@pytest.mark.parametrize(("name", "error", "arguments"), BAD)
def test_errors_name_the_argument(name, error, arguments):
    with pytest.raises(error, match=f"^{name}: "):
        softmax_overlap(*arguments)


def test_the_native_op_checks_what_could_break_memory():
    fastmed, grads = torch.ops.fastmed, torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="target"):
        fastmed.softmax_overlap(LOGITS, TARGET[:, :3].contiguous(), None)
    with pytest.raises(RuntimeError, match="logits"):
        fastmed.softmax_overlap(LOGITS.transpose(1, 2), TARGET, None)
    with pytest.raises(RuntimeError, match="grad_prediction"):
        fastmed.softmax_overlap_backward(grads, grads[:, :2].contiguous(), LOGITS, TARGET, None)
    with pytest.raises(RuntimeError, match="grad_intersection"):
        fastmed.softmax_overlap_backward(grads.double(), grads, LOGITS, TARGET, None)


def test_a_second_derivative_is_refused():
    logits = random_logits((1, 3, 4), dtype=torch.float64).requires_grad_()
    target = torch.tensor([[0, 1, 2, 0]])
    intersection = softmax_overlap(logits, target)[0]
    gradient = torch.autograd.grad(intersection.square().sum(), logits, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="softmax_overlap: has no second derivative"):
        gradient.square().sum().backward()
