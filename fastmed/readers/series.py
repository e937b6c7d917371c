"""Series: one entry of an index, which says what was found and what became of it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from typing import Any

from fastmed.geometry import Geometry
from fastmed.readers.walk import Found

KINDS = (
    "ct",
    "grey image",
    "label map",
    "localizer",
    "dose report",
    "screen capture",
    "derived",
    "other modality",
    "not in hu",
    "not an image",
    "damaged",
)
VERDICTS = ("ok", "refused", "skipped", "failed")
RANK = {"ok": 0, "refused": 1, "failed": 2, "skipped": 3}  # who of several keeps its plain name
CONDITIONS = (
    "uniform",
    "tilted",
    "uneven",
    "missing slices",
    "shifted slices",
    "identical copies",
    "duplicate positions",
    "mixed shapes",
    "mixed spacings",
    "mixed orientations",
    "several acquisitions",
    "overlapping reconstructions",
    "enhanced multi-frame",
    "no rescale",
    "not in hu",
    "label map",
    "localizer",
    "derived",
    "secondary capture",
    "dose report",
    "other modality",
    "not dicom",
    "damaged",
    "truncated",
    "encrypted",
    "unsupported transfer syntax",
    "single slice",
    "no geometry",
    "too large",
)

_UID = re.compile(r"(?!\.{1,2}$)[0-9.]{1,64}")
_PLAIN_FILE_NAME = re.compile(r"[^\x00-\x1f\x7f/\\:*?\"<>|]{1,200}")


@dataclass(frozen=True, eq=False)
class Series:
    """One CT series, volume file or grey image, or one group of other things, with a verdict.

    name: result-folder name; unique within one index, never able to leave a folder.
    source: path relative to the folder that was searched (that folder's own name where the two
        are the same).
    kind: one of KINDS.
    verdict: "ok" (can be read), "refused" (its geometry or values are doubtful), "skipped" (no
        CT) or "failed" (damaged or unreadable).
    reason: one sentence; for "ok" the geometry in words.
    conditions: what was found, each one of CONDITIONS; docs/dicom.md says what each means.
    files: how many files stand behind it.
    shape_zyx: voxels, None where unknown.
    geometry: where the voxels are; None unless the verdict is "ok".
    spacing_is_known: False where the file says nothing of it, so that the geometry's is made up.
    format, stored: which reader takes it, and what that reader needs; stored is None in an entry
        that comes from a record, whose files are read again when they are opened.
    members: the files behind it, in the index's order, and after an image file those beside it that
        hold its voxels or say where they lie; the group of files that are no scan is counted, not
        listed.
    """

    name: str
    source: str
    kind: str
    verdict: str
    reason: str
    warnings: tuple[str, ...] = ()
    files: int = 1
    shape_zyx: tuple[int, int, int] | None = None
    geometry: Geometry | None = None
    spacing_is_known: bool = True
    format: str = ""
    stored: Any = field(default=None, repr=False)
    conditions: tuple[str, ...] = ()
    members: tuple[Found, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.verdict not in VERDICTS:
            raise ValueError(f"kind {self.kind!r}, verdict {self.verdict!r}: not known")
        if unknown := set(self.conditions) - set(CONDITIONS):
            raise ValueError(f"conditions {sorted(unknown)}: not known")

    @property
    def spacing_mm_zyx(self) -> tuple[float, float, float] | None:
        """Distance between voxel centres in mm; None unless the verdict is "ok", or unknown."""
        known = self.geometry is not None and self.spacing_is_known
        return self.geometry.spacing_mm_zyx if known else None


def name_from_uid(series_uid: str, identity: str) -> str:
    """Names a result folder: the SeriesInstanceUID where it is sane, else a hash of `identity`."""
    return series_uid if _UID.fullmatch(series_uid) else _sha256(identity)


def name_from_path(relative: str) -> str:
    """Names a result folder after a file: its relative path with / written as __."""
    name = relative.replace("/", "__")
    plain = _PLAIN_FILE_NAME.fullmatch(name) and name.strip(".") and len(_bytes(name)) <= 200
    return name if plain else _sha256(relative)


def with_unique_names(entries: list[Series]) -> list[Series]:
    """Appends -2, -3, ... to names that are taken; what can be read keeps the plain name."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    next_copy: dict[str, int] = {}
    for k in sorted(range(len(entries)), key=lambda k: RANK[entries[k].verdict]):
        name = entries[k].name
        copy = next_copy.get(name.casefold(), 2)
        while name.casefold() in taken:
            name, copy = f"{entries[k].name}-{copy}", copy + 1
            next_copy[entries[k].name.casefold()] = copy
        taken.add(name.casefold())
        names[k] = name
    return [replace(entry, name=names[k]) for k, entry in enumerate(entries)]


def one_line(error: BaseException, path: str, relative: str) -> str:
    """The message of a library's error as part of a reason: short, printable, no absolute path."""
    text = str(error).replace(path, relative).replace(os.path.dirname(path), "")
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())[:200] or type(error).__name__


def _sha256(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
