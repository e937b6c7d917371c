"""A run without workers: the model is loaded, and the scans are done, in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fastmed.inference.journal import Journal
from fastmed.inference.manifest import model_facts
from fastmed.inference.owners import Owner
from fastmed.inference.pipeline import Pipeline
from fastmed.inference.run_model import load_for_run
from fastmed.inference.run_settings import RunSettings


class InThisProcess:
    """Has the scans done by this process, as `Workers` does by others; a crash ends it.

    settings: of the run; before: the model's facts of the run before in the same folder.
    say: receives sentences for the user.
    """

    def __init__(
        self, settings: RunSettings, before: dict[str, Any] | None, say: Callable[[str], None]
    ) -> None:
        self._settings, self._before, self._say = settings, before, say
        self._stopped = threading.Event()

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()

    def facts(self) -> dict[str, Any]:
        """Loads the model; returns its facts. Raises as `load_for_run`."""
        self._model = load_for_run(self._settings, self._before, self._say)
        return model_facts(self._model)

    def run(self, journal: Journal, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Does what waits in the journal. Raises as `Pipeline.run`."""
        lock = threading.Lock()

        def report(event: dict[str, Any]) -> None:
            with lock:
                on_event(event)

        with Owner(journal.folder) as owner:
            Pipeline(journal, owner.token, self._model, self._settings, report, self._stopped).run()
