"""Export: a bundle's network as files, and as an engine, that machines run faster than torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastmed import bundle as bundles
from fastmed import exporter
from fastmed.bundle import Bundle
from fastmed.errors import UsageError
from fastmed.inference.display import Display
from fastmed.inference.engines import open_engine
from fastmed.inference.engines.choice import example_tiles
from fastmed.inference.engines.kinds import PRECISIONS
from fastmed.inference.quantise import quantise

FORMATS = ("onnx", "trt")


def export(
    bundle: str | Path,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    scans: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> tuple[Path, ...]:
    """Exports a bundle's network into the bundle.

    bundle: its folder. precision: "fp32", "fp16" or "bf16" (`fastmed.exporter.export`), or "int8"
        with ranges that are measured on `scans` (`fastmed.inference.quantise.quantise`).
    to: "onnx" writes the precision's file. "trt" writes it where it is missing and has TensorRT
        build what runs full batches of the bundle's own tile on this GPU, which takes minutes and
        is kept in the user's cache folder: a run waits for other shapes alone, as of a small scan.
    scans: for "int8" alone, a folder or file, or several. device: of "trt", "auto", "cuda" or
        "cuda:1". quiet: print errors only.

    Returns the paths of the ONNX files. Raises UsageError for an unknown format or precision, for
    "int8" without scans, and for "trt" where there is no TensorRT or no GPU that it takes;
    BundleError where the bundle is damaged or the network cannot be exported.
    """
    if to not in FORMATS:
        raise UsageError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    read = bundles.read(bundle)
    files = _files(read, precision)
    if to == "trt" and scans is None and all(path.is_file() for path in files):
        made = files
    elif precision != "int8":
        made = (exporter.export(read.path, precision=precision),)
    elif scans is None:
        raise UsageError("--precision int8: needs scans to measure ranges on: --scans PATH")
    else:
        made = quantise(read.path, scans, quiet=quiet)
    if to == "trt":
        _build(read, precision, device, Display(quiet))
    return made


def _files(read: Bundle, precision: str) -> tuple[Path, ...]:
    names = ("int8", "int8-trt") if precision == "int8" else (precision,)
    return tuple(read.onnx_path(name) for name in names)


def _build(read: Bundle, precision: str, device: str, display: Display) -> None:
    engine, sentence = open_engine(read, "trt", device, precision, display.say)
    engine(example_tiles(read.spec, engine.device))
    display.say(f"Ready: {sentence}.")
