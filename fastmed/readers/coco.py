"""COCO-style JSON: the boxes of many images in one file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from fastmed.errors import DataError
from fastmed.readers.annotations import ImageAnnotation, LabelledBox, label_of, quoted

_NAMED = 20  # flaws that an error lists
_ROUNDING_PX = 1e-3  # x + width of a box at the edge


def read_coco(
    path: str | os.PathLike, *, classes: Mapping[str, str] | None = None
) -> list[ImageAnnotation]:
    """Reads every image of the file, those without boxes too, in the file's order.

    A bbox is [x, y, width, height] with integers at the edges of pixels, which are half a pixel
    off from this package's space. `image` of a result is the file_name.

    classes: category name -> label; None takes every name as it is.

    Raises DataError that names the file and each flaw: it is no JSON of this kind, an id is there
    twice, an annotation is of an unknown image or category, a box is not four numbers, not
    finite, without area or outside its image, or stands for a crowd.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({str(error)[:80]})") from error
    flaws: list[str] = []
    images = _by_id(content, "images", flaws)
    categories = _by_id(content, "categories", flaws)
    sizes = {key: _size(image, flaws) for key, image in images.items()}
    boxes: dict[object, list[LabelledBox]] = {key: [] for key in images}
    for number, annotation in enumerate(_entries(content, "annotations", flaws), start=1):
        try:
            image = annotation.get("image_id")
            if not _is_id(image) or image not in images:
                raise ValueError(f"no image has the id {quoted(image)}")
            category = annotation.get("category_id")
            if not _is_id(category) or category not in categories:
                raise ValueError(f"no category has the id {quoted(category)}")
            name = categories[category].get("name")
            label, flaw = label_of(name.strip() if isinstance(name, str) else "", classes)
            if flaw or annotation.get("iscrowd"):
                raise ValueError(flaw or "a crowd (iscrowd), which is no single object")
            boxes[image].append(LabelledBox(label, _box(annotation.get("bbox"), sizes[image])))
        except ValueError as error:
            flaws.append(f"annotation {number}: {error}")
    if flaws:
        raise DataError.listing(f"{path}: {len(flaws)} flaws", flaws[:_NAMED])
    return [
        ImageAnnotation(images[key]["file_name"], *sizes[key], tuple(boxes[key])) for key in images
    ]


def _entries(content, name: str, flaws: list[str]) -> list[dict]:
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        flaws.append(f"no list of {name}")
        return []
    if wrong := sum(not isinstance(entry, dict) for entry in entries):
        flaws.append(f"{wrong} of {name} are no objects")
    return [entry for entry in entries if isinstance(entry, dict)]


def _by_id(content, name: str, flaws: list[str]) -> dict[object, dict]:
    found: dict[object, dict] = {}
    for number, entry in enumerate(_entries(content, name, flaws), start=1):
        key = entry.get("id")
        if not _is_id(key) or key in found:
            flaws.append(f"{name} {number}: id {quoted(key)} is absent or there twice")
        else:
            found[key] = entry
    return found


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _size(image: dict, flaws: list[str]) -> tuple[int, int]:
    """Width and height, both 0 where they are not known."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        flaws.append(f"image {quoted(image['id'])}: no file_name")
    size = (image.get("width"), image.get("height"))
    if not all(type(side) is int and side > 0 for side in size):
        flaws.append(f"image {quoted(image['id'])}: width and height are {quoted(size)}")
        return (0, 0)
    return size


def _box(bbox, size: tuple[int, int]) -> tuple[float, float, float, float]:
    is_numbers = isinstance(bbox, list) and all(type(value) in (int, float) for value in bbox)
    if not is_numbers or len(bbox) != 4:
        raise ValueError(f"bbox {quoted(bbox)}: expected [x, y, width, height]")
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError as error:
        raise ValueError("bbox holds numbers that are too large") from error
    if not all(map(math.isfinite, (x, y, width, height, x + width, y + height))):
        raise ValueError(f"bbox {quoted(bbox)} is not finite")
    if width <= 0 or height <= 0:
        kind = "zero-sized" if min(width, height) == 0 else "inverted"
        raise ValueError(f"bbox {quoted(bbox)} is {kind}")
    over = max(-x, -y, x + width - size[0], y + height - size[1])
    if size[0] and over > _ROUNDING_PX:
        raise ValueError(f"bbox {quoted(bbox)} is outside the image of {size[0]} x {size[1]}")
    return (x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5)
