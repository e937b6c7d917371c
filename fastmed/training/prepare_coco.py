"""COCO-style JSON and pictures become slices.csv, a row per box."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fastmed.errors import SeriesError
from fastmed.readers.coco import read_coco
from fastmed.readers.index import read
from fastmed.training.prepare import SLICE_COLUMNS, Report, check_folders, write_table
from fastmed.writers.contact_sheet import MAX_TILES, Tile, write_contact_sheet


def prepare_coco(
    images: str | os.PathLike,
    annotations: str | os.PathLike,
    output: str | os.PathLike,
    *,
    quiet: bool = False,
) -> Report:
    """Writes slices.csv, problems.csv and contact.png; the pictures stay in place.

    images: the folder that file_name starts at; grey pictures. annotations: the JSON file. A
        category's name is the label; an image without annotations is one without findings. Each
        picture counts as a patient of its own until the column `patient` says otherwise.

    Named as problems are images that are absent, outside of the folder, unreadable, or of another
    size than the JSON says.

    Returns the figures and problems. Raises DataError where the JSON has flaws, UsageError for
    wrong arguments, FastmedError where the disk refuses.
    """
    images, annotations, output = Path(images), Path(annotations), Path(output)
    check_folders(output, images=images, annotations=annotations)
    from fastmed.inference.display import tracked

    report, rows, tiles = Report(), [], []
    listed = read_coco(annotations)
    names = sorted({box.label for image in listed for box in image.boxes})
    for image in tracked(listed, "images", quiet):
        file = images / image.image
        try:
            if not file.resolve().is_relative_to(images.resolve()):
                raise SeriesError(f"it is outside of {images}")
            (picture,) = read(file, modality="grey") if file.is_file() else (None,)
            if picture is None:
                raise SeriesError("no such file")
            _, height, width = picture.geometry.shape_zyx
            if (width, height) != (image.width, image.height):
                raise SeriesError(
                    f"it has {width} x {height} pixels, the JSON says "
                    f"{image.width} x {image.height}"
                )
        except (SeriesError, OSError, ValueError) as error:
            report.refuse(image.image, str(error))
            continue
        path = os.path.relpath(file.resolve(), output.resolve()).replace(os.sep, "/")
        cells = [(box.label, *box.box_px) for box in image.boxes] or [("",) * 5]
        rows += [(path, path, 0, *found) for found in cells]
        report.count("images")
        report.count("boxes", len(image.boxes))
        if image.boxes and len(tiles) < MAX_TILES:
            boxes = tuple((names.index(box.label) + 1, box.box_px) for box in image.boxes)
            tiles.append(Tile(_shades(picture.voxels[0]), boxes, Path(image.image).name))
    write_table(output / "slices.csv", SLICE_COLUMNS, rows)
    report.write_problems(output / "problems.csv")
    write_contact_sheet(tiles, names, output / "contact.png")
    report.show(quiet)
    return report


def _shades(voxels: np.ndarray) -> np.ndarray:
    """Any grey image as uint8, from its darkest to its brightest pixel."""
    low, high = float(voxels.min()), float(voxels.max())
    return np.rint((voxels - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
