"""Files: scans in other containers, and what lies in archives without being a scan."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastmed.phantom_archive.case import Case
from fastmed.phantom_archive.damages import envelope
from fastmed.phantom_archive.editing import cut_short
from fastmed.phantom_archive.truth import Expected

_INSIDE = "export"  # the folder that packed files lie in
_LONG_AGO = (2000, 1, 1, 0, 0, 0)


def zipped(case: Case) -> list[Expected]:
    scan = case.scan()
    paths = case.write(scan)
    _zip(case)
    return [_packed(case, ".zip", len(paths), scan.liver_ml)]


def tarred(ending: str) -> Callable[[Case], list[Expected]]:
    """Makes the way that packs a series into a .tar or a .tar.gz."""

    def way(case: Case) -> list[Expected]:
        scan = case.scan()
        paths = case.write(scan)
        content = _tar(case, paths)
        if ending == ".tar.gz":
            content = gzip.compress(content, 1, mtime=0)
        _beside(case, ending).write_bytes(content)
        return [_packed(case, ending, len(paths), scan.liver_ml)]

    return way


def cut_tar(case: Case) -> list[Expected]:
    """A tar that ends amid a slice: what came before is there, and the rest of its series is not.

    That its series goes on behind the cut cannot be known; strict takes no part for the whole.
    """
    paths = case.write(case.scan())
    whole = len(paths) * 2 // 3
    blocks = [512 + -(-path.stat().st_size // 512) * 512 for path in paths]
    content = _tar(case, paths)
    _beside(case, ".tar").write_bytes(content[: sum(blocks[:whole]) + blocks[whole] // 2])
    cut = f"{_INSIDE}/{paths[whole].name}"
    return [
        case.row("damaged", "truncated", "failed", ending=".tar"),
        case.row("damaged", "damaged", "failed", source=cut, ending=".tar"),
        case.row(
            *("ct", "uniform; truncated", "refused", "ok"),
            source=_INSIDE,
            ending=".tar",
            files=whole,
        ),
    ]


def encrypted_zip(case: Case) -> list[Expected]:
    """A zip whose entries carry the mark of encryption, and content that only a key opens."""
    paths = case.write(case.scan())
    for path in paths[3:]:
        path.unlink()
    path = _zip(case)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            start = entry.header_offset
            name, extra = (
                int.from_bytes(content[start + k : start + k + 2], "little") for k in (26, 28)
            )
            first = start + 30 + name + extra
            content[first : first + entry.compress_size] = case.rng.bytes(entry.compress_size)
            content[start + 6] |= 1
    place = content.find(b"PK\1\2")
    while place >= 0:
        content[place + 8] |= 1
        place = content.find(b"PK\1\2", place + 4)
    path.write_bytes(content)
    names = [f"{_INSIDE}/{path.name}" for path in paths[:3]]
    outcome = ("damaged", "encrypted", "failed")
    return [case.row(*outcome, source=name, ending=".zip") for name in names]


def cut_zip(case: Case) -> list[Expected]:
    """A zip without its end, where its list of files stands."""
    case.write(case.scan())
    path = _zip(case)
    cut_short(path, 0.6)
    return [case.row("damaged", "truncated", "failed", ending=".zip")]


def nifti(ending: str) -> Callable[[Case], list[Expected]]:
    """Makes the way that writes a scan as .nii or .nii.gz."""

    def way(case: Case) -> list[Expected]:
        scan = case.scan()
        hu = scan.volume.voxels - np.int16(1024)
        _write_nifti(case, hu, scan.volume.geometry.to_ras_xyz(), ending)
        return [case.row("ct", "uniform", "ok", liver_ml=scan.liver_ml, ending=ending)]

    return way


def metaimage(case: Case) -> list[Expected]:
    import SimpleITK as sitk

    scan = case.scan()
    image = sitk.GetImageFromArray(scan.volume.voxels - np.int16(1024))
    image.SetSpacing(scan.volume.geometry.spacing_mm_zyx[::-1])
    image.SetOrigin(scan.volume.geometry.origin_lps_mm.tolist())
    path = _beside(case, ".mha")
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return [case.row("ct", "uniform", "ok", liver_ml=scan.liver_ml, ending=".mha")]


def cut_nifti(case: Case) -> list[Expected]:
    """A .nii.gz without its end, though whether it was a CT shows before that."""
    scan = case.scan()
    hu = scan.volume.voxels - np.int16(1024)
    path = _write_nifti(case, hu, scan.volume.geometry.to_ras_xyz(), ".nii.gz")
    cut_short(path, 0.5)
    return [case.row("damaged", "truncated", "failed", ending=".nii.gz")]


def nifti_label_map(case: Case) -> list[Expected]:
    scan = case.scan()
    labels = (scan.volume.voxels > 1000).astype(np.uint8)
    _write_nifti(case, labels, scan.volume.geometry.to_ras_xyz(), ".nii.gz")
    return [case.row("label map", "label map", "skipped", ending=".nii.gz")]


def garbled_slice(case: Case) -> list[Expected]:
    """One slice whose header is noise behind its mark: its series lacks that slice."""
    paths = case.write(case.scan())
    path = paths[len(paths) // 2]
    content = path.read_bytes()
    path.write_bytes(content[:132] + case.rng.bytes(len(content) - 132))
    return [
        case.row("damaged", "damaged", "failed", source=path.name),
        case.row("ct", "missing slices", "refused", "ok", files=len(paths) - 1),
    ]


def cut_header(case: Case) -> list[Expected]:
    """One slice that ends within its header."""
    paths = case.write(case.scan())
    path = paths[len(paths) // 2]
    path.write_bytes(path.read_bytes()[: int(case.rng.integers(140, 180))])
    return [
        case.row("damaged", "damaged", "failed", source=path.name),
        case.row("ct", "missing slices", "refused", "ok", files=len(paths) - 1),
    ]


def plain(name: str, content: Callable[[np.random.Generator], bytes], *outcome: str):
    """Makes the way that writes one file. outcome: kind, conditions, strict."""

    def way(case: Case) -> list[Expected]:
        case.folder.mkdir(parents=True)
        (case.folder / name).write_bytes(content(case.rng))
        return [case.row(*outcome, source=name)]

    return way


def broken_link(case: Case) -> list[Expected]:
    case.folder.mkdir(parents=True)
    os.symlink("moved-away.dcm", case.folder / "0001.dcm")
    return [case.row("damaged", "damaged", "failed", source="0001.dcm")]


PLAIN = {
    "text": plain(
        "notes.txt",
        lambda rng: b"Exported for a study. No person is in it.\n",
        *("not an image", "not dicom", "skipped"),
    ),
    "pdf": plain(
        "report.pdf",
        lambda rng: b"%PDF-1.7\n" + rng.bytes(2000) + b"\n%%EOF\n",
        *("not an image", "not dicom", "skipped"),
    ),
    "noise named .dcm": plain(
        "0001.dcm",
        lambda rng: b"\xaa" + rng.bytes(4000),
        *("damaged", "not dicom", "failed"),
    ),
    "empty file": plain("0001.dcm", lambda rng: b"", *("damaged", "truncated", "failed")),
    "encrypted envelope": plain(
        "0001.dcm", lambda rng: envelope(rng, 5000), *("damaged", "encrypted", "failed")
    ),
}


def _beside(case: Case, ending: str) -> Path:
    return case.folder.with_name(case.name + ending)


def _zip(case: Case) -> Path:
    """Packs the case's folder and removes it."""
    path = _beside(case, ".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(case.folder.iterdir()):
            entry = zipfile.ZipInfo(f"{_INSIDE}/{file.name}", _LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes(), compresslevel=1)
    shutil.rmtree(case.folder)
    return path


def _tar(case: Case, paths: list[Path]) -> bytes:
    """Packs files of the case's folder and removes it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in paths:
            entry = tarfile.TarInfo(f"{_INSIDE}/{path.name}")
            entry.size = path.stat().st_size
            with open(path, "rb") as file:
                tar.addfile(entry, file)
    shutil.rmtree(case.folder)
    return packed.getvalue()


def _write_nifti(case: Case, voxels: np.ndarray, affine, ending: str) -> Path:
    import nibabel

    image = nibabel.Nifti1Image(voxels.T, affine)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    path = _beside(case, ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1, mtime=0) if ending.endswith("gz") else content)
    return path


def _packed(case: Case, ending: str, files: int, liver_ml: str) -> Expected:
    return case.row(
        "ct", "uniform", "ok", source=_INSIDE, ending=ending, files=files, liver_ml=liver_ml
    )
