"""What decides how fast an engine is: processor, threads and GPU."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def machine(device: str) -> dict[str, str]:
    """The processor and torch's threads, and the GPU of a CUDA device."""
    threads = torch.get_num_threads()
    facts = {"cpu": processor(), "threads": f"{threads} thread{'s' * (threads > 1)}"}
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def processor() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
