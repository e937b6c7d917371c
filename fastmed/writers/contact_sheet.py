"""contact.png: many slices with their boxes on one sheet, to look a data set over."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fastmed.writers.atomic import write_atomically
from fastmed.writers.palette import BACKGROUND, BRIGHT, DIM, font, label_color

MAX_TILES = 48
_TILE_PX, _CAPTION_PX, _GAP, _MARGIN = 256, 20, 10, 20
_MAX_COLUMNS = 6
_AROUND_PX = 2  # between a box and the line around it, so that what it holds stays visible


@dataclass(frozen=True, eq=False)
class Tile:
    """One slice on the sheet.

    gray: [H, W] uint8. boxes: (label value of at least 1, (x1, y1, x2, y2) in pixels of the slice,
    integers at pixel centres). caption: one line.
    """

    gray: np.ndarray
    boxes: tuple[tuple[int, tuple[float, float, float, float]], ...]
    caption: str


def write_contact_sheet(
    tiles: Iterable[Tile], labels: Sequence[str], path: str | os.PathLike
) -> None:
    """Writes the first MAX_TILES tiles in rows, and the colour of each label above them.

    labels: names of the label values 1, 2, ...

    Raises FastmedError where the disk refuses.
    """
    shown = [_drawn(tile) for _, tile in zip(range(MAX_TILES), tiles, strict=False)]
    columns = max(1, min(_MAX_COLUMNS, math.ceil(math.sqrt(len(shown)))))
    rows = math.ceil(len(shown) / columns)
    top = _MARGIN + _CAPTION_PX + _GAP
    step_x, step_y = _TILE_PX + _GAP, _TILE_PX + _CAPTION_PX + _GAP
    size = (2 * _MARGIN + columns * step_x - _GAP, top + rows * step_y + _MARGIN - _GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    at = _MARGIN
    for value, name in enumerate(labels, start=1):
        draw.rectangle((at, _MARGIN + 2, at + 11, _MARGIN + 13), label_color(value))
        draw.text((at + 18, _MARGIN + 8), name, BRIGHT, font(14), anchor="lm")
        at += 18 + round(draw.textlength(name, font(14))) + 24
    for number, (picture, caption) in enumerate(shown):
        x, y = _MARGIN + number % columns * step_x, top + number // columns * step_y
        draw.text((x, y + _CAPTION_PX - 6), caption, DIM, font(12), anchor="ls")
        left, up = (_TILE_PX - picture.width) // 2, (_TILE_PX - picture.height) // 2
        sheet.paste(picture, (x + left, y + _CAPTION_PX + up))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=2)
    write_atomically(path, [buffer.getvalue()])


def _drawn(tile: Tile) -> tuple[Image.Image, str]:
    height, width = tile.gray.shape
    zoom = _TILE_PX / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    picture = Image.fromarray(tile.gray).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for value, (x1, y1, x2, y2) in tile.boxes:
        edges = [(edge + 0.5) * zoom for edge in (x1, y1, x2, y2)]
        low = [round(edge) - _AROUND_PX for edge in edges[:2]]
        high = [round(edge) + _AROUND_PX - 1 for edge in edges[2:]]
        draw.rectangle((*low, *high), outline=label_color(value))
    return picture, tile.caption
