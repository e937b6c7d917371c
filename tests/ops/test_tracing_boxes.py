"""The box ops as torch sees them: opcheck, torch.compile, torch.export."""

import pytest
import torch

from fastmed.ops import batched_nms, box_giou, box_iou, nms, nms_mask
from fastmed.testing import random_boxes, random_scores


@pytest.mark.parametrize("generalized", [False, True])
def test_opcheck_of_overlap(generalized, device):
    boxes1 = random_boxes([2, 5], 3, device=device).requires_grad_()
    boxes2 = random_boxes([2, 7], 3, device=device, seed=1).requires_grad_()
    torch.library.opcheck(torch.ops.fastmed.box_iou.default, (boxes1, boxes2, generalized))
    grad = torch.rand(2, 5, 7, device=device)
    arguments = (grad, boxes1.detach(), boxes2.detach(), generalized)
    torch.library.opcheck(torch.ops.fastmed.box_iou_backward.default, arguments)


def test_overlap_compiles_whole_with_its_gradient(device):
    def loss(boxes1, boxes2):
        return (1 - box_giou(boxes1, boxes2)).sum() + box_iou(boxes1.half(), boxes2).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    for each in (loss, compiled):
        leaf = random_boxes([6], 3, device=device).requires_grad_()
        value = each(leaf, random_boxes([9], 3, device=device, seed=1))
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


class _Overlap(torch.nn.Module):
    def forward(self, boxes1, boxes2):
        return box_iou(boxes1, boxes2)


def test_export_of_overlap_with_counts_known_only_later():
    count = torch.export.Dim("count", min=2, max=1000)
    inputs = random_boxes([5], 3), random_boxes([7], 3, seed=1)
    program = torch.export.export(_Overlap(), inputs, dynamic_shapes=({0: count}, None))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "fastmed.box_iou.default" in called
    longer = random_boxes([31], 3, seed=2), inputs[1]
    assert torch.equal(program.module()(*longer), box_iou(*longer))


def test_opcheck_of_suppression(device):
    boxes, scores = random_boxes([2, 50], 3, device=device), random_scores([2, 50], device=device)
    for groups in (None, torch.zeros_like(scores, dtype=torch.int64)):
        arguments = boxes, scores, groups, 0.3
        torch.library.opcheck(torch.ops.fastmed.nms_mask.default, arguments)
        item = [each if each is None else each[0] for each in arguments[:3]]
        torch.library.opcheck(torch.ops.fastmed.nms.default, (*item, 0.3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_opcheck_of_suppression_in_a_given_order():
    boxes, scores = random_boxes([2, 50], 3, device="cuda"), random_scores([2, 50], device="cuda")
    order = scores.sort(descending=True, stable=True)[1]
    for groups in (None, torch.zeros_like(order)):
        arguments = boxes, scores, order, groups, 0.3
        torch.library.opcheck(torch.ops.fastmed.nms_sorted.default, arguments)


def test_the_mask_compiles_whole(device):
    boxes, scores = random_boxes([2, 90], 3, device=device), random_scores([2, 90], device=device)
    groups = (torch.arange(180, device=device) % 3).reshape(2, 90)
    compiled = torch.compile(nms_mask, backend="aot_eager", fullgraph=True)
    for given_groups in (None, groups):
        expected = nms_mask(boxes, scores, given_groups, 0.2)
        assert torch.equal(compiled(boxes, scores, given_groups, 0.2), expected)


def test_results_of_unknown_length_compile_whole(device):
    boxes, scores = random_boxes([90], 3, device=device), random_scores([90], device=device)
    groups = torch.arange(90, device=device) % 3

    def both(boxes, scores, groups):
        single = nms(boxes, scores, 0.2, max_output=7)
        return single, boxes[batched_nms(boxes, scores, groups, 0.2)]

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
        for result, expected in zip(
            compiled(boxes, scores, groups), both(boxes, scores, groups), strict=True
        ):
            assert torch.equal(result, expected)


class _Mask(torch.nn.Module):
    def forward(self, boxes, scores, groups):
        return nms_mask(boxes, scores, groups, 0.2)


class _Kept(torch.nn.Module):
    def forward(self, boxes, scores):
        return nms(boxes, scores, 0.2)


def test_export_of_suppression_with_a_count_known_only_later():
    count = torch.export.Dim("count", min=2, max=5000)

    def inputs(count):
        return random_boxes([count], 3), random_scores([count]), torch.arange(count) % 3

    shapes = ({0: count}, {0: count}, {0: count})
    program = torch.export.export(_Mask(), inputs(90), dynamic_shapes=shapes)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "fastmed.nms_mask.default" in called
    assert torch.equal(program.module()(*inputs(411)), _Mask()(*inputs(411)))
    program = torch.export.export(_Kept(), inputs(90)[:2], dynamic_shapes=shapes[:2])
    assert torch.equal(program.module()(*inputs(411)[:2]), _Kept()(*inputs(411)[:2]))
