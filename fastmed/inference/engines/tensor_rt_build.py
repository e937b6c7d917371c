"""TensorRT builds: from an ONNX file to the bytes of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastmed.inference.engines.engine_cache import EngineCache, Entry
from fastmed.inference.engines.onnx_file import OnnxFile
from fastmed.inference.engines.protocol import EngineFailed, EngineRefused
from fastmed.inference.engines.tensor_rt_flavour import Flavour, Gpu, install_command
from fastmed.inference.engines.tensor_rt_profile import Profile
from fastmed.inference.engines.tensor_rt_progress import build_monitor

# float32 means float32: TensorRT would else multiply with 10 bits of mantissa.
FLAGS_CLEARED = ("TF32",)


@dataclass(frozen=True)
class Target:
    """What an engine is built of and for."""

    onnx: OnnxFile
    flavour: Flavour
    gpu: Gpu

    def entry(self, profile: Profile) -> Entry:
        """The entry of the cache for an engine: all that its bytes depend on."""
        return Entry(
            "engine",
            self._facts
            | {
                "onnx_sha256": self.onnx.sha256,
                "precision": self.onnx.precision,
                "profile": [profile.smallest, profile.usual, profile.largest],
                "flags_cleared": FLAGS_CLEARED,
            },
        )

    def timing_entry(self) -> Entry:
        """The entry for how long the kernels of TensorRT take on this GPU."""
        return Entry("timing", self._facts)

    def accepted_entry(self) -> Entry:
        """The entry that says that library, GPU and network go together."""
        return Entry("accepted", self._facts | {"onnx_sha256": self.onnx.sha256})

    @property
    def _facts(self) -> dict[str, Any]:
        return {
            "library": str(self.flavour),
            "gpu": self.gpu.name,
            "compute_capability": list(self.gpu.capability),
        }


def check_network(target: Target) -> None:
    """Parses the ONNX file. Raises EngineRefused, naming the node that TensorRT does not know."""
    _parse(target)


def check_gpu(flavour: Flavour, gpu: Gpu) -> None:
    """Builds and loads an engine of nothing. Raises EngineRefused where this GPU cannot run it."""
    trt = flavour.trt
    builder = _builder(flavour, gpu)
    network = _network(trt, builder)
    image = network.add_input("image", trt.float32, (1,))
    network.mark_output(network.add_identity(image).get_output(0))
    plan = builder.build_serialized_network(network, _config(flavour, gpu, builder))
    if plan is None or deserialised(flavour, bytes(plan)) is None:
        raise _refusal(flavour, gpu)


def deserialised(flavour: Flavour, plan: bytes) -> tuple[Any, Any] | None:
    """The runtime and the engine of a plan on the current CUDA device; None where it is refused.

    The runtime must outlive the engine.
    """
    flavour.log.errors.clear()
    try:
        runtime = flavour.trt.Runtime(flavour.log)
    except (RuntimeError, TypeError):  # pybind11's words for a null pointer
        return None
    engine = runtime.deserialize_cuda_engine(plan)
    return None if engine is None else (runtime, engine)


def build(
    target: Target,
    profile: Profile,
    say: Callable[[str], None],
    cache: EngineCache | None = None,
    capabilities: Sequence[str] = (),
) -> bytes:
    """Builds an engine for tiles of a profile; takes minutes with TensorRT, seconds with RTX.

    say: receives a sentence from time to time. cache: keeps what TensorRT measured of its kernels.
    capabilities: of TensorRT-RTX, the GPUs that the engine is for, as ("SM80", "SM120"); without
        any, the target's.

    Raises EngineRefused where the network cannot be parsed, EngineFailed where it cannot be built.
    """
    trt = target.flavour.trt
    builder, network, _parser = _parse(target)  # the parser owns what the network points to
    config = _config(target.flavour, target.gpu, builder, capabilities)
    image = network.get_input(0)
    if any(size < 0 for size in image.shape):
        shapes = builder.create_optimization_profile()
        shapes.set_shape(image.name, profile.smallest, profile.usual, profile.largest)
        config.add_optimization_profile(shapes)
    timing = _use_timing_cache(target, config, cache)
    monitor = build_monitor(trt, f"{target.flavour} builds an engine for tiles {profile}", say)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.interrupt is not None:
        raise monitor.interrupt
    if plan is None:
        raise EngineFailed(
            f"{target.onnx.path}: {target.flavour} cannot build an engine for tiles {profile} on "
            f"{target.gpu.name}: {target.flavour.log.take()}; --engine torch runs it"
        )
    if timing is not None:
        cache.write(target.timing_entry(), bytes(timing.serialize()))
    return bytes(plan)


def _parse(target: Target) -> tuple[Any, Any, Any]:
    flavour, onnx = target.flavour, target.onnx
    builder = _builder(flavour, target.gpu)
    network = _network(flavour.trt, builder)
    parser = flavour.trt.OnnxParser(network, flavour.log)
    if not parser.parse(onnx.content(), str(onnx.path)):
        raise EngineRefused(f"{flavour} cannot run {onnx.path}: {_first_error(parser)}")
    flavour.log.errors.clear()
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise EngineRefused(
            f"{flavour} reads {network.num_inputs} inputs and {network.num_outputs} outputs from "
            f"{onnx.path}; expected one each"
        )
    return builder, network, parser


def _first_error(parser: Any) -> str:
    if parser.num_errors == 0:
        return "it gave no reason"
    error = parser.get_error(0)
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
    return f"{node}{' '.join(error.desc().split())[:300]}"


def _builder(flavour: Flavour, gpu: Gpu) -> Any:
    flavour.log.errors.clear()
    try:
        return flavour.trt.Builder(flavour.log)
    except (RuntimeError, TypeError) as error:  # pybind11's words for a null pointer
        raise _refusal(flavour, gpu) from error


def _refusal(flavour: Flavour, gpu: Gpu) -> EngineRefused:
    return EngineRefused(f"{flavour} refuses {gpu}: {flavour.log.take()}; {install_command()}")


def _network(trt: Any, builder: Any) -> Any:
    # From TensorRT 11 on there is no other kind, and the flag is ignored.
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def _config(flavour: Flavour, gpu: Gpu, builder: Any, capabilities: Sequence[str] = ()) -> Any:
    trt = flavour.trt
    config = builder.create_builder_config()
    for name in FLAGS_CLEARED:
        config.clear_flag(getattr(trt.BuilderFlag, name))
    if flavour.is_rtx:
        wanted = capabilities or (gpu.sm,)
        config.num_compute_capabilities = len(wanted)
        for index, name in enumerate(wanted):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    return config


def _use_timing_cache(target: Target, config: Any, cache: EngineCache | None) -> Any:
    """TensorRT's measurements of earlier builds; TensorRT-RTX measures nothing."""
    if cache is None or target.flavour.is_rtx:
        return None
    kept = cache.read(target.timing_entry()) or b""
    timing = config.create_timing_cache(kept)
    if timing is None or not config.set_timing_cache(timing, False):
        timing = config.create_timing_cache(b"")
        config.set_timing_cache(timing, False)
    return timing
