"""The ops as torch sees them: opcheck, torch.compile, torch.export, the fake kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmed import ops
from fastmed.testing import fitted_matrix, label_map, smooth_logits, stored_voxels

SHAPE, SIZE = (6, 9, 11), [5, 7, 8]


def _number(value, device):
    return torch.tensor([value], dtype=torch.float64, device=device)


def _native_calls(device):
    matrix = fitted_matrix(SHAPE, SIZE).to(device)[None]
    volume = stored_voxels(SHAPE, device=device)
    window = torch.tensor([[-1000.0, 400.0]], dtype=torch.float64, device=device)
    scale, shift, fill = (_number(value, device) for value in (1.0, -5.0, -1000.0))
    logits = smooth_logits((3, *SHAPE), device=device)[None]
    labels = label_map((2, *SHAPE), 3, device=device)
    fastmed = torch.ops.fastmed
    return [
        (
            fastmed.window_resample,
            ([volume], matrix, SIZE, scale, shift, window, fill, False, torch.float16),
        ),
        (
            fastmed.window_resample,
            ([volume] * 2, matrix, SIZE, scale, shift, None, None, True, torch.int16),
        ),
        (fastmed.resample_argmax, (logits, matrix, SIZE, 2)),
        (fastmed.overlap_counts, (labels, labels, 3, None)),
    ]


@pytest.mark.parametrize("index", range(4))
def test_opcheck(index, device):
    op, arguments = _native_calls(device)[index]
    torch.library.opcheck(op.default, arguments)


class _Pipeline(torch.nn.Module):
    """Volume to grid, grid to logits, logits to labels, labels to counts."""

    def forward(self, volume, matrix, back):
        grid = ops.window_resample(
            volume, matrix, SIZE, scale=1.0, shift=-1024.0, window=(-1000.0, 400.0), fill=-1000.0
        )
        labels = ops.resample_argmax(torch.stack([grid, 1 - grid]), back, SHAPE, outside=0)
        return grid, labels, ops.overlap_counts(labels[None], labels[None], 2)


def _inputs():
    return stored_voxels(SHAPE), fitted_matrix(SHAPE, SIZE), fitted_matrix(SIZE, SHAPE)


def test_compile_runs_the_whole_graph():
    compiled = torch.compile(_Pipeline(), backend="aot_eager", fullgraph=True)
    for result, expected in zip(compiled(*_inputs()), _Pipeline()(*_inputs()), strict=True):
        assert torch.equal(result, expected)


def test_export_keeps_the_ops():
    program = torch.export.export(_Pipeline(), _inputs())
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {
        f"fastmed.{op}.default" for op in ("window_resample", "resample_argmax", "overlap_counts")
    } <= called
    for result, expected in zip(program.module()(*_inputs()), _Pipeline()(*_inputs()), strict=True):
        assert torch.equal(result, expected)


def test_export_with_a_depth_known_only_later():
    depth = torch.export.Dim("depth", min=2, max=64)
    program = torch.export.export(_Pipeline(), _inputs(), dynamic_shapes=({0: depth}, None, None))
    volume, matrix, back = stored_voxels((13, *SHAPE[1:])), *_inputs()[1:]
    for result, expected in zip(
        program.module()(volume, matrix, back), _Pipeline()(volume, matrix, back), strict=True
    ):
        assert torch.equal(result, expected)


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones():
    real = _Pipeline()(*_inputs())
    with FakeTensorMode() as mode:
        fake = _Pipeline()(*(mode.from_tensor(each) for each in _inputs()))
    assert [(each.shape, each.dtype) for each in fake] == [
        (each.shape, each.dtype) for each in real
    ]
