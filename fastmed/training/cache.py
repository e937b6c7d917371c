"""Cache: decoded cases on disk, shared by runs and processes, bounded in size."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch

from fastmed.cache_folder import cache_folder
from fastmed.errors import FastmedError
from fastmed.geometry import Geometry
from fastmed.spec import Spec
from fastmed.training.cases import Case
from fastmed.training.stored_case import Crop, StoredCase, prepare

FORMAT = 2
_ENTRY = "entry.json"
_DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file\s*:)([^\r\n]*)", re.M | re.I)
_HEADER_BYTES = 1 << 16
_STALE_SECONDS = 3600.0  # a temporary folder this old was left behind by a killed process


class CacheWarning(UserWarning):
    """The run goes on, but slower at its next start: something could not be cached."""


class Cache:
    """A folder of decoded cases, each an entry of raw .npy files and a JSON file.

    folder: made where it is absent. limit_bytes: of all entries together; where a new one would
    exceed it, the entries that were used least recently go. An entry that goes while a process
    maps it keeps working there. 0 caches nothing.

    An entry is found by the content of the image and the label file (or by the boxes) and by what
    of the spec matters, so that a file that changes, or a spec that does, never meets an old entry.
    Entries appear whole, by one rename, and are checked when opened: a damaged one is made again.
    Where the disk refuses, or one run's cases exceed the limit, the case stays in memory and a
    CacheWarning says so.
    """

    def __init__(self, folder: str | Path, *, limit_bytes: int) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes
        self._used: set[str] = set()
        self._has_warned = False
        self._remove_stale()

    @staticmethod
    def default_folder() -> Path:
        """FASTMED_CACHE, else the user's cache folder."""
        return cache_folder("training")

    def stored(
        self, case: Case, spec: Spec, values: Mapping[str, tuple[int, ...]], crop: Crop = "scan"
    ) -> StoredCase:
        """The case from the cache, put there first where it is not; crop as in `prepare`.

        Raises DataError where the case cannot be used.
        """
        crop = tuple(crop) if isinstance(crop, list | tuple) else crop
        if self.limit_bytes == 0:
            return prepare(case, spec, values, crop)
        key = self._key(case, spec, values, crop)
        place = self.folder / key
        found = _open_or_remove(place, case)
        if found is None:
            made = prepare(case, spec, values, crop)
            found = self._keep(made, place, case)
        self._used.add(key)
        return found

    def _keep(self, made: StoredCase, place: Path, case: Case) -> StoredCase:
        """Writes an entry and opens it; the case itself where that cannot be."""
        arrays = {"voxels": made.voxels, "labels": made.labels, "points": made.points}
        arrays["boxes"] = made.boxes
        arrays = {name: array for name, array in arrays.items() if array is not None}
        needed = sum(array.nbytes for array in arrays.values())
        if not self._make_room(needed):
            self._warn(
                f"cache {self.folder}: its limit of {self.limit_bytes / 1e9:g} GB does not hold "
                "the cases of this run; the rest stays in memory. Raise loop.cache_gb"
            )
            return made
        temporary = self.folder / f".{place.name[:16]}.{secrets.token_hex(6)}.tmp"
        try:
            temporary.mkdir(parents=True)
            _write_entry(temporary, made, arrays)
            _rename(temporary, place, case)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            self._warn(
                f"cache {self.folder}: cannot be written, {reason}; the run goes on without it. "
                "Free some space or name another folder in FASTMED_CACHE"
            )
            return made
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _open_or_remove(place, case) or made

    def _make_room(self, needed: int) -> bool:
        entries = []
        for path in self.folder.glob("*/" + _ENTRY):
            try:
                size = sum(file.stat().st_size for file in path.parent.iterdir())
                entries.append((path.stat().st_mtime_ns, size, path.parent))
            except OSError:
                continue  # another process removed it
        total = sum(size for _, size, _ in entries) + needed
        for _, size, place in sorted(entries):
            if total <= self.limit_bytes:
                break
            if place.name not in self._used:
                _remove(place)
                total -= size
        return total <= self.limit_bytes

    def _warn(self, message: str) -> None:
        if not self._has_warned:
            warnings.warn(message, CacheWarning, stacklevel=4)
        self._has_warned = True

    def _remove_stale(self) -> None:
        for path in self.folder.glob(".*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:
                continue

    def _key(self, case: Case, spec: Spec, values, crop: Crop) -> str:
        text = json.dumps(
            {
                "format": FORMAT,
                "image": self._content(case.image),
                "label": None if case.label is None else self._content(case.label),
                "boxes": None if case.boxes is None else [astuple(box) for box in case.boxes],
                "slices": case.slices,
                "values": {name: list(stored) for name, stored in values.items()},
                "labels": [(label.name, label.value, label.grey) for label in spec.labels],
                "grid": (spec.modality, spec.region, spec.axes, spec.spacing_mm_zyx, spec.size_zyx),
                "slice_by_slice": spec.task == "detection" and spec.dimensions == 2,
                "outside_hu": spec.outside_hu,
                "tile": spec.tile_zyx,
                "crop": crop,
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self, path: Path) -> str:
        """SHA-256 of a file's bytes, or of all files of a folder or of one header's companions.

        It is remembered by the files' paths, sizes and times of change, so that a second start
        does not read them again.
        """
        files = _files_of(path)
        seen = []
        for file in files:
            status = file.stat()
            seen.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
        memo = self.folder / "content" / hashlib.sha256(json.dumps(seen).encode()).hexdigest()
        try:
            known = memo.read_text("ascii")
            if len(known) == 64:
                return known
        except (OSError, ValueError):
            pass
        digest = hashlib.sha256()
        for file in files:
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        self._remember(memo, digest.hexdigest())
        return digest.hexdigest()

    def _remember(self, memo: Path, digest: str) -> None:
        from fastmed.writers.atomic import write_atomically

        try:
            write_atomically(memo, [digest.encode()])
        except FastmedError as error:
            self._warn(f"cache: {error}; the run goes on without it")


def _files_of(path: Path) -> list[Path]:
    """The files that hold an image: one, a folder of DICOM, or a header and its voxels."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.suffix.lower() not in (".mhd", ".nhdr"):
        return [path]
    with open(path, "rb") as file:
        named = _DATA_FILE.search(file.read(_HEADER_BYTES))
    name = os.fsdecode(named[1].strip()) if named else ""
    if name == "LOCAL":
        return [path]
    if name and (path.parent / name).is_file():
        return [path, path.parent / name]
    # A list or a pattern of files: any file beside the header may be one of them.
    return sorted(file for file in path.parent.iterdir() if file.is_file())


def _write_entry(folder: Path, made: StoredCase, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        with open(folder / f"{name}.npy", "xb") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)
    table = {
        "format": FORMAT,
        "bytes": {name: (folder / f"{name}.npy").stat().st_size for name in arrays},
        "affine": made.geometry.affine.tolist(),
        "slope": made.slope,
        "intercept": made.intercept,
        "grid_shape": list(made.grid.shape_zyx),
        "grid_affine": made.grid.affine.tolist(),
        "matrix": made.matrix.tolist(),
        "fill": made.fill,
        "spacing_is_known": made.spacing_is_known,
        "slices": list(made.slices),
        "region": [list(bounds) for bounds in made.region],
    }
    text = json.dumps(table, sort_keys=True)
    signed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "entry": table}
    (folder / _ENTRY).write_text(json.dumps(signed), "utf-8")


def open_entry(place: Path, case: Case) -> StoredCase:
    """Maps an entry of the cache.

    Raises OSError where it is absent, ValueError or KeyError where it is damaged.
    """
    signed = json.loads((place / _ENTRY).read_text("utf-8"))
    table = signed["entry"]
    text = json.dumps(table, sort_keys=True)
    if hashlib.sha256(text.encode()).hexdigest() != signed["sha256"] or table["format"] != FORMAT:
        raise ValueError(f"{place}: its {_ENTRY} is damaged")
    arrays = {}
    for name, size in table["bytes"].items():
        path = place / f"{name}.npy"
        if path.stat().st_size != size:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, expected {size}")
        arrays[name] = _mapped(path, size)
    return StoredCase(
        case=case,
        voxels=arrays["voxels"],
        labels=arrays.get("labels"),
        geometry=Geometry(arrays["voxels"].shape, np.array(table["affine"])),
        slope=table["slope"],
        intercept=table["intercept"],
        grid=Geometry(tuple(table["grid_shape"]), np.array(table["grid_affine"])),
        matrix=np.array(table["matrix"]),
        fill=table["fill"],
        region=tuple(tuple(bounds) for bounds in table["region"]),
        points=arrays["points"],
        boxes=arrays.get("boxes"),
        slices=tuple(table["slices"]),
        spacing_is_known=table["spacing_is_known"],
        folder=place,
    )


def _mapped(path: Path, size: int) -> np.ndarray:
    """A .npy file's array, mapped copy on write: torch wants it writable, the file stays as it is.

    torch's mapping closes the file, NumPy's keeps a descriptor for each: 500 cases are enough to
    run out of the usual 1,024.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        first = file.tell()
    if fortran or size != first + dtype.itemsize * math.prod(shape):
        raise ValueError(f"{path}: its header does not fit its size")
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    return content[first:].view(dtype).reshape(shape)


def _open_or_remove(place: Path, case: Case) -> StoredCase | None:
    """The entry, marked as just used; None where there is none, or none that is whole."""
    try:
        found = open_entry(place, case)
    except FileNotFoundError:
        if place.is_dir():
            _remove(place)
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        _remove(place)
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read still serves
        os.utime(place / _ENTRY)
    return found


def _rename(temporary: Path, place: Path, case: Case) -> None:
    try:
        os.rename(temporary, place)
    except OSError as error:
        # Another process was first, with the same content.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _remove(place: Path) -> None:
    """Takes an entry away at once, then deletes it: no process ever opens half of it."""
    doomed = place.with_name(f".{place.name[:16]}.{secrets.token_hex(6)}.tmp")
    try:
        os.rename(place, doomed)
    except OSError:
        return  # another process did
    shutil.rmtree(doomed, ignore_errors=True)
