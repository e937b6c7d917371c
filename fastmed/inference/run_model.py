"""The model of a run: loaded once in a process, by the engine that the run was begun with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastmed import bundle as bundles
from fastmed.bundle import Bundle
from fastmed.errors import UsageError
from fastmed.inference.case import Model, load
from fastmed.inference.certificate import verdicts
from fastmed.inference.engines.kinds import device_of, versions
from fastmed.inference.run_settings import RunSettings
from fastmed.malloc import keep_freed_memory, return_large_blocks
from fastmed.ops import keep_result_memory


def load_for_run(
    settings: RunSettings, before: Mapping[str, Any] | None, say: Callable[[str], None]
) -> Model:
    """Loads the model; `auto` keeps the engine of the run before in the same folder.

    before: the `model_facts` of that run, if there was one. Raises as `fastmed.load` does.
    """
    read = bundles.read(settings.bundle)
    device, precision = settings.device, settings.precision
    earlier = None
    if settings.engine == "auto":
        device = device_of(device)
        earlier = _engine_before(before, read, device, precision)
        if earlier in verdicts(read, device, versions()).refused:
            earlier = None
    engine, precision = earlier or (settings.engine, precision)
    try:
        model = load(read.path, engine=engine, device=device, precision=precision, say=say)
    except UsageError as error:
        if earlier is None:
            raise
        raise UsageError(
            f"{error}; the run in {settings.output} was begun with it: name an engine, or another "
            "--output"
        ) from error
    if earlier is not None:
        why = f"as the run before in {settings.output}"
        model = replace(model, engine_choice=model.engine_choice.replace("as asked", why))
    if settings.tune_malloc:
        is_eager = (model.engine.name, model.engine.device) == ("torch", "cpu")
        keep_freed_memory() if is_eager else return_large_blocks()
        keep_result_memory(0)
    return model


def _engine_before(
    before: Mapping[str, Any] | None, bundle: Bundle, device: str, precision: str
) -> tuple[str, str] | None:
    """Engine and precision of the run before, where it was of this model and this device.

    precision: as it is asked for now; a run in another than one that is named says nothing.
    """
    if before is None:
        return None
    is_same = before["model"]["sha256"] == bundle.sha256() and before["device"] == device
    if not is_same or precision not in ("auto", before["precision"]):
        return None
    return before["engine"], before["precision"]
