"""Kinds: the table of engines, and which of them this machine has."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata

import torch

from fastmed.bundle import Bundle
from fastmed.errors import UsageError
from fastmed.inference.engines.onnx_runtime import OnnxRuntimeEngine
from fastmed.inference.engines.open_vino import OpenVinoEngine
from fastmed.inference.engines.pytorch import TorchEngine
from fastmed.inference.engines.tensor_rt import TensorRtEngine
from fastmed.inference.engines.tensor_rt_flavour import MODULES, install_command
from fastmed.models.precision import DTYPES


@dataclass(frozen=True)
class Kind:
    """One line of the table of engines: its class, what it needs, and how to get that."""

    engine: type[TensorRtEngine | OpenVinoEngine | OnnxRuntimeEngine | TorchEngine]
    modules: tuple[str, ...]  # any of them will do
    devices: tuple[str, ...]
    install: str

    @property
    def module(self) -> str:
        """The first of its modules that is installed; empty where none is."""
        return next((name for name in self.modules if importlib.util.find_spec(name)), "")


_ONNX_RUNTIME = "pip install onnxruntime" + ("-gpu" if torch.version.cuda else "")

# Of two that take as long, `auto` takes the first.
KINDS = {
    "trt": Kind(TensorRtEngine, MODULES, ("cuda",), install_command()),
    "ov": Kind(OpenVinoEngine, ("openvino",), ("cpu",), "pip install openvino"),
    "ort": Kind(OnnxRuntimeEngine, ("onnxruntime",), ("cpu", "cuda"), _ONNX_RUNTIME),
    "torch": Kind(TorchEngine, ("torch",), ("cpu", "cuda"), "pip install torch"),
}
NAMES = ("auto", *KINDS)
PRECISIONS = (*DTYPES, "int8")


def absent(name: str, bundle: Bundle, device: str, precision: str) -> str:
    """Why an engine cannot run this bundle on this device; empty where it can."""
    kind = KINDS[name]
    reasons = []
    if device.split(":")[0] not in kind.devices:
        reasons.append(f"runs on {' and '.join(kind.devices)}, not on {device}")
        if "cpu" not in kind.devices and not torch.cuda.is_available():
            reasons.append(f"torch {torch.__version__} sees no CUDA device")
    if not kind.module:
        reasons.append(f"not installed on this machine ({platform.machine()}); {kind.install}")
    if reasons:
        return "; ".join(reasons)
    return kind.engine.lacks(bundle, device, precision)


def present(bundle: Bundle, device: str, precision: str) -> dict[str, str]:
    """Each engine by name, with what keeps it from this bundle, device and precision, or ""."""
    device = device_of(device)
    return {name: absent(name, bundle, device, precision) for name in KINDS}


def survey() -> list[tuple[str, str, str]]:
    """Lists each engine: its name, its version or "absent", and how to install it if absent.

    The last is empty where the engine needs a CUDA device and there is none.
    """
    rows = []
    for name, kind in KINDS.items():
        if module := kind.module:
            idle = "cpu" not in kind.devices and not torch.cuda.is_available()
            what = f"{module} " if len(kind.modules) > 1 else ""
            unused = ", idle: torch sees no CUDA device" if idle else ""
            rows.append((name, f"{what}{_version(module)}{unused}", ""))
        else:
            useful = "cpu" in kind.devices or torch.cuda.is_available()
            rows.append((name, "absent", kind.install if useful else ""))
    return rows


def versions(names: Iterable[str] = tuple(KINDS)) -> dict[str, str]:
    """The version of each engine's library that is installed, by the engine's name."""
    return {name: _version(KINDS[name].module) for name in names if KINDS[name].module}


@cache
def _version(module: str) -> str:
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        pass  # some distributions have another name than their module: -gpu, -nightly, -cu13
    for name in metadata.packages_distributions().get(module, ()):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "present, of unknown version"


def device_of(device: str) -> str:
    """The device that a --device stands for: "cpu" or "cuda:0". Raises UsageError."""
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
