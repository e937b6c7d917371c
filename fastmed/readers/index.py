"""Index: what lies in a folder, one verdict for each series or image and each group of others.

for series in fastmed.index("scans/"):
    print(series.source, series.kind, series.verdict, series.reason)
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from fastmed.errors import SeriesError, UsageError
from fastmed.readers.series import Series, with_unique_names
from fastmed.readers.walk import Found, walk
from fastmed.volume import Volume

_NIFTI = (".nii", ".nii.gz")
_IMAGES = (".mha", ".mhd", ".nrrd", ".nhdr")
_PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
_ARRAYS = (".npy",)
_DICOM = (".dcm", ".dicom", ".ima")
_NAMED = 4  # files that a reason lists by name


def index(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    strict: bool = True,
    exclude: str | os.PathLike | Iterable[str | os.PathLike] = (),
    modality: str = "ct",
) -> list[Series]:
    """Finds every CT series and volume under `paths` and judges each, from headers alone.

    NIfTI, MetaImage, NRRD and NumPy files do not say what they hold, so that their voxels are read
    until they show it.

    paths: a file, a folder, or several of them.
    strict: refuse what is doubtful; False goes on where that is possible, with a warning.
    exclude: folders to leave out, such as an output folder inside the input.
    modality: "ct", or "grey" to find grey images (PNG, BMP, JPEG, TIFF, NumPy arrays [H, W]) and
        nothing else: a picture beside a CT is no scan, and a CT beside pictures no picture.

    Returns entries sorted by source: all that can be read has the verdict "ok"; "skipped" is no
    CT; "refused" and "failed" say why. Nothing that is wrong with one file stops the others.
    Raises UsageError where a path does not exist or a modality is unknown.
    """
    if modality not in _ENTRIES:
        raise UsageError(f"modality {modality!r}: expected {' or '.join(map(repr, _ENTRIES))}")
    entries: list[Series] = []
    others: list[Found] = []
    headers = []
    for found in walk(paths, exclude):
        lower = found.relative.lower()
        if found.problem:
            entries.append(_damaged(found, found.problem))
        elif found.file_bytes == 0:
            if _was_an_image(lower, modality):
                entries.append(_damaged(found, "an empty file (0 bytes); copy it again"))
            else:
                others.append(found)
        elif judge := _judge(lower, modality):
            entry = judge(found, strict, modality)
            (others if entry is None else entries).append(entry or found)
        elif modality == "ct":
            header = _dicom_header(found, entries, others)
            if header:
                headers.append(header)
        else:
            others.append(found)
    if headers:
        from fastmed.readers.dicom import series_of

        entries += series_of(headers, strict=strict)
    if others:
        entries.append(_not_images(others, modality))
    return with_unique_names(sorted(entries, key=lambda e: (e.source, e.kind, e.name)))


def read(path: str | os.PathLike, *, strict: bool = True, modality: str = "ct") -> list[Volume]:
    """Reads every CT volume in a file or folder, or every grey image.

    strict, modality: as in `index`. What is of another modality is left out.

    Raises SeriesError where there is no CT, or where any CT was refused or failed, so that a
    result is always everything there is; `index` and `read_series` take the good ones alone.
    """
    entries = index(path, strict=strict, modality=modality)
    bad = [entry for entry in entries if entry.verdict in ("refused", "failed")]
    if bad:
        more = f" (and {len(bad) - 1} more; fastmed index lists them)" if len(bad) > 1 else ""
        raise SeriesError(f"{bad[0].source}: {bad[0].reason}{more}")
    good = [entry for entry in entries if entry.verdict == "ok"]
    if not good:
        what = "; ".join(f"{entry.source}: {entry.reason}" for entry in entries[:3])
        wanted = _WANTED[modality]
        raise SeriesError(
            f"{path}: no {wanted} found" + (f" ({what})" if what else ", it is empty")
        )
    return [read_series(entry) for entry in good]


def read_series(series: Series) -> Volume:
    """Reads the voxels of an entry of `index` whose verdict is "ok".

    Raises SeriesError, one line that names the file and what to do.
    """
    if series.verdict != "ok":
        raise SeriesError(f"{series.source}: {series.reason}")
    try:
        return _reader(series.format)(series)
    except MemoryError as error:
        size = " x ".join(map(str, series.shape_zyx))
        raise SeriesError(f"{series.source}: not enough memory for {size} voxels") from error
    except OSError as error:
        raise SeriesError(f"{series.source}: {error.strerror or error}") from error


def _reader(format: str):
    if format == "dicom":
        from fastmed.readers.dicom_pixels import read_dicom

        return read_dicom
    if format == "nifti":
        from fastmed.readers.nifti import read_nifti

        return read_nifti
    if format == "picture":
        from fastmed.readers.picture import read_picture

        return read_picture
    if format == "array":
        from fastmed.readers.array import read_array

        return read_array
    from fastmed.readers.image import read_image

    return read_image


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
_WANTED = {"ct": "CT", "grey": "grey image"}


def _judge(lower: str, modality: str):
    if _is_apple_double(lower):
        return None
    for suffixes, judge in _ENTRIES[modality].items():
        if lower.endswith(suffixes):
            return judge
    return None


def _dicom_header(found: Found, entries: list[Series], others: list[Found]):
    from fastmed.readers.dicom_header import read_header

    try:
        header = read_header(found.path, found.relative, found.file_bytes)
    except OSError as error:
        entries.append(_damaged(found, error.strerror or str(error)))
        return None
    except ValueError as error:
        entries.append(_damaged(found, str(error)))
        return None
    if header is None and found.relative.lower().endswith(_DICOM):
        if _is_apple_double(found.relative):
            others.append(found)
        else:
            entries.append(
                _damaged(found, "named as a DICOM file, but it holds no DICOM; copy it again")
            )
    elif header is None:
        others.append(found)
    return header


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


def _damaged(found: Found, reason: str) -> Series:
    from fastmed.readers.series import name_from_path

    return Series(
        name=name_from_path(found.relative),
        source=found.relative,
        kind="damaged",
        verdict="failed",
        reason=reason,
    )


def _not_images(others: list[Found], modality: str) -> Series:
    listed = ", ".join(found.relative for found in others[:_NAMED])
    listed += ", ..." if len(others) > _NAMED else ""
    no = "no scan" if modality == "ct" else "no grey image"
    what = f"1 file that is {no}" if len(others) == 1 else f"{len(others)} files that are {no}"
    return Series(
        name="other-files",
        source=others[0].relative if len(others) == 1 else "other files",
        kind="not an image",
        verdict="skipped",
        reason=f"{what}: {listed}",
        files=len(others),
    )
