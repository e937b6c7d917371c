"""OpenVINO as an engine: the fastest on CPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastmed.bundle import Bundle
from fastmed.cache_folder import cache_folder
from fastmed.inference.engines.engine_cache import EngineCache, Entry
from fastmed.inference.engines.onnx_file import missing_file, open_onnx
from fastmed.inference.engines.protocol import TileEngine

# Of all that a file of 8 bits leaves in float32.
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


@cache
def _core():
    """The one of this process, which is never freed.

    With each core OpenVINO gives the main thread another stack for signals, and where two have gone
    it leaves a freed one: the next signal, of a child that ends or of Ctrl-C, kills the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoEngine(TileEngine):
    """OpenVINO on the CPU; one compiled network per tile shape, that of the spec's tile kept.

    It reads model.onnx in every precision but int8: what it computes in is a hint, and it knows
    itself which operations bear the lower one.
    """

    name = "ov"

    @staticmethod
    def lacks(bundle: Bundle, device: str, precision: str) -> str:
        able = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision.upper() not in able:
            found = ", ".join(name.lower() for name in able if name in ("FP32", "BF16", "FP16"))
            return f"this CPU has no {precision} arithmetic, only {found}"
        return missing_file(bundle, _file(precision))

    def __init__(self, bundle: Bundle, device: str, precision: str = "fp32"):
        super().__init__(bundle.spec, device, precision)
        self._file = open_onnx(bundle, _file(precision))
        self._model = _core().read_model(self._file.path)
        self._channels = self._file.channels
        self._usual_zyx = bundle.spec.tile_zyx or bundle.spec.size_zyx or ()
        self._compiled: dict[tuple[int, ...], Callable] = {}
        self._is_residual = _adds_to_a_norm(self._model)

    def _run(self, tiles: Tensor) -> Tensor:
        shape = tuple(tiles.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._opened(shape).create_infer_request()
        request = self._compiled[shape]
        request.infer([tiles.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data)

    def _opened(self, shape: tuple[int, ...]):
        """The compiled network for one shape; where that is the tile's, kept for the next start."""
        batch, _, *size = shape
        if (batch, *size) != (1, *self._usual_zyx[-len(size) :]):
            return self._compile(shape)
        engines, entry = EngineCache(cache_folder("engines")), self._entry(shape)
        self._kept = engines.read(entry)  # for as long as what is made of it
        if self._kept:
            with contextlib.suppress(RuntimeError):
                return _core().import_model(self._kept, "CPU", self._settings())
            engines.forget(entry)
        compiled = self._compile(shape)
        engines.write(entry, compiled.export_model().getvalue())  # if not, the next compiles too
        return compiled

    def _entry(self, shape: tuple[int, ...]) -> Entry:
        import openvino

        facts = {
            "library": f"OpenVINO {openvino.get_version()}",
            "cpu": _core().get_property("CPU", "FULL_DEVICE_NAME"),
            "able": _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            "onnx_sha256": self._file.sha256,
            "shape": shape,
            "settings": self._settings(),
        }
        return Entry("openvino", facts)

    def _compile(self, shape: tuple[int, ...]):
        model = self._model.clone()
        model.reshape(list(shape))
        return _core().compile_model(model, "CPU", self._settings())

    def _settings(self) -> dict[str, Any]:
        settings = {
            # Left alone, OpenVINO picks bfloat16 on CPUs that have it.
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Threads tied to cores wait there while other jobs of the machine run on them.
            "ENABLE_CPU_PINNING": False,
        }
        if self._is_residual:
            # OpenVINO 2026.4 dies of a segmentation fault while it generates code for a group norm
            # with the addition behind it, as SSD3D has them.
            settings["SNIPPETS_MODE"] = "DISABLE"
        return settings


def _file(precision: str) -> str:
    return "int8" if precision == "int8" else "fp32"


def _adds_to_a_norm(model) -> bool:
    """Whether an OpenVINO model adds something to what a group norm returns."""
    norms = [node for node in model.get_ops() if node.get_type_name() == "GroupNormalization"]
    return any(
        target.get_node().get_type_name() == "Add"
        for norm in norms
        for target in norm.output(0).get_target_inputs()
    )
