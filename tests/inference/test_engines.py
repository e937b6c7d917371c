"""Engines: the fastest present is taken and named; a named one that is absent is an error."""

import importlib.util
import shutil

import numpy as np
import onnx
import pytest
import torch

import fastmed
from fastmed import bundle, models
from fastmed.errors import BundleError, UsageError
from fastmed.geometry import Geometry
from fastmed.inference import engines
from fastmed.inference.engines import choice, kinds, open_engine
from fastmed.volume import Volume

MODULES = {"ov": "openvino", "ort": "onnxruntime"}


@pytest.fixture
def hide(monkeypatch):
    """Returns a function that makes modules look as if they were not installed."""
    real = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name in names else real(name, *rest),
        )

    return hide


@pytest.fixture
def read(tiny_bundle):
    return bundle.read(tiny_bundle)


@pytest.fixture
def copied(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    return tmp_path / "b"


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """Returns a function that says what engines take for a tile, and counts the timings."""
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "choices"))
    calls = []

    def timed(**seconds):
        def took(engine, tile):
            calls.append((engine.name, tuple(tile.shape)))
            return seconds[engine.name]

        monkeypatch.setattr(choice, "_seconds", took)
        return calls

    return timed


SECONDS = {
    "ort": ({"ov": 0.3, "ort": 0.2, "torch": 0.6}, (), "ort"),
    "torch": ({"ov": 0.3, "ort": 0.4, "torch": 0.1}, (), "torch"),
    "the same": ({"ov": 0.3, "ort": 0.28, "torch": 0.29}, (), "ov"),
    "one absent": ({"ort": 0.2, "torch": 0.1}, ("openvino",), "torch"),
}


@pytest.mark.parametrize(("seconds", "absent", "taken"), SECONDS.values(), ids=SECONDS.keys())
def test_auto_times_what_is_present_and_says_why(read, hide, timed, seconds, absent, taken):
    for module in MODULES.values():
        pytest.importorskip(module)
    hide(*absent)
    calls, said = timed(**seconds), []
    engine, sentence = open_engine(read, "auto", "cpu", say=said.append)
    assert (engine.name, engine.device) == (taken, "cpu")
    figures = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    assert sentence.startswith(f"engine {taken} on cpu (the fastest on its tile: {figures}")
    for module in absent:
        assert f"pip install {module}" in sentence
    assert said == [f"Timing {', '.join(seconds)} on this machine, once for this model ..."]
    assert calls == [(name, (1, 1, 32, 32, 32)) for name in seconds for _ in range(3)]


def test_a_choice_is_remembered_until_the_bundle_or_a_version_changes(copied, timed, monkeypatch):
    calls = timed(ov=0.3, ort=0.2, torch=0.6)
    first = open_engine(bundle.read(copied), "auto", "cpu")[1]
    assert open_engine(bundle.read(copied), "auto", "cpu")[1] == first
    assert len(calls) == 9
    (copied / "bundle.toml").write_text((copied / "bundle.toml").read_text() + "\n# changed")
    open_engine(bundle.read(copied), "auto", "cpu")
    assert len(calls) == 18
    monkeypatch.setattr(kinds, "_version", lambda module: "99")
    open_engine(bundle.read(copied), "auto", "cpu")
    assert len(calls) == 27


def test_auto_passes_over_an_engine_whose_logits_are_not_torchs(copied, timed):
    timed(ov=0.1, ort=0.2, torch=0.6)
    model = onnx.load(copied / "model.onnx")  # still says which weights it is of
    last = next(t for t in model.graph.initializer if t.name.endswith("head.bias"))
    values = onnx.numpy_helper.to_array(last) + np.float32([0, 3])
    last.CopyFrom(onnx.numpy_helper.from_array(values, last.name))
    onnx.save(model, copied / "model.onnx")
    engine, sentence = open_engine(bundle.read(copied), "auto", "cpu")
    assert engine.name == "torch"
    assert "ov: its logits differ from torch's by" in sentence
    assert "ort: its logits differ from torch's by" in sentence


def test_auto_passes_over_an_engine_that_fails_on_the_tile(read, timed, monkeypatch):
    from fastmed.inference.engines.open_vino import OpenVinoEngine

    def fail(engine, tiles):
        raise RuntimeError("no such\noperation")

    timed(ort=0.2, torch=0.6)
    monkeypatch.setattr(OpenVinoEngine, "_run", fail)
    engine, sentence = open_engine(read, "auto", "cpu")
    assert engine.name == "ort"
    assert "ov: no such operation" in sentence


def test_an_engine_that_fails_while_timed_is_tried_again_another_day(read, timed, monkeypatch):
    from fastmed.inference.engines.onnx_runtime import OnnxRuntimeEngine

    calls, real = timed(ov=0.3, torch=0.6), choice._seconds

    def short_of_memory(engine, tile):
        if isinstance(engine, OnnxRuntimeEngine):
            raise MemoryError
        return real(engine, tile)

    monkeypatch.setattr(choice, "_seconds", short_of_memory)
    for times in (6, 12):
        engine, sentence = open_engine(read, "auto", "cpu")
        assert engine.name == "ov"
        assert "ov 0.3 s, torch 0.6 s; ort: MemoryError" in sentence
        assert len(calls) == times


def test_auto_passes_over_an_engine_that_cannot_load_a_whole_file(read, timed, monkeypatch):
    import onnxruntime

    def refuse(*_, **__):
        raise RuntimeError("NOT_IMPLEMENTED: no such kernel")

    timed(ov=0.3, torch=0.6)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    engine, sentence = open_engine(read, "auto", "cpu")
    assert engine.name == "ov"
    assert "engine ort cannot load it: NOT_IMPLEMENTED: no such kernel" in sentence
    with pytest.raises(BundleError, match="engine ort cannot load it"):
        open_engine(read, "ort", "cpu")


def test_one_engine_alone_is_not_timed(read, hide, timed):
    hide(*MODULES.values())
    calls = timed()
    engine, sentence = open_engine(read, "auto", "cpu")
    assert (engine.name, calls) == ("torch", [])
    assert "ov: not installed on this machine" in sentence


def test_a_choice_that_cannot_be_kept_is_made_and_said(read, timed, tmp_path):
    calls, said = timed(ov=0.1, ort=0.2, torch=0.6), []
    (tmp_path / "choices").write_text("no folder")
    for _ in range(2):
        assert open_engine(read, "auto", "cpu", say=said.append)[0].name == "ov"
    assert len(calls) == 18
    assert "name another folder in FASTMED_CACHE" in said[1]


@pytest.mark.parametrize("name", MODULES)
def test_a_named_engine_that_is_absent_is_never_replaced(read, hide, name):
    hide(MODULES[name])
    with pytest.raises(UsageError, match=f"--engine {name}: not installed.*pip install"):
        open_engine(read, name, "cpu")


def test_auto_passes_over_engines_that_lack_their_file(copied):
    (copied / "model.onnx").unlink()
    engine, sentence = open_engine(bundle.read(copied), "auto", "cpu")
    assert engine.name == "torch"
    assert f"fastmed export {copied} --to onnx" in sentence
    with pytest.raises(UsageError, match=r"--engine ort: .* has no model.onnx"):
        open_engine(bundle.read(copied), "ort", "cpu")


def test_a_bundle_that_no_engine_runs_says_what_each_lacks(copied):
    (copied / "model.onnx").unlink()
    text = (copied / "bundle.toml").read_text()
    (copied / "bundle.toml").write_text(text[: text.index("[network]")])
    with pytest.raises(UsageError, match="no engine runs") as caught:
        open_engine(bundle.read(copied), "auto", "cpu")
    assert all(f"{name}:" in str(caught.value) for name in ("ov", "ort", "torch"))


WRONG = {
    "engine": ("trtx", "cpu", "--engine trtx: expected one of auto, trt, ov, ort, torch"),
    "device": ("auto", "gpu", "--device gpu: expected auto, cpu, cuda"),
    "device type": ("auto", "meta", "--device meta: expected auto, cpu, cuda"),
    "cuda:99": ("auto", "cuda:99", "--device cuda:99: torch sees"),
}


@pytest.mark.parametrize(("engine", "device", "words"), WRONG.values(), ids=WRONG.keys())
def test_an_unknown_engine_or_device_is_a_wrong_usage(read, engine, device, words):
    with pytest.raises(UsageError, match=words):
        open_engine(read, engine, device)


@pytest.mark.parametrize("name", MODULES)
def test_an_onnx_of_other_weights_is_refused(copied, tiny_spec, name):
    pytest.importorskip(MODULES[name])
    onnx_bytes = (copied / "model.onnx").read_bytes()
    bundle.write(copied, tiny_spec, models.build("unet3d", base_channels=8))
    (copied / "model.onnx").write_bytes(onnx_bytes)
    with pytest.raises(BundleError, match=r"exported from other weights; fastmed export"):
        open_engine(bundle.read(copied), name, "cpu")


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("content", [b"", b"\xff" * 3000], ids=["empty", "garbled"])
def test_a_damaged_onnx_is_named_in_one_line(copied, name, content):
    pytest.importorskip(MODULES[name])
    (copied / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot be read as ONNX .*; export it again") as caught:
        open_engine(bundle.read(copied), name, "cpu")
    assert str(copied) in str(caught.value)
    assert "\n" not in str(caught.value)


HAND_WRITTEN = """
format = 1
name = "threshold"
task = "segmentation"
[grid]
spacing_mm_zyx = [3, 3, 3]
window_hu = [-100, 100]
[tiles]
size_zyx = [16, 16, 16]
[[labels]]
value = 1
name = "dense"
"""


def _foreign_onnx(inputs=("scan",), outputs=("dense",), dtype=np.float32) -> bytes:
    """A network that another tool made: scan - 0.5, its only channel meaning label 1."""
    shape = ["n", 1, "a", "b", "c"]
    half = onnx.numpy_helper.from_array(dtype(0.5), "half")
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Sub", [inputs[0], "half"], [name]) for name in outputs],
        "foreign",
        [onnx.helper.make_tensor_value_info(n, kind, shape) for n in inputs],
        [onnx.helper.make_tensor_value_info(n, kind, shape) for n in outputs],
        [half],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@pytest.mark.parametrize("name", MODULES)
def test_any_onnx_network_runs_with_a_hand_written_bundle(tmp_path, name):
    pytest.importorskip(MODULES[name])
    (tmp_path / "bundle.toml").write_text(HAND_WRITTEN)
    (tmp_path / "model.onnx").write_bytes(_foreign_onnx())
    stored = np.full((20, 21, 22), -50, np.int16)
    stored[5:10, 6:12, 7:15] = 80
    volume = Volume(stored, Geometry.from_spacing(stored.shape, (3, 3, 3)), name="x", source="x")
    findings = fastmed.load(tmp_path, engine=name, device="cpu")(volume)
    assert np.array_equal(findings.labels, stored > 0)
    with pytest.raises(UsageError, match=r"--engine torch: .* names no \[network\]"):
        fastmed.load(tmp_path, engine="torch", device="cpu")


@pytest.mark.parametrize("name", MODULES)
def test_a_network_of_two_outputs_is_refused(tmp_path, name):
    pytest.importorskip(MODULES[name])
    (tmp_path / "bundle.toml").write_text(HAND_WRITTEN)
    (tmp_path / "model.onnx").write_bytes(_foreign_onnx(outputs=("dense", "sparse")))
    with pytest.raises(BundleError, match="1 inputs and 2 outputs; expected one"):
        open_engine(bundle.read(tmp_path), name, "cpu")


@pytest.mark.parametrize("name", ["torch", *MODULES])
def test_tiles_are_left_as_they_were(read, name):
    pytest.importorskip(MODULES.get(name, "torch"))
    tiles = torch.rand(2, 1, 16, 17, 18)
    before = tiles.clone()
    logits = open_engine(read, name, "cpu")[0](tiles)
    assert torch.equal(tiles, before)
    assert logits.is_contiguous()
    assert not logits.requires_grad


def test_onnx_runtime_tells_shapes_apart(read):
    pytest.importorskip("onnxruntime")
    engine, reference = (open_engine(read, name, "cpu")[0] for name in ("ort", "torch"))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 1, 16, 17, 16 + k) for k in range(6)]  # more than it remembers
    for shape in (shapes[0], shapes[1], shapes[0], *shapes, *shapes):
        tiles = torch.rand(shape, generator=generator)
        expected = reference(tiles)
        found = engine(tiles)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 2e-3 * expected.abs().max()


def test_onnx_runtime_takes_networks_of_float16(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "bundle.toml").write_text(HAND_WRITTEN)
    (tmp_path / "model.onnx").write_bytes(_foreign_onnx(dtype=np.float16))
    engine = open_engine(bundle.read(tmp_path), "ort", "cpu")[0]
    tiles = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        logits = engine(tiles)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, (tiles.half() - 0.5).float())


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_an_engine_says_what_takes_long_where_it_is_told(read, name, capsys):
    said = []
    engine = open_engine(read, name, "cpu", say=said.append)[0]
    engine.say("builds")
    assert said[-1] == "builds"
    assert capsys.readouterr().err == ""


def test_survey_names_what_is_absent(hide):
    hide("openvino")
    rows = {name: (version, install) for name, version, install in engines.survey()}
    assert rows["ov"] == ("absent", "pip install openvino")
    assert rows["torch"][1] == ""


def test_survey_knows_engines_of_another_distribution(monkeypatch):
    from importlib import metadata

    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    kinds._version.cache_clear()
    assert dict(row[:2] for row in engines.survey())["torch"] == "present, of unknown version"
    kinds._version.cache_clear()
