"""Eight bits are two files more, with ranges measured on scans; who has them not says so."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from fastmed import bundle
from fastmed.cli import main
from fastmed.errors import BundleError, FastmedError, UsageError
from fastmed.inference import quantise as quantising
from fastmed.inference.engines import open_engine
from fastmed.inference.quantise import quantise

pytest.importorskip("onnxruntime")

ENGINES = {"ov": "openvino", "ort": "onnxruntime"}
FILES = {"model.int8.onnx": onnx.TensorProto.UINT8, "model.int8-trt.onnx": onnx.TensorProto.INT8}


@pytest.fixture(scope="module")
def quantised(tiny_bundle, tissue, tmp_path_factory):
    """A bundle with both files, made by the command's own function."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("int8") / "bundle")
    (folder / "model.onnx").unlink()  # it is written first where it is missing
    paths = quantise(folder, tissue, quiet=True)
    assert [path.name for path in paths] == [*FILES]
    return folder


@pytest.fixture
def copied(quantised, tmp_path):
    return shutil.copytree(quantised, tmp_path / "bundle")


def sources(graph):
    """Which node each value comes of."""
    return {name: node for node in graph.node for name in node.output}


@pytest.mark.parametrize("name", FILES)
def test_all_convolutions_but_the_outermost_see_eight_bits(quantised, name):
    model = onnx.load(quantised / name)
    onnx.checker.check_model(model, full_check=True)
    made, stored = sources(model.graph), {t.name: t for t in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for node in convolutions[1:-1]:
        for value, kind in zip(node.input[:2], (FILES[name], onnx.TensorProto.INT8), strict=True):
            scaled = made[value]
            assert scaled.op_type == "DequantizeLinear"
            assert stored[scaled.input[2]].data_type == kind
            if name == "model.int8-trt.onnx":
                assert not onnx.numpy_helper.to_array(stored[scaled.input[2]]).any()
        weights = made[node.input[1]]
        assert stored[weights.input[1]].dims == [stored[weights.input[0]].dims[0]]  # a channel each
    assert convolutions[0].input[0] == "image"
    for node in (convolutions[0], convolutions[-1]):
        assert stored[node.input[1]].data_type == onnx.TensorProto.FLOAT
    norms = [node for node in model.graph.node if node.op_type == "GroupNormalization"]
    assert norms
    assert all(
        stored[name].data_type == onnx.TensorProto.FLOAT for n in norms for name in n.input[1:]
    )


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_was_made_of(quantised, name):
    named = {entry.key: entry.value for entry in onnx.load(quantised / name).metadata_props}
    assert named["fastmed.weights_sha256"] == bundle.file_sha256(quantised / "weights.safetensors")
    assert named["fastmed.onnx_sha256"] == bundle.file_sha256(quantised / "model.onnx")
    assert f"model.{named['fastmed.precision']}.onnx" == name
    assert '"name": "tiny"' in named["fastmed.spec"]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_stay_near_float32(quantised, engine):
    pytest.importorskip(ENGINES[engine])
    read = bundle.read(quantised)
    tiles = torch.rand(2, 1, 32, 17, 33, generator=torch.Generator().manual_seed(0))
    expected = open_engine(read, "torch", "cpu")[0](tiles)
    network, sentence = open_engine(read, engine, "cpu", "int8")
    assert (network.name, network.precision) == (engine, "int8")
    assert sentence == f"engine {engine} in int8 on cpu, as asked"
    assert 0 < (network(tiles) - expected).abs().max() < 0.1 * expected.abs().max()


def test_torch_has_no_int8(quantised):
    with pytest.raises(UsageError, match="--engine torch: torch computes in fp32, fp16, bf16"):
        open_engine(bundle.read(quantised), "torch", "cpu", "int8")


def test_the_same_scans_give_the_same_bytes(quantised, copied, tissue):
    quantise(copied, tissue, quiet=True)
    for name in FILES:
        assert (copied / name).read_bytes() == (quantised / name).read_bytes()


def test_ranges_are_those_of_the_scans(quantised, copied, tissue):
    quantise(copied, tissue / "1.nii.gz", quiet=True)
    for name in FILES:
        assert (copied / name).read_bytes() != (quantised / name).read_bytes()


def test_files_of_another_model_are_refused(copied):
    model = onnx.load(copied / "model.onnx")
    model.doc_string = "another"
    onnx.save(model, copied / "model.onnx")
    words = r"model.int8.onnx was exported from other model.onnx; fastmed export .* --scans PATH$"
    with pytest.raises(BundleError, match=words):
        open_engine(bundle.read(copied), "ort", "cpu", "int8")


def test_new_weights_take_them_away(copied, tiny_spec):
    from fastmed import models

    bundle.write(copied, tiny_spec, models.build("unet3d", base_channels=8))
    assert not any((copied / name).exists() for name in FILES)
    with pytest.raises(UsageError, match=r"no model.int8.onnx; .*--precision int8 --scans PATH"):
        open_engine(bundle.read(copied), "ort", "cpu", "int8")


def test_the_command_certifies_it_and_auto_takes_it_where_it_passed(copied, tissue, capsys):
    pytest.importorskip("openvino")
    command = ["export", str(copied), "--to", "onnx", "--precision", "int8", "--scans"]
    assert main([*command, str(tissue / "1.nii.gz")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [str(copied / name) for name in FILES]
    assert any(line.startswith("| ort | int8 | ") for line in printed)
    facts = json.loads((copied / "certificate.json").read_text())
    for passed, taken in ((True, "int8"), (False, "fp32")):
        for row in facts["rows"]:
            if row["agreement"]:
                is_int8 = row["precision"] == "int8"
                row["network_seconds"] = (
                    0.1 if is_int8 else 0.3 if row["precision"] == "fp32" else 9
                )
                row["misses"] = ["labels differ"] if is_int8 and not passed else []
                row["verdict"] = "REFUSED" if row["misses"] else "passed"
        (copied / "certificate.json").write_text(json.dumps(facts))
        read = bundle.read(copied)
        assert open_engine(read, "auto", "cpu", "auto")[0].precision == taken
        assert open_engine(read, "auto", "cpu")[0].precision == "fp32"


def test_a_scan_that_the_model_cannot_see_is_left_out_and_named(
    copied, tissue, monkeypatch, capsys
):
    from fastmed.errors import SeriesError
    from fastmed.inference.case import Model

    see = Model.see

    def picky(model, volume, **options):
        if volume.name.startswith("0"):
            raise SeriesError("no lungs found")
        return see(model, volume, **options)

    monkeypatch.setattr(Model, "see", picky)
    quantise(copied, tissue, quiet=True)
    assert "0.nii.gz is left out: no lungs found" in capsys.readouterr().err
    with pytest.raises(FastmedError, match="the network sees no tile of these scans"):
        quantise(copied, tissue / "0.nii.gz", quiet=True)


def test_many_scans_are_seen_evenly(copied, monkeypatch):
    read_of, tile = [], torch.zeros(1, 1, 32, 32, 32)

    class Series:
        def __init__(self, number):
            self.name = str(number)

    class Model:
        def __init__(self, engine=None):
            self.engine = engine

        def see(self, volume):
            self.engine.tiles.append(tile)

    monkeypatch.setattr(quantising, "readable", lambda *_: [Series(k) for k in range(40)])
    monkeypatch.setattr(quantising, "read_series", lambda entry: read_of.append(int(entry.name)))
    monkeypatch.setattr(quantising, "load", lambda *_, **__: Model())
    monkeypatch.setattr(quantising, "_Recorder", lambda *_: type("R", (), {"tiles": []})())
    monkeypatch.setattr(
        quantising, "replace", lambda model, engine: setattr(model, "engine", engine) or model
    )
    assert len(quantising._tiles(bundle.read(copied), "x", quantising.Display(True))) == 16
    assert read_of == [int(2.5 * k) for k in range(16)]


def test_a_recorder_keeps_as_many_as_asked_from_all_over():
    class Echo:
        name, device, precision = "torch", "cpu", "fp32"

        def network_input(self, tiles):
            return tiles

        def __call__(self, tiles):
            return tiles

    kept = []
    for seed in range(200):
        recorder = quantising._Recorder(Echo(), 4, seed)
        for first in range(0, 20, 2):
            tiles = torch.tensor([[first], [first + 1]])
            assert torch.equal(recorder(tiles), tiles)
        assert len(recorder.tiles) == 4
        kept += [int(tile) for tile in recorder.tiles]
    assert {*kept} == {*range(20)}
    assert abs(np.mean(kept) - 9.5) < 1


OUTERMOST = {
    "unet2d": 2, "unet3d": 2, "resnet3d_18": 1, "resnet3d_34": 1, "resnet3d_50": 1, "ssd3d": 3,
    "ssd300_vgg16": 13,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), OUTERMOST.items())
def test_first_and_last_layers_of_every_network_stay_as_they_are(made, name, count):
    graph = onnx.load(made(name).onnx_path()).graph
    found = quantising._outermost(graph)
    assert len(found) == count
    assert next(node.name for node in graph.node if node.op_type == "Conv") in found


def test_weights_beside_the_file_are_quantised_too(copied, tissue):
    import network_bundles

    before = bundle.read(copied).sha256()
    network_bundles.move_weights(bundle.read(copied), "weights.bin")
    assert before.keys() ^ bundle.read(copied).sha256().keys() == {"weights.bin"}
    quantise(copied, tissue / "1.nii.gz", quiet=True)
    open_engine(bundle.read(copied), "ort", "cpu", "int8")
    (copied / "weights.bin").write_bytes(bytes((copied / "weights.bin").stat().st_size))
    with pytest.raises(BundleError, match=r"was exported from other model\.onnx"):
        open_engine(bundle.read(copied), "ort", "cpu", "int8")


def test_nodes_without_names_are_quantised_too(copied, tissue):
    model = onnx.load(copied / "model.onnx")
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, copied / "model.onnx")
    quantise(copied, tissue / "1.nii.gz", quiet=True)
    made = onnx.load(copied / "model.int8.onnx")
    named = onnx.load(copied / "model.int8-trt.onnx")
    for each in (made, named):
        made_of = sources(each.graph)
        inputs = [node.input[0] for node in each.graph.node if node.op_type == "Conv"]
        eight = [name in made_of and "Dequant" in made_of[name].op_type for name in inputs]
        assert eight == [False, *[True] * (len(inputs) - 2), False]


def test_a_network_of_outermost_layers_alone_is_an_error(copied, tissue, monkeypatch):
    monkeypatch.setattr(quantising, "_outermost", quantising._convolutions)
    with pytest.raises(FastmedError, match="no convolution between the first and the last"):
        quantise(copied, tissue / "1.nii.gz", quiet=True)


def test_without_onnxruntime_it_names_what_is_missing(copied, tissue, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"needs onnxruntime .*; pip install onnxruntime"):
        quantise(copied, tissue, quiet=True)
