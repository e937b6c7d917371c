"""The memory budget of a run: how much the scans that are in hand may take together."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path

from fastmed.readers.series import Series
from fastmed.spec import Spec

_SHARE = 0.5  # of the memory that is free when a run starts
_STORED_BYTES, _FLOAT_BYTES, _LABEL_BYTES = 4, 4, 2
_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class _Hierarchy:
    """Where control groups of one version are, and what their files are called."""

    root: Path
    limit: str
    use: str
    cache: str  # of memory.stat: pages of files, which the kernel takes back when memory is short


_SYSTEM = Path("/sys/fs/cgroup")
_UNIFIED = ("memory.max", "memory.current", "inactive_file")
_HIERARCHIES = (  # version 2, version 2 beside version 1, version 1
    _Hierarchy(_SYSTEM, *_UNIFIED),
    _Hierarchy(_SYSTEM / "unified", *_UNIFIED),
    _Hierarchy(
        _SYSTEM / "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


class MemoryBudget:
    """Lets scans in until they take the budget; one that is larger goes in when none is there."""

    def __init__(self, total_bytes: int) -> None:
        self._total, self._used = total_bytes, 0
        self._changed = threading.Condition()

    def take(self, wanted: int, is_stopped: threading.Event) -> bool:
        """Waits until there is room; False where the run is stopped first."""
        with self._changed:
            while self._used and self._used + wanted > self._total:
                if is_stopped.is_set():
                    return False
                self._changed.wait(0.2)
            self._used += wanted
            return True

    def give_back(self, taken: int) -> None:
        with self._changed:
            self._used -= taken
            self._changed.notify_all()


def budget_of(memory_gb: float | None) -> int:
    """Bytes of what was asked for; where nothing was, `default_budget`."""
    return default_budget() if memory_gb is None else int(memory_gb * 2**30)


def default_budget() -> int:
    """Half of the memory that this process may still take, in bytes."""
    free = [_available()]
    for hierarchy in _HIERARCHIES:
        free += [_free(group, hierarchy) for group in _groups(hierarchy)]
    return max(int(_SHARE * min(free)), 1)


def cost_of(entry: Series, spec: Spec) -> int:
    """Bytes that a scan takes at most on its way, as far as its entry tells: the stored voxels, the
    network's grid with its logits, and the labels."""
    voxels = math.prod(entry.shape_zyx or (1, 1, 1))
    grid = math.prod(spec.size_zyx) if spec.size_zyx else voxels
    if spec.spacing_mm_zyx and entry.spacing_mm_zyx:
        grid = voxels * math.prod(entry.spacing_mm_zyx) / math.prod(spec.spacing_mm_zyx)
    classes = spec.num_classes if spec.task == "segmentation" else 1
    return int(voxels * (_STORED_BYTES + _LABEL_BYTES) + grid * _FLOAT_BYTES * (1 + classes))


def _groups(hierarchy: _Hierarchy) -> list[Path]:
    """The control groups that this process is in: its own, those around it, and the root."""
    inner = set()
    try:
        for line in _GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                inner.add(path.strip("/"))
    except (OSError, ValueError):
        pass
    groups = {hierarchy.root}
    for path in inner:
        parts = Path(path).parts
        groups |= {hierarchy.root.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)}
    return sorted(groups)


def _free(group: Path, hierarchy: _Hierarchy) -> float:
    """How much more a control group may take; infinity where it has no limit, or is none."""
    try:
        limit = int((group / hierarchy.limit).read_text())
        used = int((group / hierarchy.use).read_text())
    except (OSError, ValueError):  # "max", or no such group
        return math.inf
    return limit - used + _cached(group / "memory.stat", hierarchy.cache)


def _cached(stat: Path, name: str) -> int:
    try:
        for line in stat.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 * 2**30  # where the system does not say
