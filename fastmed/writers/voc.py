"""Pascal VOC XML: the boxes of one slice, in whole pixels."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from fastmed.writers.atomic import write_atomically
from fastmed.writers.slice_boxes import SliceBoxes

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_voc(
    slice_boxes: SliceBoxes, path: str | os.PathLike, *, folder: str = "", with_scores: bool = True
) -> None:
    """Writes one slice's boxes as VOC XML.

    folder: what its entry of that name says. with_scores: a score per object, which VOC does not
        know and its readers pass over.

    Raises FastmedError where the disk refuses.
    """
    root = ElementTree.Element("annotation")
    _add(root, folder=folder, filename=slice_boxes.file_name)
    _add(_sub(root, "source"), database="fastmed")
    _add(_sub(root, "size"), width=slice_boxes.width, height=slice_boxes.height, depth=1)
    _add(root, segmented=0)
    size = (slice_boxes.width, slice_boxes.height)
    for box in slice_boxes.boxes:
        item = _sub(root, "object")
        _add(item, name=box.label, pose="Unspecified", truncated=0, difficult=0)
        if with_scores:
            _add(item, score=box.score)
        pixels = whole_pixels(box.box_px, size)
        names = ("xmin", "ymin", "xmax", "ymax")
        _add(_sub(item, "bndbox"), **dict(zip(names, pixels, strict=True)))
    ElementTree.indent(root)
    write_atomically(path, [ElementTree.tostring(root, encoding="utf-8"), b"\n"])


def whole_pixels(box_px: Sequence[float], size_xy: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns (xmin, ymin, xmax, ymax), inclusive and from 0, of a box in our pixels.

    They are the pixels whose centres lie in the box, which is the rounding of its edges to the
    nearest edges of pixels; along each axis at least two (where the image has them), since readers
    take xmin = xmax for a box without a size; none outside the image.
    """
    x1, y1, x2, y2 = box_px
    (xmin, xmax), (ymin, ymax) = _pixels(x1, x2, size_xy[0]), _pixels(y1, y2, size_xy[1])
    return xmin, ymin, xmax, ymax


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    first, last = max(math.ceil(low), 0), min(math.floor(high), size - 1)
    if last <= first:
        first = math.floor((low + high) / 2)  # the two whose common edge is nearest to the middle
        first = max(min(first, size - 2), 0)
        last = min(first + 1, size - 1)
    return first, last


def _sub(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, name)


def _add(parent: ElementTree.Element, **texts) -> None:
    """Adds one child per text; what XML cannot hold becomes a question mark."""
    for name, text in texts.items():
        _sub(parent, name).text = _NOT_IN_XML.sub("?", str(text))
