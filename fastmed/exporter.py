"""Export: a bundle's network becomes one ONNX file per precision, with free batch and sizes."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.fx.experimental._config

from fastmed import bundle as bundles
from fastmed.errors import BundleError, UsageError
from fastmed.models.channels import channels_taken
from fastmed.models.precision import converted
from fastmed.spec import Spec
from fastmed.spec_toml import spec_to_table
from fastmed.writers.atomic import write_atomically

# 21 is the first in which GroupNormalization is one node with the usual meaning, 22 the first whose
# convolutions know bfloat16.
OPSETS = {"fp32": 21, "fp16": 21, "bf16": 22}
INPUT, OUTPUT, BOXES = "image", "logits", "boxes"
WEIGHTS_KEY, SPEC_KEY = "fastmed.weights_sha256", "fastmed.spec"
PRECISION_KEY = "fastmed.precision"


def export(bundle: str | Path, *, precision: str = "fp32") -> Path:
    """Exports a bundle's network and puts the file into the bundle.

    The ONNX network takes "image" [batch, channels, depth, height, width] float32, without depth
    where the spec has 2 dimensions, and returns "logits" float32: of a segmentation [batch,
    classes] and the sizes of the image, of a classification [batch, classes], of a detection
    [batch, default boxes, code and classes]. Batch and sizes are free; of a detection of 2
    dimensions the sizes are the spec's. Windowing, resampling, argmax, softmax and the decoding of
    boxes are not in it: they stay outside, once for all engines. Its metadata hold the spec (JSON),
    the precision and the SHA-256 of the weights.

    precision: "fp32" writes model.onnx, "fp16" model.fp16.onnx and "bf16" model.bf16.onnx, whose
        weights are rounded before the export and whose normalisations stay in float32.

    Returns the file's path. Raises UsageError for another precision, BundleError where
    the bundle cannot be read, a weight exceeds the precision or the exported network does not pass
    onnx.checker.
    """
    if precision not in OPSETS:
        raise UsageError(f"--precision {precision}: expected one of {', '.join(OPSETS)}")
    source = bundles.read(bundle)
    network = source.network()
    try:
        network = converted(network, precision)
    except OverflowError as error:
        raise BundleError(f"bundle {source.path}: --precision {precision}: {error}") from error
    model = _onnx_program(network, source.spec, OPSETS[precision]).model_proto
    _check(model, source)
    _forget_where_it_was_made(model)
    return write_onnx(model, source, precision)


def write_onnx(
    model, source: bundles.Bundle, precision: str, more: Mapping[str, str] | None = None
) -> Path:
    """Writes an ONNX network of a bundle, with metadata that say what it was made of."""
    facts = {SPEC_KEY: json.dumps(spec_to_table(source.spec)), PRECISION_KEY: precision}
    if source.weights_path.is_file():
        facts[WEIGHTS_KEY] = bundles.file_sha256(source.weights_path)
    del model.metadata_props[:]
    for name, value in (facts | dict(more or {})).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    path = source.onnx_path(precision)
    write_atomically(path, [model.SerializeToString()])
    return path


def _onnx_program(network: torch.nn.Module, spec: Spec, opset: int) -> torch.onnx.ONNXProgram:
    multiple = max(spec.size_multiple, 16)
    channels = channels_taken(network) or 1
    sizes = (2 * multiple + 1, 3 * multiple, 2 * multiple + 3)
    if _has_one_size(spec):
        sizes = spec.size_zyx
    example = torch.zeros(2, channels, *sizes[-spec.dimensions :])
    free = {
        axis: torch.export.Dim(name, min=multiple if axis else 1, max=4096)
        for axis, name in enumerate(_axes(spec)[0])
        if name
    }
    # torch.export raises where a declared free size is not free; torch.onnx alone would fix it.
    # A smallest size of 1 at the bottom of the network is no special case: its output is tested.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        exported = torch.export.export(network, (example,), dynamic_shapes=(free,))
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    log.setLevel(logging.ERROR)  # it misses torchvision, of which nothing is exported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=opset,
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
    spec = source.spec
    values = (model.graph.input[0], model.graph.output[0])
    for value, name, expected in zip(values, (INPUT, OUTPUT), _axes(spec), strict=True):
        axes = value.type.tensor_type.shape.dim
        if expected[1:2] == (BOXES,) and len(axes) == 3 and axes[1].dim_param:
            axes[1].dim_param = BOXES  # in place of a formula of the image's sizes
        found = tuple(axis.dim_param for axis in axes)
        if value.name != name or found != expected:
            free = [axis for axis in found if axis]
            raise BundleError(
                f"bundle {source.path}: exported {value.name} of {len(axes)} axes with free sizes "
                f"{free}; the spec's {spec.task} in {spec.dimensions} dimensions has {name} with "
                f"{', '.join(filter(None, expected))} free, and the channels or classes"
            )


def _axes(spec: Spec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the axes of the image and of the logits that are free; "" for one that is not."""
    sizes = ("depth", "height", "width")[-spec.dimensions :]
    if _has_one_size(spec):
        return ("batch", "", "", ""), ("batch", "", "")
    image = ("batch", "", *sizes)
    logits = {
        "segmentation": image,
        "classification": ("batch", ""),
        "detection": ("batch", BOXES, ""),
    }
    return image, logits[spec.task]


def _has_one_size(spec: Spec) -> bool:
    """Whether the network takes images of one size: SSD300 does."""
    return spec.task == "detection" and spec.dimensions == 2
