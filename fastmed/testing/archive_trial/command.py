"""The fastmed command in a session of its own, so that all of a run's processes are found by it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fastmed
from fastmed.testing.archive_trial.results import is_finished


@dataclass(frozen=True, eq=False)
class Started:
    """A command that runs: its process, and where its errors go."""

    process: subprocess.Popen
    errors: Path

    def kill(self) -> None:
        """SIGKILL to the whole process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, output: Path) -> int:
        """Waits for its end and returns its exit status, 0 or 1.

        Raises RuntimeError, with what it complained about, where the manifest in `output` does not
        say that the run was finished.
        """
        status = self.process.wait()
        if status not in (0, 1) or not is_finished(output):
            said = self.errors.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{self.process.args} ended with status {status}: {said}")
        return status


def start(arguments: Sequence[object], log: Path, *, before: Sequence[str] = ()) -> Started:
    """Starts `fastmed ARGUMENTS`; what it prints is appended to `log`.

    before: a command to run it under, such as strace with its flags.
    """
    package_folder = str(Path(fastmed.__file__).parents[1])
    search = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH")]))
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "fastmed.cli", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | {"PYTHONPATH": search},
            start_new_session=True,
        )
    return Started(process, log)


def run(arguments: Sequence[object], output: Path) -> int:
    """Runs `fastmed ARGUMENTS` to its end and returns its exit status, 0 or 1.

    output: its output folder; what it prints goes beside it.
    """
    started = start(arguments, output.with_name(f"{output.name}.log"))
    try:
        return started.wait(output)
    except BaseException:
        started.kill()
        raise
