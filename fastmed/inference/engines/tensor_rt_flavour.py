"""TensorRT's flavours: which of its libraries is present, and whether it takes this GPU."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fastmed.inference.engines.protocol import EngineRefused

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
_OLDEST = (10, 13)  # the first with everything that is called here


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its torch name, as "cuda:0", what it is called, its compute capability."""

    device: str
    name: str
    capability: tuple[int, int]

    @classmethod
    def of(cls, device: str) -> Gpu:
        name = torch.cuda.get_device_name(device)
        return cls(device, name, torch.cuda.get_device_capability(device))

    @property
    def sm(self) -> str:
        """The compute capability as TensorRT-RTX names it: "SM90"."""
        return "SM{}{}".format(*self.capability)

    def __str__(self) -> str:
        return "{} (compute capability {}.{})".format(self.name, *self.capability)


@dataclass(frozen=True)
class Flavour:
    """One library: TensorRT or TensorRT-RTX. trt: its module; both have the same names."""

    trt: Any

    @property
    def is_rtx(self) -> bool:
        """Whether it compiles kernels when an engine is loaded, and builds without a GPU."""
        return hasattr(self.trt, "ComputeCapability")

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.trt.__version__}"

    @cached_property
    def log(self) -> Any:
        """A logger that keeps what went wrong and prints nothing."""
        return _log(self.trt)

    def why_not(self, gpu: Gpu) -> str:
        """Why this library takes no engine for a GPU, as far as it says so; else nothing."""
        version = tuple(map(int, re.findall(r"\d+", self.trt.__version__)[:2]))
        if not self.is_rtx and version < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            return f"{self} is older than {oldest}; pip install 'tensorrt>={oldest}'"
        if self.is_rtx and gpu.sm not in self.capabilities():
            known = ", ".join(f"{int(sm[2:]) / 10:.1f}" for sm in self.capabilities())
            return f"{self} refuses {gpu}, it takes {known}; {install_command()}"
        return ""

    def capabilities(self) -> list[str]:
        """The compute capabilities that TensorRT-RTX builds for: "SM75", "SM80", ..."""
        return [name for name in self.trt.ComputeCapability.__members__ if name.startswith("SM")]


def present_flavours() -> list[Flavour]:
    """The libraries that are installed and can be imported, TensorRT before TensorRT-RTX.

    Raises EngineRefused where one is installed, but none can be imported.
    """
    found: list[Flavour] = []
    failures = []
    for name in MODULES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            flavour = Flavour(importlib.import_module(name))
        except (ImportError, OSError) as error:
            failures.append(f"{name} cannot be imported ({error})")
            continue
        if all(flavour.is_rtx != other.is_rtx for other in found):
            found.append(flavour)
    if failures and not found:
        raise EngineRefused(f"{'; '.join(failures)}; {install_command()}")
    return found


def install_command() -> str:
    """What installs TensorRT for the CUDA that torch was built with."""
    major = (torch.version.cuda or "13").split(".")[0]
    return f"pip install tensorrt-cu{major}"


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, message: str) -> None:
            is_error = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if is_error and len(self.errors) < 20:
                self.errors.append(" ".join(message.split())[:300])

        def take(self) -> str:
            """The first thing that went wrong since the last call."""
            first = self.errors[0] if self.errors else "it gave no reason"
            self.errors.clear()
            return first

    return Log()
