"""What engines ask of a bundle's ONNX file before they run it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastmed.bundle import Bundle, file_sha256
from fastmed.errors import BundleError
from fastmed.exporter import WEIGHTS_KEY

_FLOATS = {1: "float32", 10: "float16", 16: "bfloat16", 11: "float64"}  # onnx.TensorProto.DataType

MADE_OF_KEY = "fastmed.onnx_sha256"  # of the file that this one was made of
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # ONNX's own, and ONNX Runtime's


def missing_file(bundle: Bundle, precision: str) -> str:
    """What to do where the bundle has no network exported in this precision; empty where it has."""
    path = bundle.onnx_path(precision)
    if path.is_file():
        return ""
    return f"{bundle.path} has no {path.name}; {export_command(bundle, precision)}"


def export_command(bundle: Bundle, precision: str) -> str:
    """What writes the bundle's ONNX file of a precision."""
    chosen = "" if precision == "fp32" else f" --precision {precision.removesuffix('-trt')}"
    chosen += " --scans PATH" if precision.startswith("int8") else ""
    return f"fastmed export {bundle.path} --to onnx{chosen}"


@dataclass(frozen=True)
class OnnxValue:
    """The input or the output of a network. axes: None for one that is free."""

    name: str
    dtype: str
    axes: tuple[int | None, ...]


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that has been read and found whole.

    sha256: of the file and of the weights that lie in files beside it.
    precision: the dtypes of its weights, such as "float32" or "float16+float32".
    """

    path: Path
    sha256: str
    image: OnnxValue
    logits: OnnxValue
    precision: str

    @property
    def channels(self) -> int | None:
        """Of the image; None where the file leaves them free."""
        return self.image.axes[1] if len(self.image.axes) > 1 else None

    def content(self) -> bytes:
        """The file's bytes. Raises BundleError where they have changed since it was opened."""
        if _sha256_with_weights(self.path) != self.sha256:
            raise BundleError(f"{self.path}: was replaced while in use; start again")
        return self.path.read_bytes()


def open_onnx(bundle: Bundle, precision: str = "fp32") -> OnnxFile:
    """Reads the ONNX file of a precision without running anything.

    Raises BundleError for a damaged file, for one that was exported from other weights than the
    bundle's, for operations of custom domains, for more inputs or outputs than one each, for those
    that are not floating point, and for weights that lie in a file outside the bundle's folder.
    """
    path = bundle.onnx_path(precision)
    model = _parse(path)
    named = {entry.key: entry.value for entry in model.metadata_props}
    _refuse_stale(bundle, named, precision)
    _refuse_custom_nodes(model, path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    image, logits = _only_one_each(inputs, list(model.graph.output), bundle, precision)
    dtypes = {_FLOATS[t.data_type] for t in model.graph.initializer if t.data_type in _FLOATS}
    return OnnxFile(
        path=path,
        sha256=_sha256(path, _external(model, path)),
        image=_value(image, path),
        logits=_value(logits, path),
        precision="+".join(sorted(dtypes)) or "float32",
    )


def _only_one_each(inputs: list, outputs: list, bundle: Bundle, precision: str = "fp32") -> tuple:
    """The only input and output of an ONNX network, which may have any names."""
    if len(inputs) != 1 or len(outputs) != 1:
        raise BundleError(
            f"bundle {bundle.path}: {bundle.onnx_path(precision).name} has {len(inputs)} inputs "
            f"and {len(outputs)} outputs; expected one image and one tensor of logits"
        )
    return inputs[0], outputs[0]


def _refuse_stale(bundle: Bundle, named: dict[str, str], precision: str) -> None:
    """A file that names the weights, or the file, that it came from must have come from these."""
    sources = {WEIGHTS_KEY: bundle.weights_path, MADE_OF_KEY: bundle.onnx_path()}
    hashes = {WEIGHTS_KEY: file_sha256, MADE_OF_KEY: _sha256_with_weights}
    for key, source in sources.items():
        if key in named and source.is_file() and named[key] != hashes[key](source):
            what = "weights" if key == WEIGHTS_KEY else source.name
            raise BundleError(
                f"bundle {bundle.path}: {bundle.onnx_path(precision).name} was exported from other "
                f"{what}; {export_command(bundle, precision)}"
            )


def _refuse_custom_nodes(model, path: Path) -> None:
    known = {*_DOMAINS, *(function.domain for function in model.functions)}
    functions = (node for function in model.functions for node in function.node)
    for node in (*_nodes(model.graph.node), *_nodes(functions)):
        if node.domain not in known:
            raise BundleError(
                f"{path}: node {node.name or '(no name)'} is {node.op_type} of the domain "
                f"{node.domain}, which no engine knows; export the network in ONNX's own operations"
            )


def _parse(path: Path):
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as ONNX ({error}); export it again") from error
    if not model.HasField("graph"):
        raise BundleError(f"{path}: cannot be read as ONNX (it has no graph); export it again")
    return model


def _value(value, path: Path) -> OnnxValue:
    tensor = value.type.tensor_type
    dtype = _FLOATS.get(tensor.elem_type, "")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise BundleError(
            f"{path}: {value.name} is of ONNX type {tensor.elem_type}; expected float32, float16 "
            "or bfloat16"
        )
    axes = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    return OnnxValue(value.name, dtype, tuple(axes))


def _external(model, path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights."""
    folder, found = path.parent.resolve(), set()
    nodes = [node for function in model.functions for node in function.node]
    for tensor in (*_tensors(model.graph), *_tensors_of(nodes)):
        named = {entry.key: entry.value for entry in tensor.external_data}
        if "location" not in named:
            continue
        place = (folder / named["location"]).resolve()
        if not place.is_relative_to(folder) or not place.is_file():
            raise BundleError(
                f"{path}: the weights {tensor.name} are said to lie in {named['location']!r}; "
                f"expected a file in {path.parent}"
            )
        found.add(place)
    return sorted(found)


def _nodes(nodes) -> Iterator:
    """Nodes, and those of the subgraphs in them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner.node)


def _tensors(graph) -> Iterator:
    """Every tensor that a graph stores, also in its nodes and their subgraphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of(graph.node)


def _tensors_of(nodes) -> Iterator:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner)


def _sha256_with_weights(path: Path) -> str:
    return _sha256(path, _external(_parse(path), path))


def _sha256(path: Path, external: list[Path]) -> str:
    parts = [file_sha256(each) for each in (path, *external)]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
