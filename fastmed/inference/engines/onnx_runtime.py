"""ONNX Runtime as an engine."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmed.bundle import Bundle
from fastmed.inference.engines.onnx_file import missing_file, open_onnx
from fastmed.inference.engines.protocol import TileEngine


class OnnxRuntimeEngine(TileEngine):
    """ONNX Runtime on the CPU, with as many threads as torch has."""

    name = "ort"

    @staticmethod
    def lacks(bundle: Bundle, device: str, precision: str) -> str:
        if precision == "bf16" and device == "cpu":
            return "ONNX Runtime has no bfloat16 convolutions for CPUs; --engine ov or torch has"
        return missing_file(bundle, precision)

    def __init__(self, bundle: Bundle, device: str, precision: str = "fp32"):
        import onnxruntime

        super().__init__(bundle.spec, device, precision)
        file = open_onnx(bundle, precision)
        self._input, self._output = file.image.name, file.logits.name
        self._channels = file.channels
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            file.path, options, providers=["CPUExecutionProvider"]
        )

    def _run(self, tiles: Tensor) -> Tensor:
        (logits,) = self._session.run([self._output], {self._input: tiles.contiguous().numpy()})
        return torch.from_numpy(logits)
