"""Times calls in turns, and measures the memory that a call takes beside its output."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastmed import ops

Call = Callable[[], object]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_COPIED_MB = 256


@contextlib.contextmanager
def _no_kept_results() -> Iterator[None]:
    before = ops.keep_result_memory(0)
    try:
        yield
    finally:
        ops.keep_result_memory(before)


def in_fresh_memory(call: Call, rounds: int) -> float:
    """Seconds of a call on the CPU, the median, where the kernels keep no memory of results."""
    with _no_kept_results():
        return statistics.median(seconds(call) for _ in range(rounds))


def seconds(call: Call, device: str = "cpu", repeats: int = 1) -> float:
    """Wall time of one call, the mean of several in a row, until the device is done."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - started) / repeats


@dataclass(frozen=True)
class Observed:
    """One call: what it returned, its seconds, and the bytes it needed beside its result."""

    result: object
    seconds: float
    extra: float


@_no_kept_results()  # a kept block would hide what the call takes
def observe(call: Call, device: str = "cpu", *, memory: bool = True) -> Observed:
    """Runs a call once; its extra bytes are NaN where nobody counts them."""
    if not memory:
        before, peak = 0, lambda: float("nan")
    elif device != "cpu":
        _wait(device)
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    elif _CLEAR.exists():
        gc.collect()
        _give_back_free_pages()
        _CLEAR.write_text("5")  # the peak starts again from what is resident now
        before, peak = _resident("VmRSS"), lambda: _resident("VmHWM")
    else:
        before, peak = 0, lambda: float("nan")
    started = time.perf_counter()
    result = call()
    _wait(device)
    taken = time.perf_counter() - started
    beside = peak() - before - bytes_of(result)
    return Observed(result, taken, beside if beside != beside else max(0.0, float(beside)))


def bytes_of(value: object) -> int:
    """Bytes of all the tensors in it."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(bytes_of(each) for each in value)
    if hasattr(value, "GetSizeOfPixelComponent"):
        return value.GetNumberOfPixels() * value.GetSizeOfPixelComponent()
    return 0


class Copies:
    """The copy speed of a device: the same 256 MB to the same place, read and written."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.source = torch.ones(_COPIED_MB << 20, dtype=torch.uint8, device=device)
        self.target = torch.zeros_like(self.source)
        seconds(self.copy, device)

    def copy(self) -> None:
        self.target.copy_(self.source)

    @staticmethod
    def speed(taken: float) -> float:
        """Bytes per second, read and written ones added up."""
        return 2 * (_COPIED_MB << 20) / taken


@dataclass
class Race:
    """A kernel's competitors: each runs once before every round of the kernel.

    Whoever needs long runs in fewer rounds than the kernel's `most`. Where a call is short, a round
    is many of them in a row.
    """

    device: str
    most: int
    calls: dict[str, Call] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    taken: dict[str, list[float]] = field(default_factory=dict)
    turn: int = -1

    def enter(self, name: str, call: Call, first: float) -> None:
        """first: seconds of its first call. One of several seconds counts its first call too."""
        self.calls[name] = call
        self.repeats[name] = repeats_for(first)
        self.rounds[name] = self.most if first < 0.7 else 3 if first < 4 else 2
        self.taken[name] = [first] if first >= 4 else []

    def setup(self) -> None:
        """What pytest-benchmark runs before each round of the kernel; the first is its warm-up."""
        self.turn += 1
        for name, call in self.calls.items():
            if 0 < self.turn <= self.rounds[name]:
                self.taken[name].append(seconds(call, self.device, self.repeats[name]))

    def median(self, name: str) -> float:
        return statistics.median(self.taken[name])


def repeats_for(first: float) -> int:
    """Calls in a row that make a round of a short call long enough for a clock, and warm."""
    return max(1, min(50, int(5e-3 / max(first, 1e-6))))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _give_back_free_pages() -> None:
    """Freed pages that malloc keeps would hide what the next call takes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
