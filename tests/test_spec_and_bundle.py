"""A bundle is what training, export and inference agree on, and it says when it is damaged."""

import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmed import bundle, exporter, models
from fastmed.errors import BundleError
from fastmed.inference.engines import open_engine
from fastmed.spec import CleanUp, Label, Limits, Network, Spec

GOOD = {
    "name": "m",
    "task": "segmentation",
    "labels": (Label(1, "liver"), Label(2, "spleen")),
    "spacing_mm_zyx": (3.0, 3.0, 3.0),
    "window_hu": (-160.0, 240.0),
    "tile_zyx": (32, 48, 64),
}

WRONG_FIELDS = {
    "task": ({"task": "guess"}, "task 'guess'"),
    "label values": ({"labels": (Label(2, "liver"),)}, "values 1, 2, 3"),
    "no labels": ({"labels": ()}, "at least one label"),
    "same names": ({"labels": (Label(1, "a"), Label(2, "a"))}, "same name"),
    "spacing": ({"spacing_mm_zyx": (3.0, 0.0, 3.0)}, "spacing_mm_zyx"),
    "spacing NaN": ({"spacing_mm_zyx": (3.0, float("nan"), 3.0)}, "spacing_mm_zyx"),
    "window": ({"window_hu": (240.0, -160.0)}, "window_hu"),
    "window inf": ({"window_hu": (0.0, float("inf"))}, "window_hu"),
    "tile": ({"tile_zyx": (32, 0, 32)}, "tile_zyx"),
    "overlap": ({"overlap": 1.0}, "overlap 1.0"),
    "overlap NaN": ({"overlap": float("nan")}, "overlap nan"),
    "multiple": ({"size_multiple": 32}, "size_multiple 32: expected a divisor"),
    "multiple 0": ({"size_multiple": 0}, "size_multiple 0"),
    "outside": ({"outside_hu": float("nan")}, "outside_hu"),
    "modality": ({"modality": "mr"}, "modality 'mr'"),
    "dimensions": ({"dimensions": 4}, "dimensions 4"),
    "region": ({"region": "head"}, "region 'head'"),
    "region of labels": ({"region": "lungs"}, "only for the classification"),
    "deep tile in 2D": ({"dimensions": 2}, "tiles 1 deep"),
    "spacing and size": ({"size_zyx": (8, 8, 8)}, "one of them, not both"),
    "neither": ({"spacing_mm_zyx": None}, "one of them, not both or none"),
    "size": ({"spacing_mm_zyx": None, "size_zyx": (8, 0, 8)}, r"size_zyx \(8, 0, 8\)"),
    "no tile": ({"tile_zyx": None}, "a segmentation and a detection of 3 dimensions have tiles"),
    "tiles of a classification": (
        {"task": "classification"},
        "of 3 dimensions have tiles, others none",
    ),
    "grey of background": ({"labels": (Label(1, "a", grey=0),)}, "others than 0"),
    "equal greys": ({"labels": (Label(1, "a", grey=2), Label(2, "b"))}, "all unlike"),
}


@pytest.mark.parametrize(("change", "words"), WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
def test_a_spec_names_the_field_that_is_wrong(change, words):
    with pytest.raises(ValueError, match=words):
        Spec(**(GOOD | change))


texts = st.text(st.characters(codec="utf-8"), max_size=30)
lengths = st.floats(0.01, 100)


@st.composite
def specs(draw) -> Spec:
    names = draw(st.lists(texts.filter(bool), min_size=1, max_size=4, unique=True))
    multiple = draw(st.sampled_from((1, 2, 16)))
    low = draw(st.floats(-2000, 2000))
    arguments = {"base_channels": draw(st.sampled_from((8, 16))), "num_classes": len(names) + 1}
    classifies, dimensions = draw(st.booleans()), draw(st.sampled_from((2, 3)))
    tile = [multiple * draw(st.integers(1, 20)) for _ in range(3)]
    sized = draw(st.booleans())
    greys = draw(st.sampled_from((None, 255)))
    return Spec(
        name=draw(texts),
        task="classification" if classifies else "segmentation",
        labels=tuple(
            Label(k, name, draw(texts), greys and greys - k) for k, name in enumerate(names, 1)
        ),
        spacing_mm_zyx=None if sized else draw(st.tuples(lengths, lengths, lengths)),
        size_zyx=tuple(draw(st.integers(1, 200)) for _ in range(3)) if sized else None,
        window_hu=(low, low + draw(st.floats(1, 4000))),
        tile_zyx=None if classifies else (1, *tile[1:]) if dimensions == 2 else tuple(tile),
        overlap=0.25 if classifies else draw(st.floats(0, 0.99)),
        size_multiple=16 if classifies else multiple,
        outside_hu=draw(st.floats(-3000, 3000)),
        network=draw(st.sampled_from((None, Network("unet3d", arguments)))),
        trained_on=draw(texts),
        notice=draw(texts),
        modality=draw(st.sampled_from(("ct", "grey"))),
        dimensions=dimensions,
        region="scan",
        negative=draw(texts) if classifies else "negative",
        clean_up=CleanUp(draw(st.booleans()), draw(st.booleans()), draw(st.floats(0, 1e3))),
        limits=Limits(*draw(st.lists(st.floats(0, 1), max_size=5))),
    )


@given(specs())
def test_a_spec_survives_bundle_toml(tmp_path_factory, spec):
    path = tmp_path_factory.mktemp("bundle")
    bundle.write(path, spec, torch.nn.Identity())
    assert bundle.read(path).spec == spec


def test_weights_survive_the_bundle(tiny_bundle, tiny_spec, tmp_path):
    network = bundle.read(tiny_bundle).network()
    again = bundle.write(tmp_path / "b", tiny_spec, network)
    assert not network.training
    for name, value in again.network().state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_a_bundle_can_be_read_by_others(tiny_bundle):
    umask = os.umask(0)
    os.umask(umask)
    for file in tiny_bundle.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask, file.name


def test_new_weights_take_the_old_onnx_away(tiny_bundle, tiny_spec, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    written = bundle.write(tmp_path / "b", tiny_spec, models.build("unet3d", base_channels=8))
    assert not written.onnx_path().exists()
    assert sorted(p.name for p in written.path.iterdir()) == ["bundle.toml", "weights.safetensors"]


def test_hashes_follow_the_files(tiny_bundle):
    assert sorted(bundle.read(tiny_bundle).sha256()) == [
        "bundle.toml", "model.onnx", "weights.safetensors",
    ]  # fmt: skip


TOML = """
format = 1
name = "m"
task = "segmentation"
[grid]
spacing_mm_zyx = [3, 3, 3]
window_hu = [-160, 240]
[tiles]
size_zyx = [32, 32, 32]
[[labels]]
value = 1
name = "liver"
[network]
name = "unet3d"
base_channels = 8
"""

# What is replaced in bundle.toml, by what, and what the error must say.
DAMAGED_TOML = {
    "no toml at all": (TOML, "= = =", "bundle.toml"),
    "format": ("format = 1", "format = 2", "format: expected 1"),
    "no format": ("format = 1", "", "format: expected 1"),
    "no name": ('name = "m"', "", "name: missing"),
    "name": ('name = "m"', "name = 3", "name: expected a text, got 3"),
    "no task": ('task = "segmentation"', "", "task: missing"),
    "task": ('"segmentation"', '"guess"', "task 'guess'"),
    "unknown entry": ("[grid]", "speed = 3\n[grid]", "speed: unknown"),
    "no grid": ("[grid]", "[grids]", "[grid] is missing"),
    "grid no table": ("[grid]", "grid = 3\n[other]", "[grid] is missing, or no table"),
    "spacing": ("[3, 3, 3]", "3", "[grid] spacing_mm_zyx: expected a list of numbers, got 3"),
    "spacing of texts": ("[3, 3, 3]", '["a"]', "[grid] spacing_mm_zyx: expected a list of numbers"),
    "spacing of two": ("[3, 3, 3]", "[3, 3]", "spacing_mm_zyx"),
    "no window": ("window_hu", "windows_hu", "[grid] window_hu: missing"),
    "window upside down": ("[-160, 240]", "[240, -160]", "window_hu"),
    "outside": ("[tiles]", 'outside_hu = "air"\n[tiles]', "[grid] outside_hu: expected a number"),
    "tile of floats": ("[32, 32, 32]", "[32.0, 32, 32]", "[tiles] size_zyx: expected a list of"),
    "tile of booleans": ("[32, 32, 32]", "[true, true, true]", "[tiles] size_zyx: expected"),
    "overlap": ("[[labels]]", 'overlap = "half"\n[[labels]]', "[tiles] overlap: expected a number"),
    "multiple": ("[[labels]]", "size_multiple = 16.0\n[[labels]]", "[tiles] size_multiple: exp"),
    "no labels": ("[[labels]]", "[[label]]", "labels: missing"),
    "labels no list": ("[[labels]]", "[labels]", "labels: expected a list of tables"),
    "label value": ("value = 1", "value = 1.0", "[labels] value: expected a whole number, got 1.0"),
    "label true": ("value = 1", "value = true", "[labels] value: expected a whole number"),
    "label 2": ("value = 1", "value = 2", "labels: expected the values 1, 2, 3"),
    "label grey": ("value = 1", "value = 1\ngrey = 1.5", "[labels] grey: expected a whole number"),
    "region": ("[tiles]", "region = 3\n[tiles]", "[grid] region: expected a text, got 3"),
    "clean up": ("[network]", "[clean_up]\nfill_holes = 1\n[network]", "fill_holes: expected"),
    "limits": ("[network]", "[limits]\ndice = 1.5\n[network]", "limits: dice 1.5: expected 0 to 1"),
    "limit no number": ("[network]", '[limits]\nap = "all"\n[network]', "[limits] ap: expected a"),
    "unknown limit": ("[network]", "[limits]\nspeed = 1\n[network]", "[limits] speed: unknown"),
    "label without name": ('name = "liver"', "", "[labels] name: missing"),
    "label name": ('name = "liver"', "name = 1", "[labels] name: expected a text"),
    "network no table": ("[network]\n", "[networks]\n", "networks: unknown"),
    "network without name": ('name = "unet3d"', "", "[network] name: missing"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), DAMAGED_TOML.values(), ids=DAMAGED_TOML.keys())
def test_a_damaged_bundle_toml_names_folder_and_entry(tmp_path, old, new, words):
    assert TOML.count(old) == 1
    (tmp_path / "bundle.toml").write_text(TOML.replace(old, new))
    with pytest.raises(BundleError, match=re.escape(words)) as caught:
        bundle.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_undamaged_the_same_toml_is_read(tmp_path):
    (tmp_path / "bundle.toml").write_text(TOML)
    assert bundle.read(tmp_path).spec.network == Network("unet3d", {"base_channels": 8})


def test_what_is_no_bundle_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            BundleError, match=re.escape(f"{path} is no bundle: it has no bundle.t")
        ):
            bundle.read(path)
    (tmp_path / "bundle.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.read(tmp_path)
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.read(tmp_path / "bundle.toml")


def _remove(path):
    path.unlink()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _garble(path):
    path.write_bytes(b"\xff" * 4096)


class _Trap:
    """A pickle of this would run a command when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def _pickle(path):
    path.write_bytes(pickle.dumps(_Trap()))


DAMAGED_WEIGHTS = {
    "missing": (_remove, "weights.safetensors is missing"),
    "truncated": (_truncate, "weights.safetensors cannot be read"),
    "garbled": (_garble, "weights.safetensors cannot be read"),
    "a pickle": (_pickle, "weights.safetensors cannot be read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "weights.safetensors is missing"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGED_WEIGHTS.values(), ids=DAMAGED_WEIGHTS.keys())
def test_damaged_weights_are_named_and_nothing_is_executed(
    tiny_bundle, tmp_path, monkeypatch, damage, words
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, tmp_path / "b")
    damage(tmp_path / "b" / "weights.safetensors")
    with pytest.raises(BundleError, match=words) as caught:
        bundle.read(tmp_path / "b").network()
    assert str(tmp_path / "b") in str(caught.value)
    assert not (tmp_path / "executed").exists()


WRONG_NETWORKS = {
    "another size": ("base_channels = 8", "base_channels = 16", "does not fit unet3d"),
    "unknown": ('"unet3d"', '"os.system"', "[network] network 'os.system' is unknown"),
    "argument": ("base_channels = 8", "depth = 8", "[network]"),
    "text": ("base_channels = 8", 'base_channels = "8"', "[network]"),
    "negative": ("base_channels = 8", "base_channels = 8\nin_channels = -1", "[network]"),
}


@pytest.mark.parametrize(("old", "new", "words"), WRONG_NETWORKS.values(), ids=WRONG_NETWORKS)
def test_a_network_that_cannot_be_built_is_named(tiny_bundle, tmp_path, old, new, words):
    shutil.copy(tiny_bundle / "weights.safetensors", tmp_path)
    (tmp_path / "bundle.toml").write_text(TOML.replace(old, new))
    with pytest.raises(BundleError, match=re.escape(words)) as caught:
        bundle.read(tmp_path).network()
    assert "\n" not in str(caught.value)


def test_exported_names_and_sizes_are_the_promised_ones(tiny_bundle):
    model = onnx.load(tiny_bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [21]
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits"]
    for value, channels in ((model.graph.input[0], 1), (model.graph.output[0], 2)):
        batch, channel, *sizes = value.type.tensor_type.shape.dim
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert channel.dim_value == channels
        assert batch.dim_param == "batch"
        assert [size.dim_param for size in sizes] == ["depth", "height", "width"]


SIZES = [
    (1, 16, 16, 16), (1, 16, 33, 47), (2, 17, 16, 31), (3, 47, 18, 16), (1, 32, 32, 32),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_engines_agree_with_torch_on_any_size(tiny_bundle, size):
    batch, *shape = size
    tiles = torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(sum(size)))
    read = bundle.read(tiny_bundle)
    expected = open_engine(read, "torch", "cpu")[0](tiles)
    for name in ("ort", "ov"):
        pytest.importorskip({"ort": "onnxruntime", "ov": "openvino"}[name])
        logits = open_engine(read, name, "cpu")[0](tiles)
        assert logits.shape == expected.shape
        assert logits.dtype == torch.float32
        error = (logits - expected).abs().max() / expected.abs().max()
        assert error < 2e-3
        same = logits.argmax(1) == expected.argmax(1)
        assert same.float().mean() >= 0.999


def test_an_exported_network_names_no_path_of_the_machine_that_made_it(tiny_bundle):
    exported = (tiny_bundle / "model.onnx").read_bytes()
    for trace in (b"site-packages", b"stack_trace", b".py", str(Path.cwd()).encode()):
        assert trace not in exported


def test_transposed_convolutions_export_too(tiny_spec, tmp_path):
    arguments = {"base_channels": 8, "up": "transpose"}
    spec = replace(tiny_spec, network=Network("unet3d", arguments))
    bundle.write(tmp_path, spec, models.build("unet3d", **arguments))
    assert exporter.export(tmp_path) == tmp_path / "model.onnx"
    onnxruntime = pytest.importorskip("onnxruntime")
    tiles = np.random.default_rng(0).random((1, 1, 17, 16, 31), dtype=np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {"image": tiles})
    with torch.inference_mode():
        expected = bundle.read(tmp_path).network()(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())


def test_a_bundle_without_network_cannot_be_exported(tmp_path):
    (tmp_path / "bundle.toml").write_text(TOML[: TOML.index("[network]")])
    with pytest.raises(BundleError, match=r"names no \[network\] to build"):
        exporter.export(tmp_path)
