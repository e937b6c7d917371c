"""ONNX Runtime as an engine."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmed.bundle import Bundle
from fastmed.exporter import WEIGHTS_KEY
from fastmed.inference.engines.onnx_file import missing_file, only_one_each, refuse_stale
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
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            bundle.onnx_path(precision), options, providers=["CPUExecutionProvider"]
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        refuse_stale(bundle, metadata.get(WEIGHTS_KEY), precision)
        image, logits = only_one_each(
            self._session.get_inputs(), self._session.get_outputs(), bundle
        )
        self._input, self._output = image.name, logits.name
        channels = image.shape[1] if len(image.shape) > 1 else None
        self._channels = channels if isinstance(channels, int) else None

    def _run(self, tiles: Tensor) -> Tensor:
        (logits,) = self._session.run([self._output], {self._input: tiles.contiguous().numpy()})
        return torch.from_numpy(logits)
