"""Index: what lies in a folder, one verdict for each series or image and each group of others.

for series in fastmed.index("scans/"):
    print(series.source, series.kind, series.verdict, series.reason)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import numpy as np

from fastmed.errors import SeriesError
from fastmed.readers.index_store import IndexStore, temporary_store
from fastmed.readers.index_stream import stream
from fastmed.readers.judge import check_modality, judge
from fastmed.readers.reread import opened
from fastmed.readers.series import Series
from fastmed.readers.walk import listings, walk
from fastmed.volume import Volume

Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]

_WANTED = {"ct": "CT", "grey": "grey image"}


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
    return judge(walk(paths, exclude), strict=strict, modality=modality)


def iter_index(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    strict: bool = True,
    exclude: str | os.PathLike | Iterable[str | os.PathLike] = (),
    modality: str = "ct",
    store: IndexStore | None = None,
) -> Iterator[Series]:
    """Yields the entries of `index`, in its order, in memory that the archive's size leaves alone.

    Their files are read again when they are opened: `read_series` refuses what has changed since.

    store: of `open_store`; what it knows is not read again, and its counts say what was. None: all
        is read, and nothing kept.
    """
    check_modality(modality)
    with nullcontext(store) if store else temporary_store() as store:
        folders = listings(paths, exclude)
        yield from stream(folders, store, strict=strict, modality=modality)


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


def read_series(series: Series, *, allocate: Allocate = np.empty) -> Volume:
    """Reads the voxels of an entry of `index` whose verdict is "ok".

    allocate: makes the array of the voxels of a DICOM series from its shape and dtype; for one who
        wants them in memory of some kind, such as pinned.

    Raises SeriesError, one line that names the file and what to do.
    """
    if series.verdict != "ok":
        raise SeriesError(f"{series.source}: {series.reason}")
    try:
        with opened(series) as entry:
            if entry.format == "dicom":
                from fastmed.readers.dicom_pixels import read_dicom

                return read_dicom(entry, allocate=allocate)
            return _reader(entry.format)(entry)
    except MemoryError as error:
        size = " x ".join(map(str, series.shape_zyx))
        raise SeriesError(f"{series.source}: not enough memory for {size} voxels") from error
    except OSError as error:
        raise SeriesError(f"{series.source}: {error.strerror or error}") from error


def _reader(format: str):
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
