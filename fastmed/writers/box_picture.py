"""preview.png of a detection: the scan around its best finding, and the best few from near."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fastmed.findings import Box, Findings
from fastmed.geometry import Geometry
from fastmed.volume import Volume
from fastmed.writers.annotate import annotate, draw_scale_bar
from fastmed.writers.legend import format_boxes, format_score, shorten
from fastmed.writers.palette import BACKGROUND, BRIGHT, DIM, FAINT, font, label_color
from fastmed.writers.planes import Plane, cut_around, cut_image, cut_planes, field_of_view

_PLANE_PX, _FLAT_PLANE_PX = 440, 560  # the longest in-plane side of the scan
_FLAT = 0.25  # of the height of the axial plane: less depth than that makes mere strips
_MARGIN, _GAP, _CAPTION_PX = 20, 12, 30
_NEAR, _FEW = 6, 2  # findings shown from near; that few are shown in three planes
_NEAR_MM = (40.0, 120.0)  # side of what is shown from near: three times the largest, within these
_LEAST_OUTLINE_PX = 14  # a nodule of 3 mm is 3 pixels in a picture of the chest
_TEXT_PX, _LINE_PX = 13, 18
_WORDS_PX = 2 * _LINE_PX + 16  # under a square


@dataclass(frozen=True, eq=False)
class _Finding:
    """A box with its number, its colour, and its middle on its key slice in LPS mm."""

    number: int
    box: Box
    color: tuple[int, int, int]
    centre_lps_mm: np.ndarray


def boxed_planes_picture(
    volume: Volume, findings: Findings, window_hu, score_threshold: float | None
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Draws the axial, coronal and sagittal plane through the best finding over the best few from
    near, all of those at one scale; of a scan without findings, the planes through its middle.

    The axial and sagittal plane show the boxes that they cut, the coronal plane all of the best,
    faint where it does not cut them.

    Returns the picture and where the axial plane stands in it: (left, top, right, bottom).
    """
    shown = [_numbered(k, box, volume, findings) for k, box in enumerate(findings.boxes[:_NEAR])]
    around = shown[0].centre_lps_mm if shown else None
    field, centre = field_of_view(volume, findings, around)
    depth_mm, *in_plane_mm = np.multiply(field.shape_zyx, field.spacing_mm_zyx)
    flat = depth_mm < _FLAT * in_plane_mm[0]
    pixel_mm = max(in_plane_mm) / (_FLAT_PLANE_PX if flat else _PLANE_PX)
    cut = {"pixel_mm": pixel_mm, "window_hu": window_hu, "label_detail": 1}
    planes = cut_planes(volume, findings, field, centre, **cut)
    sheet = _laid_out([plane.gray.shape for plane in planes], flat, _squares(shown))
    picture = Image.new("RGB", (sheet.width, sheet.height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    grid = field.grid((pixel_mm,) * 3)
    for plane, corner in zip(planes, sheet.corners, strict=True):
        picture.paste(_with_outlines(plane, shown, grid, centre), corner)
        annotate(draw, plane, corner)
    draw_scale_bar(draw, sheet.corners[0], planes[0].gray.shape, pixel_mm)
    if shown:
        _draw_near(picture, sheet, volume, shown, grid, window_hu)
    sentence = _summary(findings, score_threshold)
    draw.text((_MARGIN, sheet.height - _MARGIN), sentence, BRIGHT, font(14), anchor="ls")
    (x, y), (rows, columns) = sheet.corners[0], planes[0].gray.shape
    return picture, (x, y, x + columns, y + rows)


def boxed_image_picture(
    volume: Volume, findings: Findings, window_hu, score_threshold: float | None
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Draws a grey image whole, with the outlines of all boxes; returns as above."""
    rows, columns = volume.geometry.shape_zyx[1:]
    pixel = max(rows, columns) / _FLAT_PLANE_PX
    plane = cut_image(volume, findings, pixel_mm=pixel, window_hu=window_hu, label_detail=1)
    scale = np.tile(np.divide(plane.gray.shape[::-1], (columns, rows)), 2)
    corner = (_MARGIN, _MARGIN + _CAPTION_PX)
    sentence = _summary(findings, score_threshold)
    width = round(max(plane.gray.shape[1], font(14).getlength(sentence))) + 2 * _MARGIN
    height = corner[1] + plane.gray.shape[0] + _CAPTION_PX + _MARGIN
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    shown = Image.fromarray(plane.gray).convert("RGB")
    for k, box in enumerate(findings.boxes):
        if box.key_box_px is not None:
            place = np.add(box.key_box_px, 0.5) * scale
            _outline(shown, place, _color(box, findings), f"{k + 1}  {_score(box)}")
    picture.paste(shown, corner)
    annotate(draw, plane, corner)
    draw.text((_MARGIN, height - _MARGIN), sentence, BRIGHT, font(14), anchor="ls")
    return picture, (*corner, corner[0] + shown.width, corner[1] + shown.height)


def _numbered(k: int, box: Box, volume: Volume, findings: Findings) -> _Finding:
    """Puts the middle of a box onto its key slice, so that a scan's own slice is shown."""
    corners = np.reshape(box.box_lps_mm, (2, 3))
    index = volume.geometry.to_index(corners.mean(axis=0))
    key = [s.z_index for s in volume.slices if s.sop_instance_uid == box.key_sop_instance_uid]
    nearest = min(key, key=lambda z: abs(z - index[0]), default=None)
    index[0] = nearest if nearest is not None and box.key_sop_instance_uid else round(index[0])
    centre = volume.geometry.to_world(index)
    return _Finding(k + 1, box, _color(box, findings), centre)


@dataclass(frozen=True)
class _Sheet:
    """Where things stand: the planes, and the squares from near, some to the row."""

    width: int
    height: int
    corners: tuple[tuple[int, int], ...]
    near: tuple[int, int]
    side_px: int
    to_the_row: int


def _laid_out(shapes, flat: bool, squares: int) -> _Sheet:
    """Sets the planes in a row over the squares; of a flat scan, strips and squares at the side."""
    rows, columns = zip(*shapes, strict=True)
    left, top = _MARGIN, _MARGIN + _CAPTION_PX
    second = left + columns[0] + _GAP
    if flat:
        third_top = top + rows[1] + _CAPTION_PX
        corners = ((left, top), (second, top), (second, third_top))
        width = second + max(columns[1:]) + _MARGIN
        near, to_the_row = (second, third_top + rows[2] + _CAPTION_PX // 2), _NEAR // 2
    else:
        corners = ((left, top), (second, top), (second + columns[1] + _GAP, top))
        width = corners[2][0] + columns[2] + _MARGIN
        near, to_the_row = (left, top + max(rows) + _CAPTION_PX), _NEAR
    side_px = (width - _MARGIN - near[0] - (to_the_row - 1) * _GAP) // to_the_row
    near_rows = math.ceil(squares / to_the_row)
    bottom = max(top + max(rows), near[1] + near_rows * (side_px + _WORDS_PX) if squares else 0)
    return _Sheet(width, bottom + _CAPTION_PX + _MARGIN, corners, near, side_px, to_the_row)


def _squares(shown: list[_Finding]) -> int:
    return len(shown) * (3 if len(shown) <= _FEW else 1)


# Index axes of the scan's upright grid (z, y, x) across, down and to the right of each plane.
_AXES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}


def _with_outlines(plane: Plane, shown: list[_Finding], grid: Geometry, centre) -> Image.Image:
    """A plane with the findings that it cuts and, on the coronal plane, the others faintly."""
    picture = Image.fromarray(plane.gray).convert("RGB")
    at = np.rint(grid.to_index(centre)).clip(0, np.array(grid.shape_zyx) - 1)
    top = grid.shape_zyx[0] - 1
    across, down, right = _AXES[plane.name]
    for found in reversed(shown):  # the best on top
        low, high = _in_grid(found.box, grid)
        is_cut = low[across] - 1 <= at[across] <= high[across] + 1
        if not is_cut and plane.name != "coronal":
            continue
        y1, y2 = low[down], high[down]
        if down == 0:
            y1, y2 = top - y2, top - y1
        place = np.add((low[right], y1, high[right], y2), 0.5)
        _outline(picture, place, found.color if is_cut else _faint(found.color), f"{found.number}")
    return picture


def _faint(color: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = ((c + 2 * d) // 3 for c, d in zip(color, DIM, strict=True))
    return red, green, blue


def _in_grid(box: Box, grid: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest index (z, y, x) of the ellipsoid that a box holds, on any grid."""
    corners = np.reshape(box.box_lps_mm, (2, 3))
    half = np.diff(corners, axis=0)[0] / 2
    to_index = np.linalg.inv(grid.steps_lps_mm.T)
    reach = np.sqrt(((to_index * half) ** 2).sum(axis=1))
    centre = grid.to_index(corners.mean(axis=0))
    return centre - reach, centre + reach


def _outline(picture: Image.Image, place, color, words: str) -> None:
    """A frame around `place` (x1, y1, x2, y2), never over it, and words at its upper right."""
    draw = ImageDraw.Draw(picture)
    middle = (np.array(place[:2]) + place[2:]) / 2
    half = np.maximum((np.array(place[2:]) - place[:2]) / 2 + 3, _LEAST_OUTLINE_PX / 2)
    (left, up), (right, low) = middle - half, middle + half
    draw.rectangle((left, up, right, low), outline=color, width=2)
    if right + 4 + font(_TEXT_PX).getlength(words) > picture.width:
        _write(draw, (left - 4, up), words, color, "rt", stroke=2)
    else:
        _write(draw, (right + 4, up), words, color, "lt", stroke=2)


def _draw_near(
    picture: Image.Image,
    sheet: _Sheet,
    volume: Volume,
    shown: list[_Finding],
    grid: Geometry,
    window_hu,
) -> None:
    """Draws the findings from near; a few of them in three planes."""
    draw = ImageDraw.Draw(picture)
    side_px = sheet.side_px
    largest = max(found.box.diameter_mm for found in shown)
    pixel_mm = float(np.clip(3 * largest, *_NEAR_MM)) / side_px
    up, back, left = grid.directions
    views = [("axial", (up, back, left), "RA")]
    if len(shown) <= _FEW:
        views += [("coronal", (back, -up, left), "RH"), ("sagittal", (left, -up, back), "AH")]
    for k, (found, view) in enumerate((found, view) for found in shown for view in views):
        name, directions, letters = view
        row, column = divmod(k, sheet.to_the_row)
        x = sheet.near[0] + column * (side_px + _GAP)
        y = sheet.near[1] + row * (side_px + _WORDS_PX)
        cut = {"side_px": side_px, "pixel_mm": pixel_mm, "window_hu": window_hu}
        gray, square = cut_around(volume, directions, found.centre_lps_mm, **cut)
        near = Image.fromarray(gray).convert("RGB")
        low, high = _in_grid(found.box, square)
        _outline(near, np.add((low[2], low[1], high[2], high[1]), 0.5), found.color, "")
        picture.paste(near, (x, y))
        _write(draw, (x + 6, y + side_px / 2), letters[0], DIM, "lm", stroke=1)
        _write(draw, (x + side_px / 2, y + 5), letters[1], DIM, "mt", stroke=1)
        if name == "axial":
            _describe(draw, found, (x, y + side_px + 8), side_px)
        else:
            _write(draw, (x, y + side_px + 8), name, DIM, "lt")
    draw_scale_bar(draw, sheet.near, (side_px, side_px), pixel_mm)


def _describe(draw: ImageDraw.ImageDraw, found: _Finding, corner, side_px: int) -> None:
    """Two lines under a square: number, label and score; diameter and height."""
    x, y = corner
    _write(draw, (x, y), f"{found.number}", found.color, "lt")
    _write(draw, (x + 18, y), shorten(found.box.label, 18), BRIGHT, "lt")
    _write(draw, (x + side_px, y), _score(found.box), BRIGHT, "rt")
    z_mm = f"z {found.centre_lps_mm[2]:.0f} mm"
    _write(draw, (x + 18, y + _LINE_PX), f"{found.box.diameter_mm:.1f} mm", BRIGHT, "lt")
    _write(draw, (x + side_px, y + _LINE_PX), z_mm, DIM, "rt")


def _write(draw: ImageDraw.ImageDraw, at, words: str, color, anchor: str, stroke: int = 0) -> None:
    draw.text(at, words, color, font(_TEXT_PX), anchor=anchor, stroke_width=stroke, stroke_fill=0)


def _summary(findings: Findings, score_threshold: float | None) -> str:
    boxes = findings.boxes
    if not boxes:
        return "no finding" + ("" if score_threshold is None else f" above {score_threshold:.2f}")
    sizes = ((box.diameter_mm, box.score) for box in boxes)
    words = format_boxes(*zip(*sizes, strict=True), "mm" if findings.modality == "ct" else "px")
    hidden = len(boxes) - _NEAR if findings.modality == "ct" else 0
    return words + (f" · the best {_NEAR} shown" if hidden > 0 else "")


def _score(box: Box) -> str:
    return format_score(box.score)


def _color(box: Box, findings: Findings) -> tuple[int, int, int]:
    values = {label.name: label.value for label in findings.classes}
    return label_color(values[box.label]) if box.label in values else FAINT
