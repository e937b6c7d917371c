"""What engines ask of a bundle's ONNX file before they run it."""

from __future__ import annotations

from fastmed.bundle import Bundle, file_sha256
from fastmed.errors import BundleError


def missing_file(bundle: Bundle, precision: str) -> str:
    """What to do where the bundle has no network exported in this precision; empty where it has."""
    path = bundle.onnx_path(precision)
    if path.is_file():
        return ""
    return f"{bundle.path} has no {path.name}; {export_command(bundle, precision)}"


def export_command(bundle: Bundle, precision: str) -> str:
    """What writes the bundle's ONNX file of a precision."""
    chosen = "" if precision == "fp32" else f" --precision {precision}"
    return f"fastmed export {bundle.path} --to onnx{chosen}"


def only_one_each(inputs: list, outputs: list, bundle: Bundle) -> tuple:
    """The only input and output of an ONNX network, which may have any names."""
    if len(inputs) != 1 or len(outputs) != 1:
        raise BundleError(
            f"bundle {bundle.path}: model.onnx has {len(inputs)} inputs and {len(outputs)} "
            "outputs; expected one image and one tensor of logits"
        )
    return inputs[0], outputs[0]


def refuse_stale(bundle: Bundle, exported_from: str | None, precision: str = "fp32") -> None:
    """An ONNX file that names the weights it came from must have come from these."""
    if not exported_from or not bundle.weights_path.is_file():
        return
    if exported_from != file_sha256(bundle.weights_path):
        raise BundleError(
            f"bundle {bundle.path}: {bundle.onnx_path(precision).name} was exported from other "
            f"weights; {export_command(bundle, precision)}"
        )
