"""Opens an engine: the one that is named, or the fastest that is present."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastmed.bundle import Bundle
from fastmed.errors import BundleError, UsageError
from fastmed.inference.certificate import JSON_FILE as CERTIFICATE
from fastmed.inference.certificate import Verdicts, verdicts
from fastmed.inference.engines.choice import measured
from fastmed.inference.engines.kinds import (
    KINDS,
    NAMES,
    PRECISIONS,
    absent,
    device_of,
    versions,
)
from fastmed.inference.engines.protocol import Engine, EngineFailed, EngineRefused, say_on_stderr

_Build = Callable[[str, str], Engine]  # of a name and a precision


def open_engine(
    bundle: Bundle,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    say: Callable[[str], None] = say_on_stderr,
) -> tuple[Engine, str]:
    """Loads a bundle's network into an engine.

    engine: "auto", "torch", "ort", "ov" or "trt". "auto" takes the fastest that is present for the
        device: by the bundle's certificate where it is of this machine (`certify`), else as timed
        on the bundle's own tile, which is done once and remembered; never one that a certificate
        refuses. A named engine that is absent, or does not take this device, is an error, never
        replaced; one that a certificate refuses runs, and that is said.
    device: "auto" (a CUDA device where torch has one), "cpu", "cuda" or "cuda:1".
    precision: "fp32", "fp16", "bf16" or "int8": what the network computes in. A machine or an
        engine that cannot is an error, never a silent float32. "auto": the fastest of float32 and
        those that passed in a certificate of this machine.
    say: receives a sentence where something takes long: engines are timed, or TensorRT builds.

    Returns the engine and one sentence that says which it is and why.
    Raises UsageError for what is unknown or absent, BundleError for a damaged bundle.
    """
    if engine not in NAMES:
        raise UsageError(f"--engine {engine}: expected one of {', '.join(NAMES)}")
    if precision not in ("auto", *PRECISIONS):
        known = ", ".join(("auto", *PRECISIONS))
        raise UsageError(f"--precision {precision}: expected one of {known}")
    device = device_of(device)
    said = verdicts(bundle, device, versions())

    def build(name: str, chosen: str) -> Engine:
        opened = _build(name, bundle, device, chosen)
        opened.say = say
        return opened

    if engine == "auto":
        return _fastest(bundle, device, precision, said, build, say)
    return _as_asked(engine, bundle, device, precision, said, build)


def _as_asked(
    engine: str, bundle: Bundle, device: str, precision: str, said: Verdicts, build: _Build
) -> tuple[Engine, str]:
    if precision == "auto":
        passed = {p: seconds for (name, p), seconds in said.seconds.items() if name == engine}
        precision = min(passed, key=passed.get, default="fp32")
    if reason := absent(engine, bundle, device, precision):
        raise UsageError(f"--engine {engine}: {reason}")
    try:
        opened = build(engine, precision)
    except EngineRefused as error:
        raise UsageError(f"--engine {engine}: {error}") from error
    why = "as asked"
    if refused := said.refused.get((engine, precision)):
        why += f", though {bundle.path / CERTIFICATE} refuses it: {refused}"
    return opened, f"{_named(engine, opened)} {_where(precision, device)}, {why}"


def _fastest(
    bundle: Bundle,
    device: str,
    precision: str,
    said: Verdicts,
    build: _Build,
    say: Callable[[str], None],
) -> tuple[Engine, str]:
    passed, able = [], []
    for name, chosen in _candidates(device, precision, said):
        reason = absent(name, bundle, device, chosen)
        if refused := said.refused.get((name, chosen)):
            reason = reason or f"refused by {bundle.path / CERTIFICATE}: {refused}"
        if reason:
            passed.append(f"{name}: {reason}")
        else:
            able.append((name, chosen))
    if any(pair in said.seconds for pair in able):
        why = [f"the fastest in {bundle.path / CERTIFICATE}"]
        able.sort(key=lambda pair: said.seconds.get(pair, math.inf))
        unknown = [name for name, p in able if (name, p) not in said.seconds]
        why += [f"{name}: not in it as it is installed now" for name in unknown]
    elif len(able) > 1:
        chosen = able[0][1]
        names = versions([name for name, _ in able])
        found = measured(bundle, device, chosen, names, lambda name: build(name, chosen), say)
        passed += [f"{name}: {reason}" for name, reason in found.refused.items()]
        if found.seconds:
            able = [(name, chosen) for name in found.order([*names])]
        why = [f"the fastest on its tile: {found}" if found.seconds else "untimed", *passed]
    else:
        why = passed or ["the only one present"]
    for name, chosen in able:
        try:
            opened = build(name, chosen)
        except (EngineRefused, EngineFailed) as error:
            passed.append(f"{name}: {error}")
            why = passed
            continue
        return opened, f"{_named(name, opened)} {_where(chosen, device)} ({'; '.join(why)})"
    raise UsageError(
        f"--engine auto: no engine runs {bundle.path} on {device}: {'; '.join(passed)}"
    )


def _candidates(device: str, precision: str, said: Verdicts) -> list[tuple[str, str]]:
    """Engines of a device and precisions that `auto` may take, in the table's order."""
    names = [name for name, kind in KINDS.items() if device.split(":")[0] in kind.devices]
    precisions = PRECISIONS if precision == "auto" else (precision,)
    return [
        (name, chosen)
        for chosen in precisions
        for name in names
        if precision != "auto" or chosen == "fp32" or (name, chosen) in said.seconds
    ]


def _where(precision: str, device: str) -> str:
    return f"on {device}" if precision == "fp32" else f"in {precision} on {device}"


def _named(name: str, engine: Engine) -> str:
    library = getattr(engine, "library", "")
    return f"engine {name} ({library})" if library else f"engine {name}"


def _build(name: str, bundle: Bundle, device: str, precision: str) -> Engine:
    try:
        return KINDS[name].engine(bundle, device, precision)
    except (BundleError, EngineRefused):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = " ".join(line for line in lines if line and not line.startswith("Exception from"))
        said = said[:400] or type(error).__name__
        raise EngineFailed(f"bundle {bundle.path}: engine {name} cannot load it: {said}") from error
