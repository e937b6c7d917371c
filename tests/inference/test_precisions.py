"""Lower precision is a file of its own, or a hint; who cannot compute in it says so."""

import shutil

import numpy as np
import onnx
import pytest
import torch

import fastmed
from fastmed import bundle, exporter, models
from fastmed.cli import main
from fastmed.errors import BundleError, UsageError
from fastmed.inference.engines import kinds, open_engine, open_vino

FILES = {"fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx"}
STORED = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
# Of the largest logit; a bundle of fresh weights is no worse conditioned than others.
APART = {"fp16": 0.01, "bf16": 0.08}


@pytest.fixture(scope="module")
def exported(tiny_bundle, tmp_path_factory):
    """A bundle with all its files."""
    folder = tmp_path_factory.mktemp("precisions") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    assert [exporter.export(folder, precision=name).name for name in FILES] == [*FILES.values()]
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


def can(read, name, precision):
    """Opens an engine; skips where this machine lacks the library or the arithmetic."""
    pytest.importorskip({"ov": "openvino", "ort": "onnxruntime", "torch": "torch"}[name])
    lacking = kinds.present(read, "cpu", precision)[name]
    if "bfloat16 for few" in lacking or f"no {precision} arithmetic" in lacking:
        pytest.skip(lacking)
    return open_engine(read, name, "cpu", precision)[0]


@pytest.mark.parametrize("precision", FILES)
def test_weights_are_rounded_and_normalisations_stay_float32(exported, precision):
    model = onnx.load(exported / FILES[precision])
    onnx.checker.check_model(model, full_check=True)
    assert {value.name: value.type.tensor_type.elem_type for value in model.graph.input} == {
        "image": onnx.TensorProto.FLOAT
    }
    assert {value.name: value.type.tensor_type.elem_type for value in model.graph.output} == {
        "logits": onnx.TensorProto.FLOAT
    }
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    seen = {"Conv": set(), "GroupNormalization": set()}
    for node in inferred.node:
        if node.op_type in seen:
            seen[node.op_type] |= {types[name] for name in node.input}
    assert seen == {"Conv": {STORED[precision]}, "GroupNormalization": {onnx.TensorProto.FLOAT}}


@pytest.mark.parametrize("precision", ["fp32", *FILES])
def test_a_file_says_what_it_was_made_of(exported, precision):
    model = onnx.load(exported / FILES.get(precision, "model.onnx"))
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts.pop("fastmed.precision") == precision
    weights = bundle.file_sha256(exported / "weights.safetensors")
    assert facts.pop("fastmed.weights_sha256") == weights
    assert '"name": "tiny"' in facts.pop("fastmed.spec")
    assert facts == {}


@pytest.mark.parametrize("engine", ["torch", "ort", "ov"])
@pytest.mark.parametrize("precision", FILES)
@pytest.mark.parametrize("size", [(1, 32, 32, 32), (2, 17, 33, 16)], ids=str)
def test_engines_stay_near_float32(exported, engine, precision, size):
    read = bundle.read(exported)
    network = can(read, engine, precision)
    assert (network.precision, network.name) == (precision, engine)
    tiles = torch.rand(size[0], 1, *size[1:], generator=torch.Generator().manual_seed(0))
    expected = open_engine(read, "torch", "cpu")[0](tiles)
    logits = network(tiles)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < APART[precision] * expected.abs().max()


def test_a_precision_that_an_engine_lacks_is_never_replaced(exported):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UsageError, match=r"--engine ort: .*has bfloat16 for few operations"):
        open_engine(bundle.read(exported), "ort", "cpu", "bf16")


def test_a_precision_that_the_cpu_lacks_is_never_replaced(exported, monkeypatch):
    pytest.importorskip("openvino")

    class Old:
        def get_property(self, device, name):
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8", "BIN"]

    monkeypatch.setattr(open_vino, "_core", Old)
    for precision in FILES:
        with pytest.raises(UsageError, match=f"this CPU has no {precision} arithmetic, only fp32"):
            open_engine(bundle.read(exported), "ov", "cpu", precision)


def test_auto_passes_over_who_cannot(exported, monkeypatch):
    pytest.importorskip("openvino")
    old = type("Old", (), {"get_property": lambda *names: ["FP32"]})()
    monkeypatch.setattr(open_vino, "_core", lambda: old)
    engine, sentence = open_engine(bundle.read(exported), "auto", "cpu", "bf16")
    assert (engine.name, engine.precision) == ("torch", "bf16")
    assert sentence.startswith("engine torch in bf16 on cpu (ov: this CPU has no bf16")


def test_a_missing_file_names_the_command_that_makes_it(copied):
    pytest.importorskip("onnxruntime")
    (copied / "model.fp16.onnx").unlink()
    command = f"fastmed export {copied} --to onnx --precision fp16"
    with pytest.raises(UsageError, match=f"has no model.fp16.onnx; {command}"):
        open_engine(bundle.read(copied), "ort", "cpu", "fp16")


def test_a_file_of_other_weights_is_refused_or_gone(copied, tiny_spec):
    pytest.importorskip("onnxruntime")
    content = (copied / "model.fp16.onnx").read_bytes()
    bundle.write(copied, tiny_spec, models.build("unet3d", base_channels=8))
    assert not list(copied.glob("*.onnx"))
    (copied / "model.fp16.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model.fp16.onnx was exported from other weights"):
        open_engine(bundle.read(copied), "ort", "cpu", "fp16")


def test_an_unknown_precision_is_a_wrong_usage(exported):
    with pytest.raises(UsageError, match="--precision fp8: expected one of auto, fp32, fp16, bf16"):
        fastmed.load(exported, precision="fp8")
    with pytest.raises(UsageError, match="--precision fp8: expected one of fp32, fp16, bf16"):
        fastmed.export(exported, precision="fp8")


def test_a_weight_beyond_fp16_stops_the_export(copied, tiny_spec, capsys):
    network = models.build("unet3d", base_channels=8)
    with torch.no_grad():
        next(network.parameters()).fill_(7e4)
    bundle.write(copied, tiny_spec, network)
    assert main(["export", str(copied), "--to", "onnx", "--precision", "fp16"]) == 1
    said = capsys.readouterr().err
    assert f"bundle {copied}: --precision fp16: weight: a weight of 7e+04" in said
    assert not list(copied.glob("*.onnx"))


def test_a_run_in_bf16_says_so(exported, tmp_path):
    import json

    import nibabel

    can(bundle.read(exported), "torch", "bf16")
    hu = np.random.default_rng(0).integers(-1000, 300, (20, 40, 40)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu.T, np.diag([3.0, 3, 3, 1])), tmp_path / "scan.nii.gz")
    flags = ["--engine", "torch", "--precision", "bf16", "--write", "json", "--quiet"]
    arguments = ["infer", "--input", str(tmp_path / "scan.nii.gz"), "--model", str(exported)]
    assert main([*arguments, "--output", str(tmp_path / "out"), *flags]) == 0
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert facts["engine"] == "torch"
    assert facts["precision"] == "bf16"
    assert "in bf16" in facts["engine_choice"]
    assert "model.bf16.onnx" in facts["model"]["sha256"]
