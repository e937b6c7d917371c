"""Quantise: a bundle's network in 8 bits, with ranges measured on scans (post-training)."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from fastmed import bundle as bundles
from fastmed.bundle import Bundle
from fastmed.errors import FastmedError, SeriesError, UsageError
from fastmed.exporter import export, write_onnx
from fastmed.inference.case import load
from fastmed.inference.display import Display
from fastmed.inference.engines import Engine
from fastmed.inference.engines.onnx_file import MADE_OF_KEY, OnnxFile, open_onnx
from fastmed.inference.scans import readable
from fastmed.readers.index import read_series

TILES, SCANS = 64, 16  # at most
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantise(
    bundle: str | Path, scans: str | Path | Sequence[str | Path], *, quiet: bool = False
) -> tuple[Path, ...]:
    """Writes a bundle's network with convolutions in 8 bits, without training it again.

    bundle: its folder; model.onnx is written first where it is missing. scans: a folder or file, or
        several, of the kind that the model is for. At most 16 of them are seen, evenly spread, and
        of those 64 tiles, as the network meets them in a run; their values set the ranges.
    quiet: print errors only.

    model.int8.onnx is for CPUs (activations uint8 with an offset), model.int8-trt.onnx for TensorRT
    (activations int8 about zero, the only ones that it takes). In both, weights are int8 with a
    scale for each channel; the first and the last convolutions, normalisations and all else stay
    in float32, and so do input and output. Whether the answers are still the same is what
    `fastmed.certify` says, on scans that were not seen here.

    Source: Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", CVPR 2018; by onnxruntime.quantization.

    Returns the files' paths. Raises UsageError where no scan can be read or onnxruntime is absent,
    BundleError for a damaged bundle, FastmedError where no tile has been seen, or the network has
    no convolutions but the first and the last.
    """
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--precision int8: needs onnxruntime ({error}); pip install onnxruntime"
        ) from error
    read = bundles.read(bundle)
    display = Display(quiet)
    if not read.onnx_path().is_file():
        export(read.path)
    whole = open_onnx(read)
    tiles = _tiles(read, scans, display)
    display.say(f"Measuring the ranges of {read.spec.name} on {len(tiles)} tiles ...")
    made = {
        "int8": _quantised(whole, tiles, for_tensor_rt=False),
        "int8-trt": _quantised(whole, tiles, for_tensor_rt=True),
    }
    facts = {MADE_OF_KEY: whole.sha256}
    return tuple(write_onnx(model, read, name, facts) for name, model in made.items())


class _Recorder:
    """An engine that keeps some of the tiles that it is given: each is as likely to be kept."""

    def __init__(self, engine: Engine, wanted: int, seed: int):
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.tiles: list[Tensor] = []
        self._engine, self._wanted = engine, wanted
        self._random, self._seen = random.Random(seed), 0

    def __call__(self, tiles: Tensor) -> Tensor:
        for tile in self._engine.network_input(tiles).split(1):
            self._seen += 1
            place = len(self.tiles)
            if place == self._wanted:
                place = self._random.randrange(self._seen)
            if place < self._wanted:
                self.tiles[place : place + 1] = [tile.cpu().clone()]
        return self._engine(tiles)


def _tiles(read: Bundle, scans: str | Path | Sequence[str | Path], display: Display):
    """Tiles of scans as the network takes them, [1, C, (D,) H, W]."""
    entries = readable(scans, read.spec)
    step = max(len(entries) / SCANS, 1.0)
    entries = [entries[int(k * step)] for k in range(min(len(entries), SCANS))]
    model = load(read.path, engine="ort", device="cpu")
    found: list[Tensor] = []
    for number, entry in enumerate(entries):
        display.say(f"{number + 1} of {len(entries)}: {entry.name} ...")
        recorder = _Recorder(model.engine, math.ceil(TILES / len(entries)), number)
        try:
            replace(model, engine=recorder).see(read_series(entry))
        except SeriesError as error:
            display.complain(f"{entry.name} is left out: {error}")
        found += recorder.tiles
    if not found:
        raise FastmedError(f"bundle {read.path}: the network sees no tile of these scans")
    return found


def _quantised(whole: OnnxFile, tiles: list[Tensor], for_tensor_rt: bool):
    """The ONNX model with its convolutions but the outermost in 8 bits.

    TensorRT takes activations about zero alone, and no biases in 32 bits.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._tiles = iter(tiles)

        def get_next(self):
            tile = next(self._tiles, None)
            dtype = "float16" if whole.image.dtype == "float16" else "float32"
            return None if tile is None else {whole.image.name: tile.numpy().astype(dtype)}

    with TemporaryDirectory(prefix="fastmed-int8-") as folder, _quietly():
        place = Path(folder) / "model.onnx"
        model, types = onnx.load(whole.path), quantization.QuantType
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"node_{number}"
        kept = _outermost(model.graph)
        if len(kept) == len(_convolutions(model.graph)):
            raise FastmedError(f"{whole.path}: has no convolution between the first and the last")
        quantization.quantize_static(
            model,
            place,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=types.QInt8 if for_tensor_rt else types.QUInt8,
            weight_type=types.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=kept,
            extra_options={
                "ActivationSymmetric": for_tensor_rt,
                "WeightSymmetric": True,
                "QuantizeBias": not for_tensor_rt,
            },
        )
        return onnx.load(place)


def _outermost(graph) -> list[str]:
    """Names of the convolutions before which, or behind which, there is no other layer.

    They are few and cost little; rounded, they cost most of the accuracy.
    """
    first = _beyond(graph.node, lambda node: node.input, lambda node: node.output)
    last = _beyond(reversed(graph.node), lambda node: node.output, lambda node: node.input)
    return [name for name in _convolutions(graph) if name in first | last]


def _convolutions(graph) -> list[str]:
    return [node.name for node in graph.node if node.op_type == "Conv"]


def _beyond(nodes: Iterable, sources: Callable, results: Callable) -> set[str]:
    """Names of the layers that come, in the direction of `nodes`, behind no other layer."""
    behind_a_layer: set[str] = set()  # values
    found = set()
    for node in nodes:
        is_behind = any(name in behind_a_layer for name in sources(node))
        if node.op_type in _LAYERS and not is_behind:
            found.add(node.name)
        if is_behind or node.op_type in _LAYERS:
            behind_a_layer.update(results(node))
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Without onnxruntime's advice to optimise a network that is optimal already."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
