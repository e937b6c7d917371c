"""Engines: what runs a bundle's network, behind one protocol."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fastmed.bundle import Bundle, file_sha256
from fastmed.errors import BundleError, SeriesError, UsageError
from fastmed.exporter import WEIGHTS_KEY
from fastmed.models.channels import channels_taken
from fastmed.spec import Spec


class Engine(Protocol):
    """A network that is loaded and ready.

    name: as --engine names it. device: "cpu" or "cuda:0".
    Called with tiles [B, C, D, H, W] float32 on `device`, it returns logits [B, K, D, H, W]
    float32 there, [B, K] from a classification or [B, N, 2K + classes] from a detection; they stay
    valid until the next call.
    """

    name: str
    device: str

    def __call__(self, tiles: Tensor) -> Tensor: ...


class _Tiles:
    """What all engines share: a network of slices sees tiles [B, C, 1, H, W] as [B, C, H, W].

    One of a detection that takes more channels than there are slices to see sees one slice in each.
    """

    def __init__(self, spec: Spec, device: str):
        self.device = device
        self._flat = spec.dimensions == 2
        self._repeats = self._flat and spec.task == "detection"
        self._channels: int | None = None  # of the network's input, where it says so

    def __call__(self, tiles: Tensor) -> Tensor:
        tiles = self._repeated(tiles) if self._repeats else tiles
        logits = self._run(tiles.squeeze(2) if self._flat else tiles)
        return logits.unsqueeze(2) if self._flat and logits.dim() == 4 else logits

    def _repeated(self, tiles: Tensor) -> Tensor:
        given, wanted = tiles.shape[1], self._channels
        if wanted is None or given == wanted:
            return tiles
        if given > 1:
            raise SeriesError(
                f"the network takes images of {wanted} channels; bundle.toml's [grid] slices gives "
                f"{given}"
            )
        return tiles.expand(-1, wanted, -1, -1, -1).contiguous()

    def _run(self, tiles: Tensor) -> Tensor:
        raise NotImplementedError


class NetworkEngine(_Tiles):
    """PyTorch eager around a network that lives elsewhere, such as one in training.

    network: on `device` already; its weights are neither moved nor copied, so that each call sees
        them as they are. It runs in eval mode and without gradients; a network in training mode
        gets every module's mode back.
    """

    name = "torch"

    def __init__(self, network: nn.Module, spec: Spec, device: torch.device | str):
        super().__init__(spec, str(device))
        self._network = network
        self._channels = channels_taken(network)
        self._layout = _LAYOUTS[spec.dimensions]

    def _run(self, tiles: Tensor) -> Tensor:
        training = [module for module in self._network.modules() if module.training]
        if training:
            self._network.eval()
        try:
            with torch.inference_mode():
                logits = self._network(tiles.to(memory_format=self._layout))
        finally:
            for module in training:
                module.training = True
        return logits.float().contiguous()


# Convolutions on the CPU run 1.4 to 1.7 times faster in this layout.
_LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


class TorchEngine(NetworkEngine):
    """PyTorch eager, float32: always there, and the reference for the other engines."""

    def __init__(self, bundle: Bundle, device: str):
        layout = _LAYOUTS[bundle.spec.dimensions]
        super().__init__(bundle.network().to(device, memory_format=layout), bundle.spec, device)


class OnnxRuntimeEngine(_Tiles):
    """ONNX Runtime on the CPU, float32, with as many threads as torch has."""

    name = "ort"

    def __init__(self, bundle: Bundle, device: str):
        import onnxruntime

        super().__init__(bundle.spec, device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            bundle.onnx_path, options, providers=["CPUExecutionProvider"]
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        _refuse_stale(bundle, metadata.get(WEIGHTS_KEY))
        image, logits = _only_one_each(
            self._session.get_inputs(), self._session.get_outputs(), bundle
        )
        self._input, self._output = image.name, logits.name
        channels = image.shape[1] if len(image.shape) > 1 else None
        self._channels = channels if isinstance(channels, int) else None

    def _run(self, tiles: Tensor) -> Tensor:
        (logits,) = self._session.run([self._output], {self._input: tiles.numpy()})
        return torch.from_numpy(logits)


class OpenVinoEngine(_Tiles):
    """OpenVINO on the CPU, float32; one compiled network per tile shape."""

    name = "ov"

    def __init__(self, bundle: Bundle, device: str):
        import openvino

        super().__init__(bundle.spec, device)
        self._core = openvino.Core()
        self._model = self._core.read_model(bundle.onnx_path)
        key = ["framework", WEIGHTS_KEY]
        known = self._model.has_rt_info(key)
        _refuse_stale(bundle, self._model.get_rt_info(key).astype(str) if known else None)
        image, _ = _only_one_each(self._model.inputs, self._model.outputs, bundle)
        axes = list(image.get_partial_shape())
        known = len(axes) > 1 and axes[1].is_static
        self._channels = axes[1].get_length() if known else None
        self._compiled: dict[tuple[int, ...], Callable] = {}
        self._is_residual = _adds_to_a_norm(self._model)

    def _run(self, tiles: Tensor) -> Tensor:
        shape = tuple(tiles.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(shape)
        request = self._compiled[shape]
        request.infer([tiles.numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data)

    def _compile(self, shape: tuple[int, ...]):
        model = self._model.clone()
        model.reshape(list(shape))
        settings = {
            # Left alone, OpenVINO picks bfloat16 on CPUs that have it.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Threads tied to cores wait there while other jobs of the machine run on them.
            "ENABLE_CPU_PINNING": False,
        }
        if self._is_residual:
            # OpenVINO 2026.4 dies of a segmentation fault while it generates code for a group norm
            # with the addition behind it, as SSD3D has them.
            settings["SNIPPETS_MODE"] = "DISABLE"
        return self._core.compile_model(model, "CPU", settings).create_infer_request()


@dataclass(frozen=True)
class _Kind:
    """One line of the table of engines."""

    build: Callable[[Bundle, str], Engine]
    module: str
    devices: tuple[str, ...]
    needs_onnx: bool
    install: str


# From the fastest to the slowest, for UNet3d on 2 CPU cores; tools/score_demo.py times them.
_KINDS = {
    "ov": _Kind(OpenVinoEngine, "openvino", ("cpu",), True, "pip install openvino"),
    "ort": _Kind(OnnxRuntimeEngine, "onnxruntime", ("cpu",), True, "pip install onnxruntime"),
    "torch": _Kind(TorchEngine, "torch", ("cpu", "cuda"), False, "pip install torch"),
}
NAMES = ("auto", *_KINDS)


def open_engine(bundle: Bundle, engine: str = "auto", device: str = "auto") -> tuple[Engine, str]:
    """Loads a bundle's network into an engine.

    engine: "auto", "torch", "ort" or "ov". "auto" takes the fastest that is present for the
        device; a named engine that is absent is an error, never replaced.
    device: "auto" (a CUDA device where torch has one), "cpu", "cuda" or "cuda:1".

    Returns the engine and one sentence that says which it is and why.
    Raises UsageError for what is unknown or absent, BundleError for a damaged bundle.
    """
    if engine not in NAMES:
        raise UsageError(f"--engine {engine}: expected one of {', '.join(NAMES)}")
    device = _device(device)
    if engine != "auto":
        if reason := _absent(engine, bundle, device):
            raise UsageError(f"--engine {engine}: {reason}")
        return _build(engine, bundle, device), f"engine {engine} on {device}, as asked"
    passed = []
    for name in _KINDS:
        if reason := _absent(name, bundle, device):
            passed.append(f"{name}: {reason}")
            continue
        because = "; ".join(passed) or "the fastest of those present"
        return _build(name, bundle, device), f"engine {name} on {device} ({because})"
    raise UsageError(
        f"--engine auto: no engine runs {bundle.path} on {device}: {'; '.join(passed)}"
    )


def survey() -> list[tuple[str, str, str]]:
    """Lists each engine: its name, its version or "absent", and how to install it if absent."""
    from importlib import metadata

    rows = []
    for name, kind in _KINDS.items():
        present = importlib.util.find_spec(kind.module) is not None
        try:
            version = metadata.version(kind.module) if present else "absent"
        except metadata.PackageNotFoundError:  # its distribution has another name: -gpu, -nightly
            version = "present, of unknown version"
        rows.append((name, version, "" if present else kind.install))
    return rows


def _absent(name: str, bundle: Bundle, device: str) -> str:
    """Why an engine cannot run this bundle on this device; empty where it can."""
    kind = _KINDS[name]
    if importlib.util.find_spec(kind.module) is None:
        return f"not installed on this machine ({platform.machine()}); {kind.install}"
    if device.split(":")[0] not in kind.devices:
        return f"runs on {' and '.join(kind.devices)}, not on {device}"
    if kind.needs_onnx and not bundle.onnx_path.is_file():
        return f"{bundle.path} has no model.onnx; fastmed export {bundle.path} --to onnx"
    if not kind.needs_onnx and bundle.spec.network is None:
        return f"{bundle.path} names no [network] that torch could build"
    return ""


def _build(name: str, bundle: Bundle, device: str) -> Engine:
    try:
        return _KINDS[name].build(bundle, device)
    except BundleError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"bundle {bundle.path}: engine {name} cannot load it: {first[:300]}"
        ) from error


def _only_one_each(inputs: list, outputs: list, bundle: Bundle) -> tuple:
    """The only input and output of an ONNX network, which may have any names."""
    if len(inputs) != 1 or len(outputs) != 1:
        raise BundleError(
            f"bundle {bundle.path}: model.onnx has {len(inputs)} inputs and {len(outputs)} "
            "outputs; expected one image and one tensor of logits"
        )
    return inputs[0], outputs[0]


def _adds_to_a_norm(model) -> bool:
    """Whether an OpenVINO model adds something to what a group norm returns."""
    norms = [node for node in model.get_ops() if node.get_type_name() == "GroupNormalization"]
    return any(
        target.get_node().get_type_name() == "Add"
        for norm in norms
        for target in norm.output(0).get_target_inputs()
    )


def _refuse_stale(bundle: Bundle, exported_from: str | None) -> None:
    """An ONNX file that names the weights it came from must have come from these."""
    if not exported_from or not bundle.weights_path.is_file():
        return
    if exported_from != file_sha256(bundle.weights_path):
        raise BundleError(
            f"bundle {bundle.path}: model.onnx was exported from other weights; "
            f"fastmed export {bundle.path} --to onnx"
        )


def _device(device: str) -> str:
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"--device {device}: expected auto, cpu, cuda or cuda:1") from error
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: expected auto, cpu, cuda or cuda:1")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UsageError(f"--device {device}: torch sees {found} CUDA devices; use --device cpu")
    return "cpu" if chosen.type == "cpu" else f"cuda:{chosen.index or 0}"
