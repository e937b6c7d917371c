"""A loaded engine gets memory for the tiles at hand, and is captured where they have one shape.

TensorRT and CUDA are played by stand-ins on the CPU; test_tensor_rt_on_gpu.py has the real ones.
"""

import ctypes
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastmed.errors import SeriesError
from fastmed.inference.engines.tensor_rt_flavour import Flavour
from fastmed.inference.engines.tensor_rt_program import Program

TRT = SimpleNamespace(
    __version__="11.4",
    ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
    TensorIOMode=SimpleNamespace(INPUT="in"),
    DataType=SimpleNamespace(FLOAT="f32", HALF="f16", BF16="bf16"),
)
RTX = SimpleNamespace(
    **vars(TRT),
    ComputeCapability=None,
    CudaGraphStrategy=SimpleNamespace(DISABLED="off", WHOLE_GRAPH_CAPTURE="whole"),
    DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
)
DTYPES = {"f32": torch.float32, "f16": torch.float16}


class Halver:
    """An engine and its context: logits [B, 1, W] are half of images [B, 1, W]."""

    num_io_tensors = 2

    def __init__(self, dtype="f32", *, works=True):
        self.dtype, self.works = dtype, works
        self.addresses, self.shapes, self.runs = {}, [], 0

    def get_tensor_name(self, index):
        return ("dense", "scan")[index]

    def get_tensor_mode(self, name):
        return {"scan": "in", "dense": "out"}[name]

    def get_tensor_dtype(self, name):
        return self.dtype

    def create_execution_context(self, config=None):
        self.config = config
        return self

    def create_runtime_config(self):
        self.kernels = SimpleNamespace(deserialize=self._take, serialize=lambda: b"compiled")
        return SimpleNamespace(
            create_runtime_cache=lambda: self.kernels, set_runtime_cache=lambda cache: True
        )

    def _take(self, kernels):
        self.given = kernels

    def set_input_shape(self, name, shape):
        self.shapes.append(shape)
        return shape[1] == 1

    def get_tensor_shape(self, name):
        return self.shapes[-1]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        self.runs += 1
        if self.works:
            self._at("dense").copy_(self._at("scan") / 2)
        return self.works

    def _at(self, name):
        shape, dtype = self.shapes[-1], DTYPES[self.dtype]
        count = torch.Size(shape).numel()
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(self.addresses[name])
        return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


class Graph:
    """A CUDA graph: replays what ran while it was captured."""

    engine, may_capture = None, True
    replays = 0

    def replay(self):
        Graph.replays += 1
        Graph.engine.execute_async_v3(0)


@contextmanager
def capture(graph, *, stream, capture_error_mode):
    yield
    if not Graph.may_capture:
        raise RuntimeError("operation not permitted\nwhile capturing")


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None, cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(Graph, "may_capture", True)
    monkeypatch.setattr(Graph, "replays", 0)


@pytest.fixture
def made(monkeypatch):
    """Returns a function that makes a program around an engine."""

    def make(engine, trt=TRT, **changes):
        monkeypatch.setattr(Graph, "engine", engine)
        keywords = {"captures": True, "say": lambda sentence: None} | changes
        return Program(Flavour(trt), (None, engine), "cpu", **keywords)

    return make


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_float32_whatever_the_network_computes_in(made, dtype):
    tiles = torch.rand(2, 1, 9)
    logits = made(Halver(dtype))(tiles)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, tiles / 2, rtol=0, atol=1e-3)


def test_tiles_that_are_no_plain_memory_are_taken(made):
    tiles = torch.rand(9, 1, 4).transpose(0, 2)[:, :, ::2]
    torch.testing.assert_close(made(Halver())(tiles), tiles / 2)


def test_one_shape_is_captured_once_and_then_replayed(made):
    program, engine = made(made_of := Halver()), made_of
    for seed in range(3):
        tiles = torch.rand(2, 1, 9, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(program(tiles), tiles / 2)
    assert Graph.replays == 2
    assert engine.shapes == [(2, 1, 9)]


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so(made, monkeypatch):
    monkeypatch.setattr(Graph, "may_capture", False)
    said = []
    program = made(Halver(), say=said.append)
    for _ in range(3):
        tiles = torch.rand(2, 1, 9)
        assert torch.equal(program(tiles), tiles / 2)
    assert Graph.replays == 0
    assert said == ["TensorRT 11.4 runs without a CUDA graph: operation not permitted"]


def test_many_shapes_get_memory_each_and_no_graph(made):
    program = made(Halver(), captures=False)
    for width in (9, 9, 3, 20):
        tiles = torch.rand(2, 1, width)
        assert torch.equal(program(tiles), tiles / 2)
    assert Graph.replays == 0


def test_a_shape_that_tensorrt_refuses_is_named(made):
    with pytest.raises(SeriesError, match=r"TensorRT 11.4 refuses tiles \[2, 3, 9\]"):
        made(Halver())(torch.rand(2, 3, 9))


def test_a_run_that_fails_is_never_an_answer(made):
    program = made(Halver(works=False))
    for _ in range(2):
        with pytest.raises(SeriesError, match=r"TensorRT 11.4 failed on tiles \[2, 1, 9\]"):
            program(torch.rand(2, 1, 9))


@pytest.mark.parametrize(("captures", "strategy"), [(True, "whole"), (False, "off")])
def test_tensorrt_rtx_captures_by_itself_and_keeps_its_kernels(made, captures, strategy):
    engine = Halver()
    program = made(engine, RTX, captures=captures, kernels=b"of yesterday")
    for is_first in (True, False):
        tiles = torch.rand(2, 1, 9)
        assert torch.equal(program(tiles), tiles / 2)
        assert program.has_new_kernels is is_first
    assert Graph.replays == 0
    assert engine.config.cuda_graph_strategy == strategy
    assert (engine.given, program.compiled_kernels()) == (b"of yesterday", b"compiled")
