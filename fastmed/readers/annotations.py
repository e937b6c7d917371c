"""Annotations: the boxes that people drew on one image, whatever file they stand in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SHOWN = 32  # characters of a value that an error quotes
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class LabelledBox:
    """One box on an image.

    box_px: (x1, y1, x2, y2) in its pixels; integers are pixel centres, so that the first pixel
        spans -0.5 to 0.5.
    """

    label: str
    box_px: tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageAnnotation:
    """What was drawn on one image.

    image: what the file says it is of; "" where it does not say.
    width, height: pixels of that image.
    boxes: in the file's order; empty where somebody looked and found nothing.
    """

    image: str
    width: int
    height: int
    boxes: tuple[LabelledBox, ...]


def label_of(name: str, classes: Mapping[str, str] | None) -> tuple[str, str]:
    """Returns (label, "") of a class that a file names, or ("", what is wrong with it).

    classes: class in the file -> label; None takes every name as it is.
    """
    if not name:
        return "", "a box without a class"
    if classes is None:
        return name, ""
    if name not in classes:
        return "", f"unknown class {quoted(name)}; known are {', '.join(sorted(classes))}"
    return classes[name], ""


def number_of(text: str) -> float:
    """The number that a text spells, as people write it; ValueError where it is none."""
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{quoted(text)} is no number")
    return float(text)


def quoted(value: object) -> str:
    """A value out of a file, short and unable to steer a terminal."""
    text = value if isinstance(value, str) else str(value)
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
