"""A bundle's ONNX file is read and found whole before an engine gets it, whichever engine."""

import shutil

import network_bundles
import onnx
import pytest
import torch

from fastmed import bundle
from fastmed.errors import BundleError
from fastmed.inference.engines import open_engine
from fastmed.inference.engines.onnx_file import open_onnx

ENGINES = {"ov": "openvino", "ort": "onnxruntime"}


@pytest.fixture
def copied(made, tmp_path):
    """A bundle of a U-Net whose files may be damaged."""
    return bundle.read(shutil.copytree(made("unet3d").path, tmp_path / "bundle"))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(copied, share):
    content = copied.onnx_path().read_bytes()
    copied.onnx_path().write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError, match=r"model.onnx: cannot be read as ONNX .*export it again"):
        open_onnx(copied)


def test_an_empty_file_is_refused(copied):
    copied.onnx_path().write_bytes(b"")
    with pytest.raises(BundleError, match="it has no graph"):
        open_onnx(copied)


def test_weights_beside_the_file_count_as_its_own(copied):
    before = open_onnx(copied)
    network_bundles.move_weights(copied, "weights.bin")
    beside = open_onnx(copied)
    (copied.path / "weights.bin").write_bytes(bytes((copied.path / "weights.bin").stat().st_size))
    assert len({before.sha256, beside.sha256, open_onnx(copied).sha256}) == 3
    with pytest.raises(BundleError, match="was replaced while in use"):
        beside.content()


@pytest.mark.parametrize("name", ENGINES)
def test_weights_beside_the_file_are_the_engines_too(copied, name):
    pytest.importorskip(ENGINES[name])
    tiles = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = open_engine(copied, name, "cpu")[0](tiles).clone()
    network_bundles.move_weights(copied, "weights.bin")
    assert torch.equal(open_engine(copied, name, "cpu")[0](tiles), expected)


@pytest.mark.parametrize("name", ["auto", *ENGINES])
@pytest.mark.parametrize("location", ["../weights.bin", "/weights.bin", "absent.bin", "link.bin"])
def test_weights_outside_the_bundle_are_refused(copied, location, name):
    pytest.importorskip(ENGINES.get(name, "onnx"))
    is_absolute = location.startswith("/")
    network_bundles.move_weights(
        copied, f"{copied.path.parent}{location}" if is_absolute else location
    )
    shutil.move(copied.path / "weights.bin", copied.path.parent / "weights.bin")
    (copied.path / "link.bin").symlink_to(copied.path.parent / "weights.bin")
    with pytest.raises(BundleError, match=r"are said to lie in '.*'; expected a file in"):
        open_engine(copied, name, "cpu")


@pytest.mark.parametrize("name", ["auto", *ENGINES])
def test_a_node_of_a_custom_domain_is_named(copied, name):
    pytest.importorskip(ENGINES.get(name, "onnx"))
    network_bundles.add_unknown_node(copied, "com.acme")
    with pytest.raises(BundleError, match=r"node the_node is FancyConv of the domain com\.acme"):
        open_engine(copied, name, "cpu")


def test_a_node_of_a_custom_domain_is_found_in_a_branch(copied):
    model = onnx.load(copied.onnx_path())
    fancy = onnx.helper.make_node("Fancy", [], ["y"], "hidden", domain="com.acme")
    branch = onnx.helper.make_graph([fancy], "branch", [], [])
    model.graph.node.append(
        onnx.helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    )
    onnx.save(model, copied.onnx_path())
    with pytest.raises(BundleError, match=r"node hidden is Fancy of the domain com\.acme"):
        open_onnx(copied)


@pytest.mark.parametrize("name", ENGINES)
def test_a_node_that_an_engine_does_not_know_is_one_line(copied, name):
    pytest.importorskip(ENGINES[name])
    network_bundles.add_unknown_node(copied, "com.microsoft")
    with pytest.raises(BundleError, match=f"engine {name} cannot load it: [^\n]+$"):
        open_engine(copied, name, "cpu")


def test_images_of_another_type_are_refused(copied):
    model = onnx.load(copied.onnx_path())
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, copied.onnx_path())
    with pytest.raises(BundleError, match="image is of ONNX type 11; expected float32, float16"):
        open_onnx(copied)
