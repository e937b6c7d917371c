"""Memory of processes that belong together: what they hold, pages that they share counted once."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

_SAMPLE_SECONDS = 0.05


def session_memory_mb(leader: int) -> list[float]:
    """Proportional set size in MB of each process of a session; none where it has ended."""
    return [_pss_mb(pid) for pid in _session(leader)]


def peak_of_group(process: subprocess.Popen) -> float:
    """Waits for a process that leads its session; returns the most MB that the session held."""
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(session_memory_mb(process.pid)))
        time.sleep(_SAMPLE_SECONDS)
    return peak


def _session(leader: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            found.append(int(folder.name))
    return found


def _pss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    match = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0
