"""ONNX Runtime as an engine, in torch's memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmed.bundle import Bundle
from fastmed.inference.engines.onnx_file import missing_file, open_onnx
from fastmed.inference.engines.protocol import EngineRefused, TileEngine

_DTYPES = {"float32": (torch.float32, np.float32), "float16": (torch.float16, np.float16)}
_CUDA = "CUDAExecutionProvider"
_SHAPES = 4  # whose logits keep their memory: full batches, the last of a scan, small scans


class OnnxRuntimeEngine(TileEngine):
    """ONNX Runtime on the CPU, with as many threads as torch has, or on CUDA.

    It reads tiles from torch's memory and writes logits there: on CUDA nothing goes through the
    host but the first logits of each shape.
    """

    name = "ort"

    @staticmethod
    def lacks(bundle: Bundle, device: str, precision: str) -> str:
        if device != "cpu" and (version := _cpu_version()):
            return (
                f"onnxruntime {version} is built for CPUs; "
                "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
            )
        if precision == "bf16":
            return "ONNX Runtime has bfloat16 for few operations; --engine ov, trt or torch has it"
        if precision == "int8" and device != "cpu":
            return "ONNX Runtime has no convolutions of 8 bits for CUDA; --engine trt has"
        return missing_file(bundle, precision)

    def __init__(self, bundle: Bundle, device: str, precision: str = "fp32"):
        import onnxruntime

        super().__init__(bundle.spec, device, precision)
        self._file = open_onnx(bundle, precision)
        self._channels = self._file.channels
        if "bfloat16" in (self._file.image.dtype, self._file.logits.dtype):
            raise EngineRefused(f"{self._file.path}: takes or gives bfloat16, which NumPy lacks")
        self._place = torch.device(device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            self._file.path, options, providers=_providers(self._place)
        )
        if self._place.type == "cuda" and _CUDA not in self._session.get_providers():
            raise EngineRefused(
                f"onnxruntime {onnxruntime.__version__} cannot load its CUDA libraries: "
                "they must be those of the CUDA and cuDNN that it was built for"
            )
        self._logits: dict[tuple[int, ...], Tensor] = {}  # by the shape of tiles

    def _run(self, tiles: Tensor) -> Tensor:
        image, logits = self._file.image, self._file.logits
        tiles = tiles.to(_DTYPES[image.dtype][0]).contiguous()
        shape = tuple(tiles.shape)
        known = self._logits.get(shape)
        binding = self._session.io_binding()
        binding.bind_input(image.name, *self._memory(tiles, image.dtype))
        if known is None:
            binding.bind_output(logits.name, self._place.type, self._place.index or 0)
        else:
            binding.bind_output(logits.name, *self._memory(known, logits.dtype))
        if self._place.type == "cuda":
            # ONNX Runtime works on a stream of its own, which does not wait for torch's.
            torch.cuda.current_stream(self._place).synchronize()
        self._session.run_with_iobinding(binding)
        if known is None:
            (made,) = binding.get_outputs()
            known = torch.from_numpy(made.numpy()).to(self._place)
            if len(self._logits) == _SHAPES:
                self._logits.clear()
            self._logits[shape] = known
        return known.float()  # the same memory, unless the file has another dtype

    def _memory(self, tensor: Tensor, dtype: str) -> tuple:
        place, shape = self._place, tuple(tensor.shape)
        return place.type, place.index or 0, _DTYPES[dtype][1], shape, tensor.data_ptr()


def _cpu_version() -> str:
    """The version of an ONNX Runtime that is built for CPUs alone; else nothing."""
    import onnxruntime

    return "" if _CUDA in onnxruntime.get_available_providers() else onnxruntime.__version__


def _providers(place: torch.device) -> list:
    if place.type == "cpu":
        return ["CPUExecutionProvider"]
    settings = {
        "device_id": place.index or 0,
        "use_tf32": "0",  # which has 10 bits
        "cudnn_conv_algo_search": "HEURISTIC",  # the same in each process, so that bytes are too
    }
    return [(_CUDA, settings), "CPUExecutionProvider"]
