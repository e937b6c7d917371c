"""The ops as torch sees them: opcheck, torch.compile, torch.export, the fake kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastmed import ops
from fastmed.testing import OP_CASES, fitted_matrix, stored_voxels

SHAPE, SIZE = (6, 9, 11), [5, 7, 8]


class _NativeCalls(TorchDispatchMode):
    """Notes every call of a native op of fastmed."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, arguments=(), keywords=None):
        if op.namespace == "fastmed":
            self.calls.append((op, arguments, keywords or {}))
        return op(*arguments, **(keywords or {}))


@pytest.fixture(params=[case for case in OP_CASES if not case.large], ids=str)
def case(request):
    return request.param


def test_opcheck(case, device):
    arguments = case.make(device)
    with _NativeCalls() as native:
        getattr(ops, case.op)(*arguments, **case.keywords)
    assert native.calls
    for op, values, keywords in native.calls:
        torch.library.opcheck(op, values, keywords)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_no_result(case, half, device):
    arguments = case.make(device)
    plain = getattr(ops, case.op)(*arguments, **case.keywords)
    with torch.autocast(device, dtype=half):
        result = getattr(ops, case.op)(*arguments, **case.keywords)
    torch.testing.assert_close(result, plain, rtol=0, atol=0, equal_nan=True)


# Their outputs' sizes depend on values.
_UNKNOWN_SIZE = ("nms", "batched_nms")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_cuda_graph_replays_what_it_captured(case):
    if case.op in _UNKNOWN_SIZE:
        pytest.skip("the size of the result depends on values, which a graph cannot wait for")
    arguments = case.make("cuda")
    keywords = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in case.keywords.items()
    }
    expected = getattr(ops, case.op)(*arguments, **keywords)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        getattr(ops, case.op)(*arguments, **keywords)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = getattr(ops, case.op)(*arguments, **keywords)
    graph.replay()
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


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
