"""Cut archives: what was read of one before it broke off may lack a part, and is doubted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastmed.readers.dicom_notes import in_order
from fastmed.readers.series import Series

_STATES = {
    "truncated": "is truncated",
    "damaged": "is damaged",
    "too large": "was left at a limit",
}


def doubt_what_was_cut(entry: Series, cut: Mapping[str, str], strict: bool) -> Series:
    """An entry of an index as it is where archives of its members could not be read to their end.

    cut: the condition of each such archive, by its path.
    strict: refuse what is all right but for that; False warns of it.
    """
    found = {cut[member.path] for member in entry.members if member.member and member.path in cut}
    if not found or entry.verdict not in ("ok", "refused"):
        return entry
    entry = replace(entry, conditions=in_order([*entry.conditions, *found]))
    if entry.verdict == "refused":
        return entry
    lost = "slices" if entry.format == "dicom" else "files that belong to it"
    state = " and ".join(_STATES.get(condition, _STATES["damaged"]) for condition in sorted(found))
    doubt = f"its archive {state}: {lost} may be missing"
    if not strict:
        return replace(entry, warnings=(*entry.warnings, doubt))
    reason = f"{doubt}; --lenient takes what is there"
    return replace(entry, verdict="refused", reason=reason, warnings=(), geometry=None, stored=None)
