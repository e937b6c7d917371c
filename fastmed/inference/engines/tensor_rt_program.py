"""A TensorRT engine that is loaded: bound to torch's memory and run on a stream of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmed.errors import SeriesError
from fastmed.inference.engines.tensor_rt_flavour import Flavour


class Program:
    """Runs one engine on one CUDA device.

    loaded: the runtime and the engine. captures: whether its tiles have one shape, so that the
        network becomes a CUDA graph: torch's with TensorRT, its own with TensorRT-RTX, which alone
        knows when its kernels are final.
    kernels: what an earlier TensorRT-RTX compiled for this engine, or nothing.
    say: receives a sentence where the network cannot be captured, and runs without a graph.

    has_new_kernels: whether the last call made TensorRT-RTX compile; see `compiled_kernels`.
    """

    def __init__(
        self,
        flavour: Flavour,
        loaded: tuple[Any, Any],
        device: str,
        *,
        captures: bool,
        kernels: bytes = b"",
        say: Callable[[str], None],
    ):
        self._flavour = flavour
        self._runtime, self._engine = loaded
        self._device, self._say = device, say
        self._stream = torch.cuda.Stream(device)
        self._captures = captures and not flavour.is_rtx
        self._config = _runtime_config(flavour.trt, self._engine) if flavour.is_rtx else None
        if self._config is not None:
            strategy = flavour.trt.CudaGraphStrategy
            self._config.cuda_graph_strategy = (
                strategy.WHOLE_GRAPH_CAPTURE if captures else strategy.DISABLED
            )
            self._kernels = self._config.create_runtime_cache()
            if kernels:
                self._kernels.deserialize(kernels)  # of another driver or GPU: refused, unchanged
            self._config.set_runtime_cache(self._kernels)
            self._context = self._engine.create_execution_context(self._config)
        else:
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise SeriesError(f"{flavour} has no memory for the network: {flavour.log.take()}")
        self._image_name, self._logits_name = _names(flavour.trt, self._engine)
        self.has_new_kernels = False
        self._shape: tuple[int, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of tiles on the device, float32, valid until the next call; the host waits for
        neither. Raises SeriesError where TensorRT fails."""
        current = torch.cuda.current_stream(self._device)
        # Also orders this run after all that still reads the logits of the last.
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), torch.inference_mode(False), torch.no_grad():
            is_new = tuple(tiles.shape) != self._shape
            if is_new:
                self._bind(tuple(tiles.shape))
            self._image.copy_(tiles, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._enqueue()
                if is_new and self._captures:
                    self._graph = self._captured()
            self.has_new_kernels = is_new and self._flavour.is_rtx
            logits = self._logits.float()
        current.wait_stream(self._stream)
        logits.record_stream(current)
        return logits

    def compiled_kernels(self) -> bytes:
        """What TensorRT-RTX has compiled so far, for the next start; nothing with TensorRT."""
        return b"" if self._config is None else bytes(self._kernels.serialize())

    def _bind(self, shape: tuple[int, ...]) -> None:
        """Gives the network memory for tiles of a shape. It is the stream's own: what is freed here
        is used again only behind the work that is under way on it."""
        self._graph, self._shape = None, ()
        self._flavour.log.errors.clear()
        context = self._context
        if not context.set_input_shape(self._image_name, shape):
            raise SeriesError(f"{self._flavour} refuses tiles {list(shape)}: {self._why()}")
        self._image = self._empty(self._image_name, shape)
        self._logits = self._empty(
            self._logits_name, tuple(context.get_tensor_shape(self._logits_name))
        )
        for name, memory in ((self._image_name, self._image), (self._logits_name, self._logits)):
            if not context.set_tensor_address(name, memory.data_ptr()):
                raise SeriesError(f"{self._flavour} refuses memory for {name}: {self._why()}")
        self._shape = shape

    def _empty(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if any(size < 0 for size in shape):
            raise SeriesError(f"{self._flavour} does not know how large {name} becomes: {shape}")
        dtype = _torch_dtype(self._flavour.trt, self._engine.get_tensor_dtype(name))
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise SeriesError(f"{self._flavour} failed on tiles {list(self._shape)}: {self._why()}")

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """The network as a CUDA graph, recorded and not run; None where it cannot be."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads read the next scans meanwhile: their calls are none of the graph's.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._enqueue()
        except (RuntimeError, SeriesError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            self._say(f"{self._flavour} runs without a CUDA graph: {first}")
            self._captures = False
            return None
        return graph

    def _why(self) -> str:
        return self._flavour.log.take()


def _runtime_config(trt: Any, engine: Any) -> Any:
    config = engine.create_runtime_config()
    # Kernels for the shape at hand at once: changed in mid-run, they would round otherwise.
    strategy = trt.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
    return config


def _names(trt: Any, engine: Any) -> tuple[str, str]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    (image,) = inputs
    (logits,) = set(names) - set(inputs)
    return image, logits


def _torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    known = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
    }
    return known[dtype]
