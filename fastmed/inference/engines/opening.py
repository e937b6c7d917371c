"""Opens an engine: the one that is named, or the fastest that is present."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastmed.bundle import Bundle
from fastmed.errors import BundleError, UsageError
from fastmed.inference.certificate import JSON_FILE as CERTIFICATE
from fastmed.inference.certificate import Verdicts, verdicts
from fastmed.inference.engines.choice import measured
from fastmed.inference.engines.onnx_runtime import OnnxRuntimeEngine
from fastmed.inference.engines.open_vino import OpenVinoEngine
from fastmed.inference.engines.protocol import Engine, EngineRefused
from fastmed.inference.engines.pytorch import TorchEngine
from fastmed.inference.engines.tensor_rt import TensorRtEngine
from fastmed.inference.engines.tensor_rt_flavour import MODULES, install_command
from fastmed.models.precision import DTYPES


@dataclass(frozen=True)
class _Kind:
    """One line of the table of engines: its class, what it needs, and how to get that."""

    engine: type[TensorRtEngine | OpenVinoEngine | OnnxRuntimeEngine | TorchEngine]
    modules: tuple[str, ...]  # any of them will do
    devices: tuple[str, ...]
    install: str


# Of two that take as long, `auto` takes the first.
_KINDS = {
    "trt": _Kind(TensorRtEngine, MODULES, ("cuda",), install_command()),
    "ov": _Kind(OpenVinoEngine, ("openvino",), ("cpu",), "pip install openvino"),
    "ort": _Kind(OnnxRuntimeEngine, ("onnxruntime",), ("cpu",), "pip install onnxruntime"),
    "torch": _Kind(TorchEngine, ("torch",), ("cpu", "cuda"), "pip install torch"),
}
NAMES = ("auto", *_KINDS)
PRECISIONS = tuple(DTYPES)


def open_engine(
    bundle: Bundle,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    say: Callable[[str], None] = lambda sentence: None,
) -> tuple[Engine, str]:
    """Loads a bundle's network into an engine.

    engine: "auto", "torch", "ort", "ov" or "trt". "auto" takes the fastest that is present for the
        device: by the bundle's certificate where it is of this machine (`certify`), else as timed
        on the bundle's own tile, which is done once and remembered; never one that a certificate
        refuses. A named engine that is absent, or does not take this device, is an error, never
        replaced; one that a certificate refuses runs, and that is said.
    device: "auto" (a CUDA device where torch has one), "cpu", "cuda" or "cuda:1".
    precision: "fp32", "fp16" or "bf16": what the network computes in. A machine or an engine that
        cannot is an error, never a silent float32. "auto": the fastest of float32 and those that
        passed in a certificate of this machine.
    say: receives a sentence where engines are timed, which takes some seconds.

    Returns the engine and one sentence that says which it is and why.
    Raises UsageError for what is unknown or absent, BundleError for a damaged bundle.
    """
    if engine not in NAMES:
        raise UsageError(f"--engine {engine}: expected one of {', '.join(NAMES)}")
    if precision not in ("auto", *PRECISIONS):
        known = ", ".join(("auto", *PRECISIONS))
        raise UsageError(f"--precision {precision}: expected one of {known}")
    device = device_of(device)
    said = verdicts(bundle, device)
    if engine == "auto":
        return _fastest(bundle, device, precision, said, say)
    return _as_asked(engine, bundle, device, precision, said)


def _as_asked(
    engine: str, bundle: Bundle, device: str, precision: str, said: Verdicts
) -> tuple[Engine, str]:
    if precision == "auto":
        passed = {p: seconds for (name, p), seconds in said.seconds.items() if name == engine}
        precision = min(passed, key=passed.get, default="fp32")
    if reason := _absent(engine, bundle, device, precision):
        raise UsageError(f"--engine {engine}: {reason}")
    try:
        opened = _build(engine, bundle, device, precision)
    except EngineRefused as error:
        raise UsageError(f"--engine {engine}: {error}") from error
    why = "as asked"
    if refused := said.refused.get((engine, precision)):
        why += f", though {bundle.path / CERTIFICATE} refuses it: {refused}"
    return opened, f"{_named(engine, opened)} {_where(precision, device)}, {why}"


def _fastest(
    bundle: Bundle, device: str, precision: str, said: Verdicts, say: Callable[[str], None]
) -> tuple[Engine, str]:
    passed, able = [], []
    for name, chosen in _candidates(device, precision, said):
        reason = _absent(name, bundle, device, chosen)
        if refused := said.refused.get((name, chosen)):
            reason = reason or f"refused by {bundle.path / CERTIFICATE}: {refused}"
        if reason:
            passed.append(f"{name}: {reason}")
        else:
            able.append((name, chosen))
    if any(pair in said.seconds for pair in able):
        why = [f"the fastest in {bundle.path / CERTIFICATE}"]
        able.sort(key=lambda pair: said.seconds.get(pair, math.inf))
    elif len(able) > 1:
        chosen = able[0][1]
        versions = {name: _version(_present(_KINDS[name])) for name, _ in able}
        found = measured(
            bundle, device, chosen, versions, lambda n: _build(n, bundle, device, chosen), say
        )
        passed += [f"{name}: {reason}" for name, reason in found.refused.items()]
        if found.seconds:
            able = [(name, chosen) for name in found.order([*versions])]
        why = [f"the fastest on its tile: {found}" if found.seconds else "untimed", *passed]
    else:
        why = passed or ["the only one present"]
    for name, chosen in able:
        try:
            opened = _build(name, bundle, device, chosen)
        except EngineRefused as error:
            passed.append(f"{name}: {error}")
            why = passed
            continue
        return opened, f"{_named(name, opened)} {_where(chosen, device)} ({'; '.join(why)})"
    raise UsageError(
        f"--engine auto: no engine runs {bundle.path} on {device}: {'; '.join(passed)}"
    )


def _candidates(device: str, precision: str, said: Verdicts) -> list[tuple[str, str]]:
    """Engines of a device and precisions that `auto` may take, in the table's order."""
    names = [name for name, kind in _KINDS.items() if device.split(":")[0] in kind.devices]
    precisions = PRECISIONS if precision == "auto" else (precision,)
    return [
        (name, chosen)
        for chosen in precisions
        for name in names
        if precision != "auto" or chosen == "fp32" or (name, chosen) in said.seconds
    ]


def _where(precision: str, device: str) -> str:
    return f"on {device}" if precision == "fp32" else f"in {precision} on {device}"


def present(bundle: Bundle, device: str, precision: str) -> dict[str, str]:
    """Each engine by name, with what keeps it from this bundle, device and precision, or ""."""
    device = device_of(device)
    return {name: _absent(name, bundle, device, precision) for name in _KINDS}


def survey() -> list[tuple[str, str, str]]:
    """Lists each engine: its name, its version or "absent", and how to install it if absent.

    The last is empty where the engine needs a CUDA device and there is none.
    """
    rows = []
    for name, kind in _KINDS.items():
        if module := _present(kind):
            idle = "cpu" not in kind.devices and not torch.cuda.is_available()
            what = f"{module} " if len(kind.modules) > 1 else ""
            unused = ", idle: torch sees no CUDA device" if idle else ""
            rows.append((name, f"{what}{_version(module)}{unused}", ""))
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


def _absent(name: str, bundle: Bundle, device: str, precision: str) -> str:
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
    return kind.engine.lacks(bundle, device, precision)


def _named(name: str, engine: Engine) -> str:
    library = getattr(engine, "library", "")
    return f"engine {name} ({library})" if library else f"engine {name}"


def _build(name: str, bundle: Bundle, device: str, precision: str) -> Engine:
    try:
        return _KINDS[name].engine(bundle, device, precision)
    except (BundleError, EngineRefused):
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"bundle {bundle.path}: engine {name} cannot load it: {first[:300]}"
        ) from error


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
