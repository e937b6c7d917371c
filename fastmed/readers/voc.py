"""VOC XML: the boxes of one image, from files that may be damaged or hostile."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from fastmed.errors import DataError
from fastmed.readers.annotations import ImageAnnotation, LabelledBox, label_of, number_of, quoted

_MAX_BYTES = 1 << 20  # thousands of boxes; a file of this kind takes one kilobyte
_MAX_SIDE = 1 << 16  # pixels
_NAMED = 8  # flaws that an error lists
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    path: str | os.PathLike, *, classes: Mapping[str, str] | None = None
) -> ImageAnnotation:
    """Reads the boxes of one image; xmin..xmax count pixels from 0, the last one included.

    classes: class in the file -> label; None takes every name as it is.

    Raises DataError, one line that names the file and all its flaws: it is no XML, holds a DTD
    (which entity bombs and external entities need), has no size, or a box has no class or an
    unknown one, or is zero-sized, inverted, not finite, no numbers, or outside the image.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return parse_voc(file.read(_MAX_BYTES + 1), classes=classes)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def parse_voc(content: bytes, *, classes: Mapping[str, str] | None = None) -> ImageAnnotation:
    """Parses bytes as `read_voc` does a file; ValueError with all flaws, without a file's name."""
    root = _root(content)
    flaws: list[str] = []
    width, height = _size(root, flaws)
    boxes = []
    objects = root.findall("object")
    for number, element in enumerate(objects, start=1):
        try:
            boxes.append(_box(element, classes, width, height))
        except ValueError as error:
            flaws.append(f"box {number}: {error}")
    if stray := len(list(root.iter("bndbox"))) - sum(len(o.findall("bndbox")) for o in objects):
        flaws.append(f"{stray} bndbox outside of an object")
    if flaws:
        more = [f"and {len(flaws) - _NAMED} more flaws"] * (len(flaws) > _NAMED)
        raise ValueError("; ".join([*flaws[:_NAMED], *more]))
    return ImageAnnotation(_text(root, "filename"), width, height, tuple(boxes))


def _root(content: bytes):
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    if not content.strip():
        raise ValueError("an empty file; copy it again")
    if len(content) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes, which the boxes of one image do not take")
    try:
        root = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise ValueError("it holds a DTD, which no annotation needs; refused") from error
    except ParseError as error:
        raise ValueError(f"not XML ({_reason(error)}); copy it again") from error
    except (ValueError, LookupError) as error:  # encodings that expat does not have
        raise ValueError("not XML in an encoding that can be read; save it as UTF-8") from error
    if root.tag != "annotation":
        raise ValueError(f"its root is {quoted(root.tag)}: expected annotation")
    return root


def _reason(error: Exception) -> str:
    """The parser's words: what, line and column, nothing out of the file but an entity's name."""
    return "".join(c if c.isprintable() else "?" for c in str(error))[:80]


def _size(root, flaws: list[str]) -> tuple[int, int]:
    """Width and height, both 0 where they are not known."""
    found = []
    for side in ("width", "height"):
        try:
            value = _number(root, f"size/{side}")
            if value != int(value) or not 1 <= value <= _MAX_SIDE:
                raise ValueError(f"size/{side} {value:g}: expected 1 to {_MAX_SIDE} pixels")
            found.append(int(value))
        except ValueError as error:
            flaws.append(f"no size: {error}")
    return (found[0], found[1]) if len(found) == 2 else (0, 0)


def _box(element, classes: Mapping[str, str] | None, width: int, height: int) -> LabelledBox:
    label, flaw = label_of(_text(element, "name"), classes)
    if flaw:
        raise ValueError(flaw)
    x1, y1, x2, y2 = (_number(element, f"bndbox/{side}") for side in _SIDES)
    for low, high, word in ((x1, x2, "x"), (y1, y2, "y")):
        if high <= low:
            kind = "zero-sized" if low == high else "inverted"
            raise ValueError(f"{kind}: {word}min {low:g}, {word}max {high:g}")
    if width and (min(x1, y1) < 0 or x2 > width - 1 or y2 > height - 1):
        raise ValueError(
            f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g} is outside the image of {width} x {height}"
        )
    return LabelledBox(label, (x1 - 0.5, y1 - 0.5, x2 + 0.5, y2 + 0.5))


def _number(element, path: str) -> float:
    found = element.findall(path)
    if len(found) != 1:
        raise ValueError(f"{len(found)} times {path}: expected one")
    try:
        value = number_of(found[0].text or "")
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    if not math.isfinite(value):
        raise ValueError(f"{path} {quoted(found[0].text)} is too large")
    return value


def _text(element, path: str) -> str:
    return (element.findtext(path) or "").strip()
