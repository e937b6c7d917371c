"""Opens an engine: the one that is named, or the fastest that is present."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastmed.bundle import Bundle
from fastmed.errors import BundleError, UsageError
from fastmed.inference.engines.onnx_runtime import OnnxRuntimeEngine
from fastmed.inference.engines.open_vino import OpenVinoEngine
from fastmed.inference.engines.protocol import Engine, EngineRefused
from fastmed.inference.engines.pytorch import TorchEngine
from fastmed.inference.engines.tensor_rt import TensorRtEngine
from fastmed.inference.engines.tensor_rt_flavour import MODULES, install_command


@dataclass(frozen=True)
class _Kind:
    """One line of the table of engines."""

    build: Callable[[Bundle, str], Engine]
    modules: tuple[str, ...]  # any of them will do
    devices: tuple[str, ...]
    needs_onnx: bool
    install: str


# From the fastest to the slowest; those of the CPU for UNet3d on 2 cores, where tools/score_demo.py
# times them.
_KINDS = {
    "trt": _Kind(TensorRtEngine, MODULES, ("cuda",), True, install_command()),
    "ov": _Kind(OpenVinoEngine, ("openvino",), ("cpu",), True, "pip install openvino"),
    "ort": _Kind(OnnxRuntimeEngine, ("onnxruntime",), ("cpu",), True, "pip install onnxruntime"),
    "torch": _Kind(TorchEngine, ("torch",), ("cpu", "cuda"), False, "pip install torch"),
}
NAMES = ("auto", *_KINDS)


def open_engine(bundle: Bundle, engine: str = "auto", device: str = "auto") -> tuple[Engine, str]:
    """Loads a bundle's network into an engine.

    engine: "auto", "torch", "ort", "ov" or "trt". "auto" takes the fastest that is present for the
        device and takes it; a named engine that is absent or refuses is an error, never replaced.
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
        try:
            opened = _build(engine, bundle, device)
            return opened, f"{_named(engine, opened)} on {device}, as asked"
        except EngineRefused as error:
            raise UsageError(f"--engine {engine}: {error}") from error
    passed = []
    for name, kind in _KINDS.items():
        if device.split(":")[0] not in kind.devices:
            continue
        if reason := _absent(name, bundle, device):
            passed.append(f"{name}: {reason}")
            continue
        try:
            opened = _build(name, bundle, device)
        except EngineRefused as error:
            passed.append(f"{name}: {error}")
            continue
        because = "; ".join(passed) or "the fastest of those present"
        return opened, f"{_named(name, opened)} on {device} ({because})"
    raise UsageError(
        f"--engine auto: no engine runs {bundle.path} on {device}: {'; '.join(passed)}"
    )


def survey() -> list[tuple[str, str, str]]:
    """Lists each engine: its name, its version or "absent", and how to install it if absent.

    The last is empty where the engine needs a CUDA device and there is none.
    """
    rows = []
    for name, kind in _KINDS.items():
        if module := _present(kind):
            rows.append((name, _version(module), ""))
        else:
            useful = "cpu" in kind.devices or torch.cuda.is_available()
            rows.append((name, "absent", kind.install if useful else ""))
    return rows


def _version(module: str) -> str:
    from importlib import metadata

    # Some distributions have another name than their module: -gpu, -nightly, -cu13.
    for name in (module, *metadata.packages_distributions().get(module, ())):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "present, of unknown version"


def _present(kind: _Kind) -> str:
    """The first of a kind's modules that is installed; empty where none is."""
    return next((name for name in kind.modules if importlib.util.find_spec(name) is not None), "")


def _absent(name: str, bundle: Bundle, device: str) -> str:
    """Why an engine cannot run this bundle on this device; empty where it can."""
    kind = _KINDS[name]
    reasons = []
    if device.split(":")[0] not in kind.devices:
        reasons.append(f"runs on {' and '.join(kind.devices)}, not on {device}")
        if "cpu" not in kind.devices and not torch.cuda.is_available():
            reasons.append(f"torch {torch.__version__} sees no CUDA device")
    if not _present(kind):
        reasons.append(f"not installed on this machine ({platform.machine()}); {kind.install}")
    if reasons:
        return "; ".join(reasons)
    if kind.needs_onnx and not bundle.onnx_path.is_file():
        return f"{bundle.path} has no model.onnx; fastmed export {bundle.path} --to onnx"
    if not kind.needs_onnx and bundle.spec.network is None:
        return f"{bundle.path} names no [network] that torch could build"
    return ""


def _named(name: str, engine: Engine) -> str:
    library = getattr(engine, "library", "")
    return f"engine {name} ({library})" if library else f"engine {name}"


def _build(name: str, bundle: Bundle, device: str) -> Engine:
    try:
        return _KINDS[name].build(bundle, device)
    except (BundleError, EngineRefused):
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"bundle {bundle.path}: engine {name} cannot load it: {first[:300]}"
        ) from error


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
