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

from fastmed.errors import SeriesError, UsageError
from fastmed.readers.companions import ARRAYS, IMAGES, companions, is_read_from_elsewhere
from fastmed.readers.packed import batches, is_packed, unpacked
from fastmed.readers.packed_cut import doubt_what_was_cut
from fastmed.readers.series import Series, name_from_path, with_unique_names
from fastmed.readers.walk import Found

if TYPE_CHECKING:
    from fastmed.readers.dicom_header import Header

DICOM, FILE, DAMAGED, OTHER, PACKED = "dicom", "file", "damaged", "other", "packed"

_NIFTI = (".nii", ".nii.gz")
_PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
_DICOM = (".dcm", ".dicom", ".ima")
NAMED = 4  # files that a reason lists by name
_BATCH = 256  # files whose headers are read in one go
_BATCH_BYTES = 256 << 20  # that are unpacked for it


@dataclass(frozen=True, slots=True)
class Fact:
    """What one file is, found by looking at it alone.

    sort: DICOM (with its header), FILE (an image that is judged by itself), DAMAGED (with the
        reason, and a condition of `series.CONDITIONS`), OTHER, or PACKED, an archive whose members
        have facts of their own.
    passing: whether the next look may find something else though the file is the same, as after
        an error of the disk, or where it names another file for its voxels.
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
    return judge_facts(facts_of(founds, modality), strict=strict, modality=modality)


def judge_facts(facts: Iterable[Fact], *, strict: bool, modality: str) -> list[Series]:
    """Judges what is known of files, as `judge` does."""
    entries: list[tuple[tuple, Series]] = []
    others: list[Found] = []
    groups: dict[tuple, list[Fact]] = defaultdict(list)
    cut: dict[str, str] = {}
    for fact in facts:
        if is_cut_archive(fact):
            cut[fact.found.path] = fact.condition
        if fact.sort == DICOM:
            groups[group_of(fact)].append(fact)
        elif fact.sort == PACKED:
            continue
        elif entry := entry_of(fact, strict, modality):
            entries.append((first_of([fact]), entry))
        else:
            others.append(fact.found)
    for group in groups.values():
        entries += ((first_of(group), entry) for entry in entries_of(group, strict))
    if others:
        others.sort(key=lambda found: (found.relative, found.place))
        entries.append((("", ""), not_images(others[:NAMED], len(others), modality)))
    entries = [(first, doubt_what_was_cut(entry, cut, strict)) for first, entry in entries]
    entries.sort(key=lambda e: (e[1].source, e[1].kind, e[1].name, e[0]))
    return with_unique_names([entry for _, entry in entries])


def check_modality(modality: str) -> None:
    """Raises UsageError where there is no index of such scans."""
    if modality not in _ENTRIES:
        raise UsageError(f"modality {modality!r}: expected {' or '.join(map(repr, _ENTRIES))}")


def facts_of(founds: Iterable[Found], modality: str) -> Iterator[Fact]:
    """Looks at files, batch by batch; yields one fact for each, in no order to rely on.

    A packed archive brings the facts of its members, and one of its own.
    """
    founds = iter(founds)
    while batch := list(islice(founds, _BATCH)):
        yield from _facts([(f, f) for f in batch if not is_opened(f)], modality)
        for archive in filter(is_opened, batch):
            yield from _facts_in(archive, modality)


def is_opened(found: Found) -> bool:
    """Whether a file is a packed archive, whose members are looked at in its place."""
    is_whole = found.file_bytes and not found.problem and not found.member
    return bool(is_whole) and is_packed(found.relative)


def is_cut_archive(fact: Fact) -> bool:
    """Whether a fact says that a packed archive could not be read, or not to its end."""
    found = fact.found
    return fact.sort == DAMAGED and not found.member and is_packed(found.relative)


def _facts_in(archive: Found, modality: str) -> Iterator[Fact]:
    """The facts of the members of an archive, in one pass over it."""
    own = Fact(archive, OTHER)

    def is_perhaps_dicom(found: Found) -> bool:
        return _sort(found, modality) == DICOM

    try:
        for batch in batches(archive, is_perhaps_dicom, _BATCH, _BATCH_BYTES):
            for fact in _facts(batch, modality):
                if fact.found.member:
                    own = Fact(archive, PACKED) if own.sort == OTHER else own
                    yield fact
                else:
                    own = fact
    except OSError as error:
        own = Fact(archive, DAMAGED, reason=error.strerror or str(error), passing=True)
    yield own


def _facts(batch: list[tuple[Found, Found | None]], modality: str) -> Iterator[Fact]:
    """Facts of files, each with where it can be opened: itself, or unpacked."""
    perhaps_dicom = []
    for found, there in batch:
        sort = _sort(found, modality)
        if sort == DICOM and there is not None:
            perhaps_dicom.append((found, there))
        elif found.problem:
            condition, passing = found.condition or "damaged", not found.mtime_ns
            yield Fact(found, DAMAGED, None, found.problem, condition, passing)
        elif sort == DAMAGED:
            reason = "an empty file (0 bytes); copy it again"
            yield Fact(found, DAMAGED, reason=reason, condition="truncated")
        else:
            elsewhere = there is not None and is_read_from_elsewhere(there, modality)
            yield Fact(found, sort, passing=elsewhere)
    if perhaps_dicom:
        from fastmed.readers.dicom_header import read_headers

        headers = read_headers([there for _, there in perhaps_dicom])
        for (found, there), header in zip(perhaps_dicom, headers, strict=True):
            yield _fact(found, there, header)


def _sort(found: Found, modality: str) -> str:
    """What a file is as far as its name and size tell; DICOM where only its bytes can."""
    lower = found.relative.lower()
    if found.problem:
        return DAMAGED
    if found.file_bytes == 0:
        return DAMAGED if _was_an_image(lower, modality) else OTHER
    if _judge(lower, modality):
        return FILE
    return DICOM if modality == "ct" else OTHER


def group_of(fact: Fact) -> tuple[str, ...]:
    """What the DICOM files that are judged together have in common."""
    from fastmed.readers.dicom import group_key

    return group_key(fact.header)


def first_of(group: list[Fact]) -> tuple[str, str]:
    """By which groups that are named alike are put in order: the first of their files."""
    return min((fact.found.relative, fact.found.place) for fact in group)


def entries_of(group: list[Fact], strict: bool) -> list[Series]:
    """Judges the DICOM files of one group; an error fails the group, nothing else."""
    headers = [fact.header for fact in group]
    founds = [fact.found for fact in group]
    try:
        if not any(found.member for found in founds):
            return _judged(headers, founds, strict)
        try:
            entries = _judged(headers, founds, strict)
        except OSError:
            entries = []
        if entries and all(map(_rests_on_headers, entries)):
            return entries
        with unpacked(founds) as there:
            moved = [replace(h, path=t.path) for h, t in zip(headers, there, strict=True)]
            return _judged(moved, founds, strict)
    except ImportError:  # a broken installation is no damaged file
        raise
    except Exception as error:  # what is wrong with one series stops no other
        first = min(founds, key=lambda found: (found.relative, found.place))
        entry = _damaged(first, _why(error), "damaged")
        return [replace(entry, files=len(group), members=tuple(founds))]


def _judged(headers: list[Header], founds: list[Found], strict: bool) -> list[Series]:
    """Judges headers, each of the file beside it."""
    from fastmed.readers.dicom import judge_group

    of_path = {header.path: found for header, found in zip(headers, founds, strict=True)}
    packed = any(found.member for found in founds)
    return [
        replace(
            entry,
            members=tuple(of_path[member.path] for member in entry.members),
            stored=None if packed else entry.stored,
        )
        for entry in judge_group(headers, strict=strict)
    ]


def _rests_on_headers(entry: Series) -> bool:
    """Whether nobody has asked for more of the files than their headers, as copies or doubts do."""
    is_plain = entry.verdict == "ok" and not entry.warnings
    return (is_plain or entry.verdict == "skipped") and "enhanced multi-frame" not in (
        entry.conditions
    )


def entry_of(fact: Fact, strict: bool, modality: str) -> Series | None:
    """Judges a file that stands for itself; None where it is no scan."""
    if fact.sort == DAMAGED:
        return _damaged(fact.found, fact.reason, fact.condition)
    judged = _judge(fact.found.relative.lower(), modality) if fact.sort == FILE else None
    if judged is None:
        return None
    try:
        with unpacked([fact.found]) as (there,):
            beside = companions(there, modality)
            if fact.found.member:
                _check_inside(there, beside)
            entry = judged(there, strict, modality)
    except ImportError:  # a broken installation is no damaged file
        raise
    except Exception as error:  # what is wrong with one file stops no other
        return _damaged(fact.found, _why(error), "damaged")
    if entry is None:
        return None
    stored = None if fact.found.member else entry.stored
    beside = [_as_member(other, fact.found) for other in beside] if fact.found.member else beside
    return replace(entry, members=(fact.found, *beside), stored=stored)


def _check_inside(there: Found, beside: list[Found]) -> None:
    """Raises SeriesError where a member of an archive names files that are none of its."""
    folder = os.path.dirname(there.path)
    if any(os.path.dirname(other.path) != folder for other in beside):
        raise SeriesError("it names a file outside of its archive for its voxels; it is not read")


def _why(error: Exception) -> str:
    """What an entry says of an error: its words where they are for people, else its kind alone."""
    if isinstance(error, OSError | SeriesError):
        return getattr(error, "strerror", None) or str(error)
    return f"it cannot be judged (an unexpected {type(error).__name__}); please report this"


def _as_member(beside: Found, packed: Found) -> Found:
    """A file that lies unpacked beside a packed one, as the member of the archive that it is."""
    folder = packed.member[: packed.member.rfind("/") + 1]
    name = folder + os.path.basename(beside.path)
    return replace(packed, relative=beside.relative, file_bytes=beside.file_bytes, member=name)


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


def _fact(found: Found, there: Found, header: Header | Exception | None) -> Fact:
    if isinstance(header, OSError):
        return Fact(found, DAMAGED, reason=header.strerror or str(header), passing=True)
    if isinstance(header, Exception):
        from fastmed.readers.dicom_header import TooLarge

        condition = "too large" if isinstance(header, TooLarge) else "damaged"
        return Fact(found, DAMAGED, reason=str(header), condition=condition)
    if header is not None:
        return Fact(found, DICOM, replace(header, path=found.place) if found.member else header)
    if envelope := _envelope(there):
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
    "ct": {_NIFTI: _nifti, IMAGES: _image, ARRAYS: _array},
    "grey": {_PICTURES: _picture, ARRAYS: _array},
}


def _judge(lower: str, modality: str):
    if _is_apple_double(lower):
        return None
    for suffixes, judge in _ENTRIES[modality].items():
        if lower.endswith(suffixes):
            return judge
    return None


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
