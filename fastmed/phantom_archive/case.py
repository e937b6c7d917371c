"""A case: one folder or file of the phantom archive, what goes into it, and what must be found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmed.geometry import Geometry
from fastmed.phantom_archive.body import Body, planes_of, scan_grid
from fastmed.phantom_archive.truth import Expected
from fastmed.volume import Volume
from fastmed.writers.dicom_ct import write_dicom_ct


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT volume drawn for a case, not written yet."""

    volume: Volume
    liver_ml: str


@dataclass(frozen=True, eq=False)
class Case:
    """Where one thing of the archive goes, and what it is made from.

    way: how it is made, a key of WAYS; scans: the archive's scans/; name: its folder or file there.
    identity: what UIDs follow from; no two cases have the same.
    """

    way: str
    scans: Path
    name: str
    identity: str
    shape_zyx: tuple[int, int, int]
    body: Body
    rng: np.random.Generator

    @property
    def folder(self) -> Path:
        return self.scans / self.name

    def scan(
        self,
        part: str = "",
        *,
        grid: Geometry | None = None,
        tilt_degrees: float = 0.0,
        z_index: Sequence[float] | None = None,
    ) -> Scan:
        """Draws a scan of this case's body.

        part: tells the scans of one case apart. grid: where its voxels are; else one is drawn.
        z_index: where its slices lie, in fractions of the grid's steps; the volume's own geometry
        is uniform all the same.
        """
        if grid is None:
            grid = scan_grid(self.shape_zyx, self.rng, tilt_degrees=tilt_degrees)
        places = range(grid.shape_zyx[0]) if z_index is None else z_index
        voxels, liver_ml = self.body.cut(planes_of(grid, places), self.rng)
        name = f"{self.identity}/{part}"
        return Scan(Volume(voxels, grid, 1.0, -1024.0, name, name), f"{liver_ml:.1f}")

    def write(self, scan: Scan, prefix: str = "", *, localizer: bool = False) -> list[Path]:
        """Writes a scan as a DICOM series, explicit little endian; returns its files by rising z.

        prefix: of the files' names, where the case has several scans in its folder.
        """
        patient = f"PHANTOM-{self.name}"
        if not prefix:
            return write_dicom_ct(scan.volume, self.folder, patient_id=patient, localizer=localizer)
        aside = self.folder / prefix
        paths = write_dicom_ct(scan.volume, aside, patient_id=patient)
        paths = [path.rename(self.folder / f"{prefix}-{path.name}") for path in paths]
        aside.rmdir()
        return paths

    def row(
        self,
        kind: str,
        conditions: str,
        strict: str,
        lenient: str | None = None,
        *,
        source: str = "",
        ending: str = "",
        shows: str = "headers",
        volumes: int = 1,
        files: int = 1,
        liver_ml: str = "",
    ) -> Expected:
        """What must be found of this case's folder, or of a file named after it with an `ending`.

        source: what is meant in it.
        """
        path = f"{self.name}{ending}" + (f"/{source}" if source else "")
        return Expected(
            way=self.way,
            source=path,
            kind=kind,
            conditions=conditions,
            strict=strict,
            lenient=lenient or strict,
            shows=shows,
            volumes=volumes,
            files=files,
            liver_ml=liver_ml,
        )
