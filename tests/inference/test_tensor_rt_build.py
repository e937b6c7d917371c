"""NVIDIA's own parser and builder take every exported network, and refuse what is broken.

TensorRT-RTX builds engines without a GPU; what needs one is in test_tensor_rt_on_gpu.py.
"""

import shutil

import onnx
import pytest
from network_bundles import SHAPES

from fastmed import bundle
from fastmed.errors import BundleError
from fastmed.inference.engines.onnx_file import open_onnx
from fastmed.inference.engines.protocol import EngineRefused
from fastmed.inference.engines.tensor_rt_build import Target, build, check_network
from fastmed.inference.engines.tensor_rt_flavour import Flavour, Gpu
from fastmed.inference.engines.tensor_rt_profile import Profile

rtx = pytest.importorskip("tensorrt_rtx_bindings")

A100 = Gpu("cuda:0", "NVIDIA A100", (8, 0))
ALL = ("SM80", "SM86", "SM89", "SM120")
PLAN = b"vtrt"  # how the engines of TensorRT-RTX begin


@pytest.fixture
def copied(made, tmp_path):
    """A copy of unet3d's bundle, to be damaged."""
    shutil.copytree(made("unet3d").path, tmp_path / "b")
    return bundle.read(tmp_path / "b")


def target_of(read, gpu=A100) -> Target:
    return Target(open_onnx(read), Flavour(rtx), gpu)


@pytest.mark.parametrize("name", SHAPES)
def test_every_exported_network_becomes_an_engine(made, name):
    target, said = target_of(made(name)), []
    fixed = build(target, SHAPES[name].fixed, said.append, capabilities=ALL)
    ranged = build(target, SHAPES[name].ranged, said.append, capabilities=ALL)
    weights = made(name).weights_path.stat().st_size
    for plan in (fixed, ranged):
        assert plan.startswith(PLAN)
        assert len(plan) > 0.9 * weights


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


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(copied, share):
    content = copied.onnx_path().read_bytes()
    copied.onnx_path().write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError, match=r"model.onnx: cannot be read as ONNX"):
        target_of(copied)


def test_an_empty_file_is_refused(copied):
    copied.onnx_path().write_bytes(b"")
    with pytest.raises(BundleError, match="0 inputs and 0 outputs"):
        target_of(copied)


def test_a_node_of_a_custom_domain_is_named(copied):
    model = onnx.load(copied.onnx_path())
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.domain, node.op_type, node.name = "com.acme", "FancyConv", "the_node"
    model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))
    onnx.save(model, copied.onnx_path())
    with pytest.raises(EngineRefused, match=r"cannot run .*node the_node \(FancyConv\): .*lugin"):
        check_network(target_of(copied))


def external(read, location) -> None:
    """Moves one tensor's content to a file of the bundle and says that it lies in `location`."""
    model = onnx.load(read.onnx_path())
    tensor = model.graph.initializer[0]
    (read.path / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    onnx.save(model, read.onnx_path())


def test_weights_beside_the_file_count_as_its_own(copied):
    before = target_of(copied).onnx
    external(copied, "weights.bin")
    onnx_file = target_of(copied).onnx
    check_network(target_of(copied))
    (copied.path / "weights.bin").write_bytes(bytes((copied.path / "weights.bin").stat().st_size))
    assert len({before.sha256, onnx_file.sha256, target_of(copied).onnx.sha256}) == 3
    with pytest.raises(BundleError, match="was replaced while in use"):
        onnx_file.content()


@pytest.mark.parametrize("location", ["../weights.bin", "/weights.bin", "absent.bin", "link.bin"])
def test_weights_outside_the_bundle_are_refused(copied, location):
    is_absolute = location.startswith("/")
    external(copied, f"{copied.path.parent}{location}" if is_absolute else location)
    shutil.move(copied.path / "weights.bin", copied.path.parent / "weights.bin")
    (copied.path / "link.bin").symlink_to(copied.path.parent / "weights.bin")
    with pytest.raises(BundleError, match=r"are said to lie in '.*'; expected a file in"):
        target_of(copied)


def test_images_of_another_type_are_refused(copied):
    model = onnx.load(copied.onnx_path())
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, copied.onnx_path())
    with pytest.raises(BundleError, match="image is of ONNX type 11; expected float32, float16"):
        target_of(copied)


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused_by_name():
    h200 = Gpu("cuda:0", "NVIDIA H200", (9, 0))
    said = Flavour(rtx).why_not(h200)
    assert "refuses NVIDIA H200 (compute capability 9.0), it takes 7.5, 8.0, 8.6" in said
    assert "pip install tensorrt-cu" in said
    assert Flavour(rtx).why_not(A100) == ""
