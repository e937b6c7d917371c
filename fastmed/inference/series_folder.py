"""One series' folder of results: written beside its place, hashed, then renamed into it."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmed.errors import SeriesError
from fastmed.findings import Findings
from fastmed.readers.dicom_evidence import read_evidence
from fastmed.readers.series import Series
from fastmed.spec import Spec
from fastmed.volume import Volume
from fastmed.writers.dicom_sr import images_with_boxes, write_sr
from fastmed.writers.images import write_preview
from fastmed.writers.label_picture import write_label_picture
from fastmed.writers.nifti import write_labels, write_slice_labels
from fastmed.writers.slice_boxes import boxes_by_slice
from fastmed.writers.tables import write_findings_json
from fastmed.writers.voc import write_voc

# What stands in a series' own folder; other formats are tables of the whole run.
FORMATS_OF_A_SERIES = ("nifti", "json", "png", "voc", "sr")


@dataclass(frozen=True)
class SeriesFolder:
    """Where one series' results belong below a run's folder.

    token: of the process that writes them, so that two never write into one folder.
    """

    output: Path
    name: str
    token: str

    @property
    def path(self) -> Path:
        return self.output / "series" / self.name

    @property
    def partial(self) -> Path:
        """Where the files are written, until all are there."""
        return self.path.with_name(f".{self.name}.{self.token}.partial")

    @property
    def old(self) -> Path:
        """Where an earlier result is while the new one takes its place."""
        return self.path.with_name(f".{self.name}.{self.token}.old")

    def write(
        self,
        entry: Series,
        volume: Volume,
        findings: Findings,
        formats: set[str],
        spec: Spec,
    ) -> tuple[Findings, dict[str, list]]:
        """Writes all files beside their place, safe on the disk.

        Returns the findings, with a warning where a DICOM report has nothing to refer to, and the
        SHA-256 and size of each file by its name. Raises FastmedError where the disk refuses.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        evidence = None
        if "sr" in formats:
            evidence, findings = _evidence(entry, volume, findings)
        try:
            self.partial.mkdir(parents=True)
            _write_files(self.partial, volume, findings, formats, spec, evidence)
            return findings, _settled(self.partial)
        except BaseException:
            shutil.rmtree(self.partial, ignore_errors=True)
            raise

    def put_in_place(self) -> None:
        """Renames what was written into place; an earlier result stays until then.

        An empty folder, of a run that wants tables alone, puts nothing there.
        """
        shutil.rmtree(self.old, ignore_errors=True)
        if not any(self.partial.iterdir()):
            self.partial.rmdir()
            return
        try:
            if self.path.exists():
                os.replace(self.path, self.old)
            os.replace(self.partial, self.path)
        except BaseException:
            self.take_back()
            raise
        shutil.rmtree(self.old, ignore_errors=True)

    def take_back(self) -> None:
        """Removes what was written, and puts an earlier result back where it was moved away."""
        if self.old.exists() and not self.path.exists():
            os.replace(self.old, self.path)
        shutil.rmtree(self.partial, ignore_errors=True)


def is_whole(folder: Path, files: dict[str, list], *, by_content: bool = False) -> bool:
    """Whether a folder holds exactly these files, of their sizes; or also of their content.

    A result without files is whole whatever lies there: it is of tables alone.
    """
    if not files:
        return True
    try:
        there = {file: (folder / file).stat().st_size for file in _names(folder)}
        if there != {file: size for file, (_, size) in files.items()}:
            return False
        return not by_content or all(
            _sha256(folder / file) == sha256 for file, (sha256, _) in files.items()
        )
    except OSError:
        return False


def differences(folder: Path, sha256: dict[str, str]) -> list[str]:
    """How a folder differs from the hashes of its files: a file and what is wrong with it."""
    try:
        there = set(_names(folder))
    except OSError:
        there = set()
    return [
        *(f"{name}: is missing" for name in sorted(sha256.keys() - there)),
        *(f"{name}: was not written by the run" for name in sorted(there - sha256.keys())),
        *(
            f"{name}: has changed since"
            for name in sorted(sha256.keys() & there)
            if _sha256(folder / name) != sha256[name]
        ),
    ]


def clean_up(output: Path, is_alive) -> None:
    """Removes what killed processes left below a run's folder; the living keep theirs.

    is_alive: whether the process of a token lives.
    """
    series = output / "series"
    for left in series.glob(".*.partial"):
        if not is_alive(left.name.removesuffix(".partial").rpartition(".")[2]):
            shutil.rmtree(left, ignore_errors=True)
    for old in series.glob(".*.old"):
        name, _, token = old.name[1 : -len(".old")].rpartition(".")
        if is_alive(token):
            continue
        folder = old.with_name(name)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):  # it lies there still, for the next one to try
                os.replace(old, folder)


def _evidence(entry: Series, volume: Volume, findings: Findings) -> tuple[list | None, Findings]:
    """What a DICOM report refers to; where the scan has no such thing, a warning in its place."""
    try:
        return read_evidence(entry, images_with_boxes(findings, volume)), findings
    except SeriesError as error:
        warning = f"findings.sr.dcm is left out: {error}"
        return None, replace(findings, warnings=(*findings.warnings, warning))


def _write_files(
    folder: Path,
    volume: Volume,
    findings: Findings,
    formats: set[str],
    spec: Spec,
    evidence: list | None,
) -> None:
    if "nifti" in formats:
        write_labels(findings, folder / "labels.nii.gz")
        if findings.slice_labels:
            write_slice_labels(findings, folder / "labels_slices.npz")
    if "png" in formats and findings.modality == "grey" and findings.labels is not None:
        write_label_picture(findings, folder / "labels.png")
    if "json" in formats:
        write_findings_json(findings, folder / "findings.json")
    if "voc" in formats:
        for at in boxes_by_slice(findings, volume):
            write_voc(at, folder / "voc" / f"{at.name}.xml", folder=findings.series)
    if evidence:
        write_sr(findings, volume, evidence, folder / "findings.sr.dcm")
    if {"png", "report"} & formats:
        threshold = spec.detection.score_threshold if spec.detection else None
        write_preview(
            volume,
            findings,
            folder / "preview.png",
            window_hu=spec.window_hu,
            score_threshold=threshold,
            with_thumbnail="report" in formats,
        )


def _settled(folder: Path) -> dict[str, list[Any]]:
    """Waits until the files are on the disk; returns the SHA-256 and size of each."""
    files = {}
    for name in _names(folder):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = [sha256, os.fstat(file.fileno()).st_size]
    return files


def _names(folder: Path) -> list[str]:
    """The files below a folder, by their paths in it; raises OSError where it is absent."""
    names = []
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            names += [f"{entry.name}/{inner}" for inner in _names(Path(entry.path))]
        else:
            names.append(entry.name)
    return sorted(names)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
