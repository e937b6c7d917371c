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

    The ONNX network takes "image" [batch, channels, depth, height, width] float32 and returns
    "logits" [batch, classes, depth, height, width]; batch and sizes are free. Windowing,
    resampling and argmax are not in it: they stay in fastmed.ops, once for all engines.

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
    example = torch.zeros(2, channels, 2 * multiple + 1, 3 * multiple, 2 * multiple + 3)
    names = ("batch", None, "depth", "height", "width")
    low = {"batch": 1, "depth": multiple, "height": multiple, "width": multiple}
    free = {
        axis: torch.export.Dim(name, min=low[name], max=4096)
        for axis, name in enumerate(names)
        if name
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
    for value, name, sizes in (
        (model.graph.input[0], INPUT, 4),
        (model.graph.output[0], OUTPUT, 4),
    ):
        free = [d.dim_param for d in value.type.tensor_type.shape.dim if d.dim_param]
        if value.name != name or len(free) != sizes:
            raise BundleError(
                f"bundle {source.path}: exported {value.name} with free sizes {free}; expected "
                f"{name} with batch, depth, height and width free"
            )
