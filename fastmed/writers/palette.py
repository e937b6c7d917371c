"""Colours and type of the pictures; a label value has one colour in every picture and report."""

from __future__ import annotations

import colorsys
from functools import cache

from PIL import ImageColor, ImageFont

BACKGROUND = (13, 15, 19)
BRIGHT, DIM, FAINT = (233, 236, 241), (150, 157, 168), (78, 84, 94)
_FIRST = (
    *("#ff7a3d", "#35c3f3", "#ffc933", "#7ed957", "#b66dff"),
    *("#ff4d79", "#2ee6c5", "#ff8bd0", "#5b8cff", "#d8b84a"),
)
_GOLDEN_ANGLE = 0.381966  # of a turn: hues that never come close to the few before them


def label_color(value: int) -> tuple[int, int, int]:
    """Returns the (red, green, blue) of a label value of at least 1, each 0..255."""
    if value <= len(_FIRST):
        return ImageColor.getrgb(_FIRST[value - 1])
    hue = (value * _GOLDEN_ANGLE) % 1.0
    lightness = (0.72, 0.60, 0.80)[value % 3]
    saturation = (0.85, 0.60)[value % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns the typeface that Pillow brings along, in pixels."""
    return ImageFont.load_default(size)
