"""Export: a bundle's network becomes model.onnx, with free batch and sizes."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.fx.experimental._config

from fastmed import bundle as bundles
from fastmed.errors import BundleError, UsageError
from fastmed.writers.atomic import write_atomically

OPSET = 21  # the first in which GroupNormalization is one node with the usual meaning
INPUT, OUTPUT = "image", "logits"
WEIGHTS_KEY = "fastmed.weights_sha256"


def export(bundle: str | Path, *, to: str = "onnx") -> Path:
    """Exports a bundle's network in float32 and puts the file into the bundle.

    The ONNX network takes "image" [batch, channels, depth, height, width] float32, without depth
    where the spec has 2 dimensions, and returns "logits": of a segmentation [batch, classes] and
    the sizes of the image, of a classification [batch, classes]. Batch and sizes are free.
    Windowing, resampling, argmax and softmax are not in it: they stay outside, once for all
    engines.

    to: "onnx". Returns the file's path. Raises UsageError for another format, BundleError where
    the bundle cannot be read or the exported network does not pass onnx.checker.
    """
    if to != "onnx":
        raise UsageError(f"--to {to}: this version exports onnx")
    source = bundles.read(bundle)
    network = source.network()
    program = _onnx_program(network, source)
    model = program.model_proto
    _check(model, source)
    _forget_where_it_was_made(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = WEIGHTS_KEY, bundles.file_sha256(source.weights_path)
    write_atomically(source.onnx_path, [model.SerializeToString()])
    return source.onnx_path


def _onnx_program(network: torch.nn.Module, source: bundles.Bundle) -> torch.onnx.ONNXProgram:
    multiple = max(source.spec.size_multiple, 16)
    channels = source.spec.network.arguments.get("in_channels", 1)
    sizes = (2 * multiple + 1, 3 * multiple, 2 * multiple + 3)
    example = torch.zeros(2, channels, *sizes[-source.spec.dimensions :])
    names = _free_sizes(source)[0]
    free = {
        axis: torch.export.Dim(name, min=multiple if axis else 1, max=4096)
        for axis, name in zip((0, *range(2, example.dim())), names, strict=True)
    }
    # torch.export raises where a declared free size is not free; torch.onnx alone would fix it.
    # A smallest size of 1 at the bottom of the network is no special case: its output is tested.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        exported = torch.export.export(network, (example,), dynamic_shapes=(free,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(free,),
            external_data=False,
            verbose=False,
        )


def _forget_where_it_was_made(model) -> None:
    """Removes torch's notes on every node: source lines, with the paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


def _check(model, source: bundles.Bundle) -> None:
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise BundleError(f"bundle {source.path}: the exported ONNX is invalid: {error}") from error
    expected = zip((INPUT, OUTPUT), _free_sizes(source), strict=True)
    for value, (name, sizes) in zip(
        (model.graph.input[0], model.graph.output[0]), expected, strict=True
    ):
        axes = value.type.tensor_type.shape.dim
        free = [axis.dim_param for axis in axes if axis.dim_param]
        if value.name != name or free != list(sizes) or len(axes) != len(sizes) + 1:
            raise BundleError(
                f"bundle {source.path}: exported {value.name} of {len(axes)} axes with free sizes "
                f"{free}; the spec's {source.spec.task} in {source.spec.dimensions} dimensions "
                f"has {name} with {', '.join(sizes)} free, and the channels or classes"
            )


def _free_sizes(source: bundles.Bundle) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the free sizes of the image and of the logits that the spec asks for."""
    image = ("batch", *("depth", "height", "width")[-source.spec.dimensions :])
    return image, {"segmentation": image, "classification": image[:1]}[source.spec.task]
