"""A small bundle of every network that fastmed exports, and the tiles that it is built for."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from fastmed import bundle, exporter, models
from fastmed.bundle import Bundle
from fastmed.inference.engines.tensor_rt_profile import Profile
from fastmed.spec import Detection, Label, Network, Spec


def _spec(network: str, arguments: dict, **fields) -> Spec:
    fields = {"spacing_mm_zyx": (2.0, 2.0, 2.0), "window_hu": (-1000.0, 400.0)} | fields
    named = Network(network, {"num_classes": 2} | arguments)
    return Spec(name=network, labels=(Label(1, "found"),), network=named, **fields)


SMALL = {"base_channels": 8}
WHOLE = {
    "task": "classification", "negative": "clear", "spacing_mm_zyx": None, "size_zyx": (32, 32, 32),
}  # fmt: skip
LEVELS = Detection(strides=(4, 8), diameters_mm=((6.0, 8.0), (10.0, 12.0)))
SPECS = {
    "unet2d": _spec("unet2d", SMALL, task="segmentation", dimensions=2, tile_zyx=(1, 64, 64)),
    "unet3d": _spec("unet3d", SMALL, task="segmentation", tile_zyx=(32, 32, 32)),
    "resnet3d_18": _spec("resnet3d_18", SMALL, **WHOLE),
    "resnet3d_34": _spec("resnet3d_34", SMALL, **WHOLE),
    "resnet3d_50": _spec("resnet3d_50", SMALL, **WHOLE),
    "ssd3d": _spec(
        "ssd3d",
        SMALL | {"strides": [4, 8]},
        task="detection",
        tile_zyx=(16, 32, 32),
        detection=LEVELS,
    ),
    "ssd300_vgg16": _spec(
        "ssd300_vgg16",
        {},
        task="detection",
        modality="grey",
        dimensions=2,
        spacing_mm_zyx=None,
        size_zyx=(1, 300, 300),
        window_hu=(0.0, 255.0),
        detection=Detection(),
    ),
}


@dataclass(frozen=True)
class Shapes:
    """Profiles of one bundle: the fixed tile, and a range of sizes."""

    fixed: Profile
    ranged: Profile


def _ranged(low, high) -> Profile:
    return Profile(low, high, high)


_CUBES = Shapes(Profile.of_one((4, 1, 32, 32, 32)), _ranged((1, 1, 16, 16, 16), (4, 1, 48, 48, 48)))
SHAPES = dict.fromkeys(SPECS, _CUBES) | {
    "unet2d": Shapes(Profile.of_one((8, 1, 64, 64)), _ranged((1, 1, 16, 16), (8, 1, 96, 96))),
    "ssd300_vgg16": Shapes(
        Profile.of_one((4, 3, 300, 300)), _ranged((1, 3, 300, 300), (8, 3, 300, 300))
    ),
}


def exported(name: str, folder: Path) -> Bundle:
    """A bundle of fresh, seeded weights, exported to ONNX."""
    spec = SPECS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = models.build(spec.network.name, **spec.network.arguments)
    made = bundle.write(folder / name, spec, network)
    exporter.export(folder / name)
    return made


def add_unknown_node(read: Bundle, domain: str) -> None:
    """Turns a convolution of the bundle's ONNX file into an operation that nobody knows."""
    model = onnx.load(read.onnx_path())
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.domain, node.op_type, node.name = domain, "FancyConv", "the_node"
    model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    onnx.save(model, read.onnx_path())


def move_weights(read: Bundle, location: str) -> None:
    """Moves one tensor's content to a file of the bundle and says that it lies in `location`."""
    model = onnx.load(read.onnx_path())
    tensor = model.graph.initializer[0]
    (read.path / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    onnx.save(model, read.onnx_path())
