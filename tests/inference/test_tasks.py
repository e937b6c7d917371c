"""Every task, 2D and 3D, runs through the same Model, on every engine, live or from a bundle."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastmed import bundle, exporter, models
from fastmed.errors import BundleError, SeriesError
from fastmed.geometry import Geometry
from fastmed.inference.case import Model, load
from fastmed.inference.engines import NetworkEngine
from fastmed.spec import CleanUp, Label, Network, Spec
from fastmed.tasks import segmentation
from fastmed.volume import SourceSlice, Volume

SEGMENT_3D = Spec(
    name="liver",
    task="segmentation",
    labels=(Label(1, "liver"),),
    spacing_mm_zyx=(3.0, 3.0, 3.0),
    window_hu=(-160.0, 240.0),
    tile_zyx=(16, 32, 32),
    network=Network("unet3d", {"base_channels": 8, "num_classes": 2}),
)
SEGMENT_2D = replace(
    SEGMENT_3D,
    name="slices",
    dimensions=2,
    tile_zyx=(1, 32, 48),
    network=Network("unet2d", {"base_channels": 8, "num_classes": 2}),
)
CLASSIFY = Spec(
    name="nodule",
    task="classification",
    labels=(Label(1, "nodule"), Label(2, "effusion")),
    negative="clear",
    spacing_mm_zyx=None,
    size_zyx=(32, 32, 32),
    window_hu=(-1000.0, 400.0),
    network=Network("resnet3d_18", {"num_classes": 3}),
)
SPECS = {"3D": SEGMENT_3D, "2D": SEGMENT_2D, "label": CLASSIFY}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A bundle of fresh, seeded weights per spec, exported to ONNX."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, spec in SPECS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = models.build(spec.network.name, **spec.network.arguments).eval()
            if spec.task == "segmentation":  # both labels appear
                with torch.no_grad():
                    logits = network(torch.rand(1, 1, *(32,) * spec.dimensions)).transpose(0, 1)
                    network.head.bias[1] += (logits[0] - logits[1]).median()
        bundle.write(folder / name, spec, network)
        exporter.export(folder / name)
    return folder


def scan(shape=(9, 40, 50), seed=0, **fields) -> Volume:
    hu = np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)
    geometry = Geometry.from_spacing(shape, (3.0, 2.0, 2.0))
    return Volume(hu, geometry, name="scan", source="a/scan", **fields)


@pytest.mark.parametrize("engine", ["ort", "ov"])
@pytest.mark.parametrize("name", SPECS)
def test_every_engine_gives_torchs_answer(bundles, name, engine):
    pytest.importorskip({"ort": "onnxruntime", "ov": "openvino"}[engine])
    expected = load(bundles / name, engine="torch", device="cpu")(scan())
    found = load(bundles / name, engine=engine, device="cpu")(scan())
    if SPECS[name].task == "segmentation":
        assert 0 < expected.labels.mean() < 1
        assert (found.labels == expected.labels).mean() > 0.999
    for one, other in zip(found.scores, expected.scores, strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-3)


def test_a_classification_gives_the_probability_of_each_class_and_no_labels(bundles):
    volume = scan(warnings=("mended",))
    model = load(bundles / "label", engine="torch", device="cpu")
    findings = model(volume)
    assert [score.label for score in findings.scores] == ["clear", "nodule", "effusion"]
    assert sum(score.probability for score in findings.scores) == pytest.approx(1)
    assert findings.labels is None
    assert (findings.masks, findings.slice_labels) == ((), {})
    assert (findings.series, findings.model, findings.warnings) == ("scan", "nodule", ("mended",))
    assert findings.geometry == volume.geometry


class Fixed(nn.Module):
    """Answers the same logits to every batch."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor([logits])

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_scores_are_the_softmax_of_the_logits():
    findings = Model(CLASSIFY, NetworkEngine(Fixed(0.0, 1.0, -2.0), CLASSIFY, "cpu"))(scan())
    expected = np.exp([0, 1, -2]) / np.exp([0, 1, -2]).sum()
    np.testing.assert_allclose([s.probability for s in findings.scores], expected, rtol=1e-6)


WRONG_LOGITS = {
    "NaN": ((0.0, float("nan"), 0.0), "not finite"),
    "infinite": ((0.0, float("inf"), 0.0), "not finite"),
    "too few": ((0.0, 1.0), "2 classes; bundle.toml names 2 labels and clear"),
    "one": ((0.0,), "1 classes"),
}


@pytest.mark.parametrize(("logits", "words"), WRONG_LOGITS.values(), ids=WRONG_LOGITS)
def test_logits_that_are_no_answer_fail_the_series(logits, words):
    with pytest.raises(SeriesError, match=words):
        Model(CLASSIFY, NetworkEngine(Fixed(*logits), CLASSIFY, "cpu"))(scan())


def test_one_logit_is_no_classification():
    spec = replace(CLASSIFY, labels=(Label(1, "nodule"),))
    with pytest.raises(SeriesError, match="1 classes"):
        Model(spec, NetworkEngine(Fixed(3.0), spec, "cpu"))(scan())


@pytest.mark.parametrize("name", ["3D", "label"])
def test_a_network_of_the_other_task_fails_the_series(name):
    other = Fixed(0.0, 1.0, 2.0) if name == "3D" else nn.Conv3d(1, 3, 1)
    spec = SPECS[name]
    with pytest.raises(SeriesError, match=r"logits of \d axes; those of a"):
        Model(spec, NetworkEngine(other, spec, "cpu"))(scan())


@pytest.mark.parametrize("batch", [1, 4])
def test_slices_are_seen_without_their_depth(batch):
    shapes = []

    class Look(nn.Module):
        def forward(self, x):
            shapes.append(tuple(x.shape))
            return torch.cat([0.5 - x, x - 0.5], dim=1)

    volume = scan((9, 64, 96))
    spec = replace(SEGMENT_2D, spacing_mm_zyx=(3.0, 2.0, 2.0))
    findings = Model(spec, NetworkEngine(Look(), spec, "cpu"), batch=batch)(volume)
    assert set(shapes) == {(batch, 1, 32, 48)}
    assert np.array_equal(findings.labels == 1, volume.voxels > 40)


@pytest.mark.parametrize("batch", [1, 3, None])
def test_the_batch_of_slices_changes_nothing(bundles, batch):
    model = load(bundles / "2D", engine="torch", device="cpu")
    assert np.array_equal(replace(model, batch=batch)(scan()).labels, model(scan()).labels)


def test_one_logit_per_voxel_of_a_slice_is_a_sigmoid():
    class One(nn.Module):
        def forward(self, x):
            return x - 0.5

    spec = replace(SEGMENT_2D, spacing_mm_zyx=(3.0, 2.0, 2.0))
    findings = Model(spec, NetworkEngine(One(), spec, "cpu"))(scan())
    assert np.array_equal(findings.labels == 1, scan().voxels > 40)


def test_a_network_in_training_is_seen_as_it_is_and_left_as_it_was():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Dropout(0.5))
    network[1].eval()
    spec = replace(SEGMENT_3D, network=None)
    model = Model(spec, NetworkEngine(network, spec, "cpu"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = model(scan())
    assert np.array_equal(model(scan()).labels, first.labels)  # no dropout
    assert [module.training for module in network] == [True, False, True]
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        network[0].bias += torch.tensor([-100.0, 100.0])
    assert (model(scan()).labels == 1).all()
    network(torch.rand(1, 1, 4, 4, 4)).sum().backward()
    assert network[0].weight.grad is not None


def test_a_classification_in_2d_takes_a_single_image():
    spec = replace(CLASSIFY, dimensions=2, size_zyx=(1, 32, 32))
    model = Model(spec, NetworkEngine(Fixed(0.0, 1.0, 2.0), spec, "cpu"))
    assert len(model(scan()).scores) == 3
    deep = replace(spec, size_zyx=(4, 32, 32))
    with pytest.raises(SeriesError, match="4 slices and the network sees one"):
        Model(deep, NetworkEngine(Fixed(0.0, 1.0, 2.0), deep, "cpu"))(scan())


def test_a_scan_without_lungs_fails_by_name():
    spec = replace(CLASSIFY, region="lungs")
    with pytest.raises(SeriesError, match="no lungs found"):
        Model(spec, NetworkEngine(Fixed(0.0, 1.0, 2.0), spec, "cpu"))(scan())


@pytest.fixture
def clean_calls(monkeypatch):
    """A clean-up that removes label 1 from the first slice; returns what it was called with."""
    import sys
    import types

    calls = []

    def clean(labels, spec, voxel_volume_ml):
        calls.append((labels.copy(), spec, voxel_volume_ml))
        kept = labels.copy()
        kept[0] = 0
        return kept

    module = types.ModuleType("fastmed.tasks.clean_up")
    module.clean = clean
    monkeypatch.setitem(sys.modules, "fastmed.tasks.clean_up", module)
    return calls


def decoded(spec, volume):
    logits = torch.zeros(2, *volume.voxels.shape)
    logits[1] = torch.from_numpy(volume.voxels - 40.0)
    return segmentation.decode(logits, volume.geometry, volume, spec)


def test_a_clean_up_that_is_set_happens_before_the_figures(clean_calls):
    volume = scan()
    spec = replace(SEGMENT_3D, clean_up=CleanUp(largest_component=True))
    findings = decoded(spec, volume)
    ((labels, given, voxel_ml),) = clean_calls
    assert np.array_equal(labels == 1, volume.voxels > 40)
    assert (given, voxel_ml) == (spec, pytest.approx(0.012))
    assert not findings.labels[0].any()
    assert findings.masks[0].voxels == (volume.voxels[1:] > 40).sum()


def test_a_clean_up_that_is_off_never_runs(clean_calls):
    assert decoded(SEGMENT_3D, scan()).labels[0].any()
    assert not clean_calls


def test_original_slices_show_what_the_clean_up_left(clean_calls):
    at = (0.0, 1.0, 2.6, 8.0)
    slices = tuple(SourceSlice(f"1.{k}", z) for k, z in enumerate(at))
    volume = scan(slices=slices)
    findings = decoded(replace(SEGMENT_3D, clean_up=CleanUp(fill_holes=True)), volume)
    for source, nearest in zip(slices, (0, 1, 3, 8), strict=True):
        assert np.array_equal(
            findings.slice_labels[source.sop_instance_uid], findings.labels[nearest]
        )


EXPORTED = {
    "3D": (["batch", 1, "depth", "height", "width"], ["batch", 2, "depth", "height", "width"]),
    "2D": (["batch", 1, "height", "width"], ["batch", 2, "height", "width"]),
    "label": (["batch", 1, "depth", "height", "width"], ["batch", 3]),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_axes_are_those_of_task_and_dimensions(bundles, name):
    import onnx

    graph = onnx.load(bundles / name / "model.onnx").graph
    for value, axes, called in zip(
        (graph.input[0], graph.output[0]), EXPORTED[name], ("image", "logits"), strict=True
    ):
        shape = value.type.tensor_type.shape.dim
        assert value.name == called
        assert [axis.dim_param or axis.dim_value for axis in shape] == axes


FREE_SIZES = {
    "2D": [(1, 1, 16, 16), (3, 1, 33, 47), (2, 1, 100, 18)],
    "label": [(1, 1, 16, 16, 16), (2, 1, 33, 40, 47), (1, 1, 64, 18, 32)],
}


@pytest.mark.parametrize("name", FREE_SIZES)
def test_exported_networks_take_any_size(bundles, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(bundles / name / "model.onnx")
    network = bundle.read(bundles / name).network()
    for size in FREE_SIZES[name]:
        image = torch.rand(size, generator=torch.Generator().manual_seed(sum(size)))
        (logits,) = session.run(None, {"image": image.numpy()})
        with torch.inference_mode():
            expected = network(image).numpy()
        assert logits.shape == expected.shape
        np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())


def test_a_network_that_is_not_what_the_spec_says_is_not_exported(tmp_path):
    spec = replace(CLASSIFY, network=SEGMENT_3D.network, size_zyx=(32, 32, 32))
    bundle.write(tmp_path, spec, models.build("unet3d", base_channels=8, num_classes=2))
    with pytest.raises(BundleError, match="exported logits of 5 axes"):
        exporter.export(tmp_path)
