"""A detection's bundle is exported, and every engine gives torch's boxes."""

import numpy as np
import pytest
import torch

from fastmed import bundle, exporter, models
from fastmed.geometry import Geometry
from fastmed.inference.case import load
from fastmed.spec import Detection, Label, Network, Spec
from fastmed.volume import Volume

NODULES = Spec(
    name="nodules",
    task="detection",
    labels=(Label(1, "nodule"),),
    spacing_mm_zyx=(2.0, 1.0, 1.0),
    window_hu=(-1000.0, 400.0),
    tile_zyx=(8, 16, 24),
    overlap=0.5,
    size_multiple=8,
    detection=Detection(strides=(4, 8), diameters_mm=((6.0, 8.0), (10.0, 12.0)), max_boxes=20),
    network=Network("ssd3d", {"base_channels": 8, "strides": [4, 8]}),
)


@pytest.fixture(scope="module")
def nodules(tmp_path_factory):
    """A bundle of fresh, seeded weights that are sure of something, exported to ONNX."""
    folder = tmp_path_factory.mktemp("detection") / "nodules"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = models.build(NODULES.network.name, **NODULES.network.arguments)
    with torch.no_grad():
        network.answer.weight *= 20
        network.answer.bias.zero_()
    bundle.write(folder, NODULES, network)
    exporter.export(folder)
    return folder


def scan() -> Volume:
    hu = np.random.default_rng(0).integers(-1000, 400, (9, 20, 33)).astype(np.int16)
    return Volume(hu, Geometry.from_spacing(hu.shape, (2.0, 1.0, 1.0)), name="scan")


@pytest.mark.parametrize("engine", ["ort", "ov"])
def test_every_engine_gives_torchs_boxes(nodules, engine):
    pytest.importorskip({"ort": "onnxruntime", "ov": "openvino"}[engine])
    expected = load(nodules, engine="torch", device="cpu")(scan()).boxes
    found = load(nodules, engine=engine, device="cpu")(scan()).boxes
    assert len(found) == len(expected) == 20
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        np.testing.assert_allclose(one.box_lps_mm, other.box_lps_mm, atol=1e-2)


def test_exported_boxes_are_those_of_any_size(nodules):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    graph = onnx.load(nodules / "model.onnx").graph
    axes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (graph.input[0], graph.output[0])
    ]
    assert axes == [["batch", 1, "depth", "height", "width"], ["batch", "boxes", 8]]
    session = onnxruntime.InferenceSession(nodules / "model.onnx")
    network = bundle.read(nodules).network()
    for size in [(1, 1, 8, 16, 24), (2, 1, 17, 33, 40)]:
        image = torch.rand(size, generator=torch.Generator().manual_seed(sum(size)))
        (output,) = session.run(None, {"image": image.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(output, network(image).numpy(), atol=1e-3)
