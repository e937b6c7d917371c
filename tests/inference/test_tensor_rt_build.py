"""NVIDIA's own parser and builder take every exported network, and refuse what is broken.

TensorRT-RTX builds engines without a GPU; what needs one is in test_tensor_rt_on_gpu.py.
"""

import shutil

import network_bundles
import pytest
from network_bundles import SHAPES

from fastmed import bundle
from fastmed.errors import BundleError
from fastmed.inference.engines.onnx_file import open_onnx
from fastmed.inference.engines.protocol import EngineRefused
from fastmed.inference.engines.tensor_rt_build import Target, build, check_network
from fastmed.inference.engines.tensor_rt_flavour import Flavour, Gpu
from fastmed.inference.engines.tensor_rt_profile import Profile
from fastmed.inference.quantise import quantise

rtx = pytest.importorskip("tensorrt_rtx_bindings")

A100 = Gpu("cuda:0", "NVIDIA A100", (8, 0))
ALL = ("SM80", "SM86", "SM89", "SM120")
PLAN = b"vtrt"  # how the engines of TensorRT-RTX begin


@pytest.fixture
def copied(made, tmp_path):
    """A copy of unet3d's bundle, to be damaged."""
    shutil.copytree(made("unet3d").path, tmp_path / "b")
    return bundle.read(tmp_path / "b")


def target_of(read, gpu=A100, precision="fp32") -> Target:
    return Target(open_onnx(read, precision), Flavour(rtx), gpu)


@pytest.mark.parametrize("name", SHAPES)
def test_every_exported_network_becomes_an_engine(made, name):
    target, said = target_of(made(name)), []
    fixed = build(target, SHAPES[name].fixed, said.append, capabilities=ALL)
    ranged = build(target, SHAPES[name].ranged, said.append, capabilities=ALL)
    weights = made(name).weights_path.stat().st_size
    for plan in (fixed, ranged):
        assert plan.startswith(PLAN)
        assert len(plan) > 0.9 * weights


def test_a_file_of_eight_bits_becomes_an_engine(copied, tissue):
    pytest.importorskip("onnxruntime")
    quantise(copied.path, tissue, quiet=True)
    target = target_of(copied, precision="int8-trt")
    assert build(target, SHAPES["unet3d"].fixed, print, capabilities=ALL).startswith(PLAN)
    with pytest.raises(EngineRefused, match="DequantizeLinear"):  # the CPU's, of biases in 32 bits
        check_network(target_of(copied, precision="int8"))


@pytest.mark.parametrize("capability", ALL)
def test_an_engine_is_built_for_one_gpu_alone(made, capability):
    gpu = Gpu("cuda:0", "some GPU", (int(capability[2:-1]), int(capability[-1])))
    assert gpu.sm == capability
    assert build(target_of(made("unet3d"), gpu), SHAPES["unet3d"].fixed, print).startswith(PLAN)


def test_a_build_says_how_far_it_is(made, monkeypatch):
    monkeypatch.setattr("fastmed.inference.engines.tensor_rt_progress._REPORT_SECONDS", 0.0)
    said = []
    build(target_of(made("unet3d")), SHAPES["unet3d"].fixed, said.append)
    start = f"TensorRT-RTX {rtx.__version__} builds an engine for tiles 4 x 1 x 32 x 32 x 32: "
    assert all(sentence.startswith(start) for sentence in said)
    shares = [int(sentence.removeprefix(start).split(" %")[0]) for sentence in said]
    assert min(shares) >= 0
    assert 50 < max(shares) <= 100


def test_a_build_can_be_interrupted(made, monkeypatch):
    monkeypatch.setattr("fastmed.inference.engines.tensor_rt_progress._REPORT_SECONDS", 0.0)

    def interrupt(sentence):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(target_of(made("unet3d")), SHAPES["unet3d"].fixed, interrupt)


def test_a_shape_that_the_network_cannot_take_is_named(made):
    with pytest.raises(BundleError, match=r"cannot build an engine for tiles 1 x 2 x .* A100: "):
        build(target_of(made("unet3d")), Profile.of_one((1, 2, 32, 32, 32)), print)


def test_a_node_that_tensorrt_does_not_know_is_named(copied):
    network_bundles.add_unknown_node(copied, "com.microsoft")
    with pytest.raises(EngineRefused, match=r"cannot run .*node the_node \(FancyConv\): .*lugin"):
        check_network(target_of(copied))


def test_weights_beside_the_file_reach_the_parser(copied):
    network_bundles.move_weights(copied, "weights.bin")
    check_network(target_of(copied))
    (copied.path / "weights.bin").unlink()
    with pytest.raises(BundleError, match="expected a file in"):
        target_of(copied)


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused_by_name():
    h200 = Gpu("cuda:0", "NVIDIA H200", (9, 0))
    said = Flavour(rtx).why_not(h200)
    assert "refuses NVIDIA H200 (compute capability 9.0), it takes 7.5, 8.0, 8.6" in said
    assert "pip install tensorrt-cu" in said
    assert Flavour(rtx).why_not(A100) == ""
