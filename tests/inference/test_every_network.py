"""Every network exports with free batch and sizes, and every engine gives torch's answers."""

import onnx
import pytest
import torch
from network_bundles import SPECS

from fastmed.inference.engines import open_engine

CUBES = [(1, 32, 32, 32), (2, 33, 47, 64), (3, 48, 16, 35)]
SIZES = dict.fromkeys(SPECS, CUBES) | {
    "unet2d": [(1, 1, 64, 64), (2, 1, 33, 47), (3, 1, 16, 80)],
    "ssd300_vgg16": [(1, 1, 300, 300), (2, 1, 300, 300), (3, 1, 300, 300)],
}
CASES = [(name, size) for name, sizes in SIZES.items() for size in sizes]


def test_every_network_is_here():
    from fastmed import models

    with pytest.raises(ValueError, match=f"known are {', '.join(sorted(SPECS))}$"):
        models.build("absent")


@pytest.mark.parametrize("name", SPECS)
def test_the_file_is_valid_and_its_axes_are_named(made, name):
    model = onnx.load(made(name).onnx_path())
    onnx.checker.check_model(model, full_check=True)
    spec = SPECS[name]
    image, output = (
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    )
    sizes = ["depth", "height", "width"][-spec.dimensions :]
    sizes = [300, 300] if name == "ssd300_vgg16" else sizes
    assert image == ["batch", 3 if name == "ssd300_vgg16" else 1, *sizes]
    assert (
        output
        == {
            "segmentation": ["batch", 2, *sizes],
            "classification": ["batch", 2],
            "detection": ["batch", 8732, 6] if spec.dimensions == 2 else ["batch", "boxes", 8],
        }[spec.task]
    )


@pytest.mark.parametrize("engine", ["ort", "ov"])
@pytest.mark.parametrize(("name", "size"), CASES, ids=str)
def test_engines_give_torchs_answers_at_any_size(made, name, size, engine):
    pytest.importorskip({"ort": "onnxruntime", "ov": "openvino"}[engine])
    batch, *shape = size
    tiles = torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(sum(size)))
    expected = open_engine(made(name), "torch", "cpu")[0](tiles)
    found = open_engine(made(name), engine, "cpu")[0](tiles)
    assert found.shape == expected.shape
    limits = SPECS[name].limits
    assert (found - expected).abs().max() <= limits.logits * expected.abs().max()
    classes = expected[..., -2:].movedim(-1, 1) if expected.dim() == 3 else expected
    ours = found[..., -2:].movedim(-1, 1) if expected.dim() == 3 else found
    assert (ours.argmax(1) == classes.argmax(1)).float().mean() >= limits.equal_labels
