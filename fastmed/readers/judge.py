"""Judge: from files to entries of an index, one for each series or image and each group of others.

A file is looked at once, which gives its `Fact`; facts that belong together are judged together.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from fastmed.errors import UsageError
from fastmed.readers.series import Series, name_from_path, with_unique_names
from fastmed.readers.walk import Found

if TYPE_CHECKING:
    from fastmed.readers.dicom_header import Header

DICOM, FILE, DAMAGED, OTHER = "dicom", "file", "damaged", "other"

_NIFTI = (".nii", ".nii.gz")
_IMAGES = (".mha", ".mhd", ".nrrd", ".nhdr")
_PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
_ARRAYS = (".npy",)
_DICOM = (".dcm", ".dicom", ".ima")
NAMED = 4  # files that a reason lists by name
_BATCH = 256  # files whose headers are read in one go


@dataclass(frozen=True, slots=True)
class Fact:
    """What one file is, found by looking at it alone.

    sort: DICOM (with its header), FILE (an image that is judged by itself), DAMAGED (with the
        reason, and a condition of `series.CONDITIONS`) or OTHER.
    passing: whether the next look may find something else though the file is the same, as after
        an error of the disk.
    """

    found: Found
    sort: str
    header: Header | None = None
    reason: str = ""
    condition: str = "damaged"
    passing: bool = False


def judge(founds: Iterable[Found], *, strict: bool = True, modality: str = "ct") -> list[Series]:
    """Judges files, in any order; the entries are those of `index`, sorted by source.

    Raises UsageError where the modality is unknown.
    """
    check_modality(modality)
    entries: list[tuple[tuple, Series]] = []
    others: list[Found] = []
    groups: dict[tuple, list[Fact]] = defaultdict(list)
    for fact in facts_of(founds, modality):
        if fact.sort == DICOM:
            groups[group_of(fact)].append(fact)
        elif entry := entry_of(fact, strict, modality):
            entries.append((first_of([fact]), entry))
        else:
            others.append(fact.found)
    for group in groups.values():
        entries += ((first_of(group), entry) for entry in entries_of(group, strict))
    if others:
        others.sort(key=lambda found: (found.relative, found.place))
        entries.append((("", ""), not_images(others[:NAMED], len(others), modality)))
    entries.sort(key=lambda e: (e[1].source, e[1].kind, e[1].name, e[0]))
    return with_unique_names([entry for _, entry in entries])


def check_modality(modality: str) -> None:
    """Raises UsageError where there is no index of such scans."""
    if modality not in _ENTRIES:
        raise UsageError(f"modality {modality!r}: expected {' or '.join(map(repr, _ENTRIES))}")


def facts_of(founds: Iterable[Found], modality: str) -> Iterator[Fact]:
    """Looks at files, batch by batch; yields one fact for each, in no order to rely on."""
    founds = iter(founds)
    while batch := list(islice(founds, _BATCH)):
        perhaps_dicom = []
        for found in batch:
            lower = found.relative.lower()
            if found.problem:
                yield Fact(found, DAMAGED, reason=found.problem, passing=True)
            elif found.file_bytes == 0 and _was_an_image(lower, modality):
                reason = "an empty file (0 bytes); copy it again"
                yield Fact(found, DAMAGED, reason=reason, condition="truncated")
            elif found.file_bytes and _judge(lower, modality):
                yield Fact(found, FILE)
            elif found.file_bytes and modality == "ct":
                perhaps_dicom.append(found)
            else:
                yield Fact(found, OTHER)
        for found, header in zip(perhaps_dicom, _read_headers(perhaps_dicom), strict=True):
            yield _fact(found, header)


def group_of(fact: Fact) -> tuple[str, ...]:
    """What the DICOM files that are judged together have in common."""
    from fastmed.readers.dicom import group_key

    return group_key(fact.header)


def first_of(group: list[Fact]) -> tuple[str, str]:
    """By which groups that are named alike are put in order: the first of their files."""
    return min((fact.found.relative, fact.found.place) for fact in group)


def entries_of(group: list[Fact], strict: bool) -> list[Series]:
    """Judges the DICOM files of one group; an error of the disk fails the group, nothing else."""
    from fastmed.readers.dicom import judge_group

    founds = {fact.header.path: fact.found for fact in group}
    try:
        entries = judge_group([fact.header for fact in group], strict=strict)
    except OSError as error:
        first = min(founds.values(), key=lambda found: (found.relative, found.place))
        reason = error.strerror or str(error)
        entry = _damaged(first, reason, "damaged")
        return [replace(entry, files=len(group), members=tuple(founds.values()))]
    return [
        replace(entry, members=tuple(founds[member.path] for member in entry.members))
        for entry in entries
    ]


def entry_of(fact: Fact, strict: bool, modality: str) -> Series | None:
    """Judges a file that stands for itself; None where it is no scan."""
    if fact.sort == DAMAGED:
        return _damaged(fact.found, fact.reason, fact.condition)
    judged = _judge(fact.found.relative.lower(), modality) if fact.sort == FILE else None
    entry = judged(fact.found, strict, modality) if judged else None
    return entry and replace(entry, members=(fact.found,))


def not_images(first: list[Found], count: int, modality: str) -> Series:
    """The entry of all files that are no scan, of which it names the first."""
    listed = ", ".join(found.relative for found in first)
    listed += ", ..." if count > len(first) else ""
    no = "no scan" if modality == "ct" else "no grey image"
    what = f"1 file that is {no}" if count == 1 else f"{count} files that are {no}"
    return Series(
        name="other-files",
        source=first[0].relative if count == 1 else "other files",
        kind="not an image",
        verdict="skipped",
        reason=f"{what}: {listed}",
        files=count,
        conditions=("not dicom",) if modality == "ct" else (),
    )


def _read_headers(founds: list[Found]) -> list[Header | Exception | None]:
    """Reads the headers of some hundred files; None where a file is no DICOM."""
    from fastmed.readers.dicom_header import read_header

    headers: list[Header | Exception | None] = []
    for found in founds:
        try:
            headers.append(read_header(found.path, found.relative, found.file_bytes))
        except (OSError, ValueError) as error:
            headers.append(error)
    return headers


def _fact(found: Found, header: Header | Exception | None) -> Fact:
    if isinstance(header, OSError):
        return Fact(found, DAMAGED, reason=header.strerror or str(header), passing=True)
    if isinstance(header, Exception):
        return Fact(found, DAMAGED, reason=str(header))
    if header is not None:
        return Fact(found, DICOM, header)
    if envelope := _envelope(found):
        reason = f"it is encrypted ({envelope}); have whoever holds the key decrypt it"
        return Fact(found, DAMAGED, reason=reason, condition="encrypted")
    if found.relative.lower().endswith(_DICOM) and not _is_apple_double(found.relative):
        reason = "named as a DICOM file, but it holds no DICOM; copy it again"
        return Fact(found, DAMAGED, reason=reason, condition="not dicom")
    return Fact(found, OTHER)


def _envelope(found: Found) -> str:
    """As what a file that is named as a scan is encrypted; "" else."""
    from fastmed.readers.dicom_encryption import bare_name, envelope_of

    named = _was_an_image(bare_name(found.relative.lower()), "ct")
    try:
        return envelope_of(found.path) if named else ""
    except OSError:
        return ""


def _nifti(found: Found, strict: bool, modality: str) -> Series:
    from fastmed.readers.nifti import nifti_entry

    return nifti_entry(found)


def _image(found: Found, strict: bool, modality: str) -> Series:
    from fastmed.readers.image import image_entry

    return image_entry(found, strict=strict)


def _picture(found: Found, strict: bool, modality: str) -> Series:
    from fastmed.readers.picture import picture_entry

    return picture_entry(found)


def _array(found: Found, strict: bool, modality: str) -> Series | None:
    from fastmed.readers.array import array_entry

    return array_entry(found, modality=modality)


# Who judges a file by the end of its name; in an index of CT, the rest may be DICOM.
_ENTRIES = {
    "ct": {_NIFTI: _nifti, _IMAGES: _image, _ARRAYS: _array},
    "grey": {_PICTURES: _picture, _ARRAYS: _array},
}


def _judge(lower: str, modality: str):
    if _is_apple_double(lower):
        return None
    for suffixes, judge in _ENTRIES[modality].items():
        if lower.endswith(suffixes):
            return judge
    return None


def has_companion(relative: str) -> bool:
    """Whether another file beside this one may say what is in it."""
    return relative.lower().endswith((*_IMAGES, *_ARRAYS))


def _is_apple_double(relative: str) -> bool:
    """Whether macOS put this file beside another one to hold its attributes."""
    return os.path.basename(relative).startswith("._")


def _was_an_image(lower: str, modality: str) -> bool:
    """Whether an empty file once held an image, as far as its name tells."""
    name = os.path.basename(lower)
    extension = os.path.splitext(name)[1].strip(".")
    if name.endswith(tuple(end for ends in _ENTRIES[modality] for end in ends)):
        return True
    is_dicom = name.endswith(_DICOM) or (not name.startswith(".") and not extension.isalpha())
    return modality == "ct" and is_dicom


def _damaged(found: Found, reason: str, condition: str) -> Series:
    return Series(
        name=name_from_path(found.relative),
        source=found.relative,
        kind="damaged",
        verdict="failed",
        reason=reason,
        conditions=(condition,),
        members=(found,),
    )
