"""Cache folder: where the user's machine keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(room: str) -> Path:
    """FASTMED_CACHE, else the folder `room` in fastmed's own of the user's cache folder."""
    if named := os.environ.get("FASTMED_CACHE"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastmed" / room
