"""Result folders of runs, compared: the same bytes, nothing left behind, nothing written twice."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

_TEMPORARY = (".partial", ".tmp", ".old")


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of each file of series/** and of findings.csv, by relative path."""
    files = [path for path in (output / "series").rglob("*") if path.is_file()]
    files += [path for path in [output / "findings.csv"] if path.exists()]
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names files that one of two results lacks, or whose bytes differ."""
    lines = [f"{path}: absent" for path in sorted(expected.keys() - found.keys())]
    lines += [f"{path}: not expected" for path in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return lines + [f"{path}: other bytes" for path in both if expected[path] != found[path]]


def left_behind(output: Path) -> list[str]:
    """Temporary files and folders that a finished run must not leave."""
    return sorted(
        str(path.relative_to(output))
        for path in output.rglob(".*")
        if path.name.endswith(_TEMPORARY)
    )


def is_finished(output: Path) -> bool:
    """Whether the manifest says that the run went to its end."""
    try:
        return bool(json.loads((output / "manifest.json").read_bytes())["finished"])
    except FileNotFoundError:
        return False


def finished_names(output: Path) -> set[str]:
    """The series whose result is there; a hidden folder is none yet."""
    try:
        return {name for name in os.listdir(output / "series") if not name.startswith(".")}
    except FileNotFoundError:
        return set()


def folder_inodes(output: Path) -> dict[str, int]:
    """The inode of each complete result's folder, also while others write."""
    found = {}
    for name in finished_names(output):
        with suppress(FileNotFoundError):
            found[name] = (output / "series" / name).stat().st_ino
    return found


def stamps(output: Path) -> dict[str, tuple]:
    """When and as what each complete result of a series was written: inodes, sizes and times.

    Nobody may write while this looks.
    """
    return {name: _stamp(output / "series" / name) for name in finished_names(output)}


def _stamp(folder: Path) -> tuple:
    status = os.stat(folder)
    files = sorted(os.scandir(folder), key=lambda file: file.name)
    each = [(file.name, file.stat()) for file in files]
    return (
        status.st_ino,
        *((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in each),
    )
