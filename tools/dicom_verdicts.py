"""Prints docs/dicom.md's list: the verdict on every file of pydicom's own tests and of FOLDERS.

python tools/dicom_verdicts.py ../shared/data

All of them are indexed as one archive, once strictly and once leniently.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import pydicom

from fastmed.readers.index import index
from fastmed.readers.series import Series

_NAMED = 3  # files of one entry that its row lists by name


def pydicom_folders() -> list[Path]:
    """The folders of test files inside the installed pydicom."""
    data = Path(pydicom.__file__).parent / "data"
    return [data / name for name in ("test_files", "charset_files", "palettes")]


def table(folders: list[Path]) -> list[str]:
    """The rows of a Markdown table, one for each entry of the strict index of the folders."""
    lenient = defaultdict(list)
    for entry in index(folders, strict=False):
        for place in _places(entry):
            lenient[place].append(entry.verdict)
    rows = ["| files | conditions | --strict | --lenient | reason |", "|---|---|---|---|---|"]
    for entry in sorted(index(folders), key=lambda entry: _names(entry)[0]):
        later = lenient[_places(entry)[0]]
        cells = (
            _listing(_names(entry)),
            ", ".join(entry.conditions),
            entry.verdict,
            " and ".join(_counted(later)),
            entry.reason.replace("|", "\\|"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _places(entry: Series) -> list[str]:
    return [member.place for member in entry.members] or [entry.source]


def _names(entry: Series) -> list[str]:
    return sorted(member.relative for member in entry.members) or [entry.source]


def _listing(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if names[_NAMED:] else "")


def _counted(verdicts: list[str]) -> list[str]:
    return [f"{n} {verdict}" if n > 1 else verdict for verdict, n in Counter(verdicts).items()]


if __name__ == "__main__":
    print("\n".join(table([*pydicom_folders(), *map(Path, sys.argv[1:])])))
