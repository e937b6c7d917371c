"""Export: files for every engine, and with --to trt what TensorRT builds of them."""

import shutil

import pytest
import torch

import fastmed
from fastmed.cli import main
from fastmed.errors import UsageError
from fastmed.inference import export as exporting

WRONG = {
    "format": ({"to": "coreml"}, "--to coreml: expected one of onnx, trt"),
    "precision": ({"precision": "fp8"}, "--precision fp8: expected one of fp32, fp16, bf16, int8"),
    "no scans": ({"precision": "int8"}, "int8: needs scans to measure ranges on: --scans PATH"),
    "no scans for trt": ({"to": "trt", "precision": "int8"}, "needs scans to measure ranges on"),
}


@pytest.fixture
def copied(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def built(monkeypatch):
    """What TensorRT was asked for, where a stand-in takes its place."""
    asked = []

    class Engine:
        device = "cpu"  # where the example lies

        def __call__(self, tiles):
            asked.append(tuple(tiles.shape))

    def open_engine(read, name, device, precision, say):
        asked.append((name, device, precision))
        return Engine(), f"engine trt on {device}, as asked"

    monkeypatch.setattr(exporting, "open_engine", open_engine)
    return asked


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_wish_is_a_wrong_usage(copied, options, words):
    with pytest.raises(UsageError, match=words):
        fastmed.export(copied, **options)


def test_onnx_is_written_into_the_bundle_and_named(copied, capsys):
    assert fastmed.export(copied, precision="bf16") == (copied / "model.bf16.onnx",)
    assert main(["export", str(copied), "--to", "onnx", "--precision", "fp16"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(copied / "model.fp16.onnx")]
    assert "fastmed certify" in said.err


def test_tensorrt_builds_for_the_bundles_tile_what_is_written_where_missing(copied, built, capsys):
    (copied / "model.onnx").unlink()
    assert fastmed.export(copied, to="trt", device="cuda:1") == (copied / "model.onnx",)
    assert built == [("trt", "cuda:1", "fp32"), (1, 1, 32, 32, 32)]
    assert "Ready: engine trt on cuda:1, as asked." in capsys.readouterr().err
    written = (copied / "model.onnx").stat().st_mtime_ns
    fastmed.export(copied, to="trt", quiet=True)
    assert (copied / "model.onnx").stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""


def test_tensorrt_builds_the_precision_that_is_asked_for(copied, built, tissue):
    fastmed.export(copied, to="trt", precision="fp16")
    assert (copied / "model.fp16.onnx").is_file()
    pytest.importorskip("onnxruntime")
    made = fastmed.export(copied, to="trt", precision="int8", scans=tissue / "1.nii.gz")
    assert [path.name for path in made] == ["model.int8.onnx", "model.int8-trt.onnx"]
    before = made[0].read_bytes()
    assert fastmed.export(copied, to="trt", precision="int8") == made
    assert made[0].read_bytes() == before
    fastmed.export(copied, to="trt", precision="int8", scans=tissue)  # measured anew
    assert made[0].read_bytes() != before
    assert [each[2] for each in built[::2]] == ["fp16", "int8", "int8", "int8"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tensorrt_says_what_is_missing(copied, capsys):
    assert main(["export", str(copied), "--to", "trt"]) == 2
    assert "--engine trt: runs on cuda, not on cpu; torch" in capsys.readouterr().err
