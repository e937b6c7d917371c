"""preview.png: three planes of a scan, or a grey image, with what was found in them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fastmed.findings import Findings
from fastmed.volume import Volume
from fastmed.writers.annotate import annotate, draw_scale_bar
from fastmed.writers.atomic import write_atomically
from fastmed.writers.box_picture import boxed_image_picture, boxed_planes_picture
from fastmed.writers.legend import ROW_PX, draw_legend, legend_rows
from fastmed.writers.palette import BACKGROUND, label_color
from fastmed.writers.planes import Plane, cut_image, cut_planes, field_of_view
from fastmed.writers.thumbnail import THUMBNAIL, thumbnail

_PLANE_PX, _FLAT_PLANE_PX = 440, 560  # the longest in-plane side of the scan
_FLAT = 0.25  # of the height of the axial plane: less depth than that makes mere strips
_MARGIN, _GAP, _CAPTION_PX = 20, 12, 30
_FILL_ALPHA, _EDGE_ALPHA = 84, 255
_NARROWEST_LEGEND_PX = 200
_DETAIL = 2  # label pixels per picture pixel, so that outlines come out smooth


def write_preview(
    volume: Volume,
    findings: Findings,
    path: str | os.PathLike,
    *,
    window_hu: tuple[float, float] = (-160.0, 240.0),
    score_threshold: float | None = None,
    with_thumbnail: bool = False,
) -> None:
    """Writes preview.png: the axial, coronal and sagittal plane in which most was found.

    The patient's left is on the right of the picture, the head is up, all planes have one scale
    in mm. A scan without masks shows the planes through its centre; scores stand in the legend. A
    grey image is shown whole. A detection shows its best finding so, and the best few from near.

    window_hu: (low, high) shown as black and white. score_threshold: of a detection, what its
        findings are above. with_thumbnail: writes thumb.jpg beside it, the first plane alone.

    Raises FastmedError where the disk refuses.
    """
    if findings.boxes or score_threshold is not None:
        draw = _BOXED_PICTURES[findings.modality]
        picture, first_plane = draw(volume, findings, window_hu, score_threshold)
    else:
        picture, first_plane = _PICTURES[findings.modality](volume, findings, window_hu)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=2)
    write_atomically(path, [buffer.getvalue()])
    if with_thumbnail:
        write_atomically(Path(path).with_name(THUMBNAIL), [thumbnail(picture, first_plane)])


# Each way of drawing returns the picture and where the first plane stands in it: (left, top, right,
# bottom) in pixels.
_Drawn = tuple[Image.Image, tuple[int, int, int, int]]


def _planes_picture(volume: Volume, findings: Findings, window_hu) -> _Drawn:
    field, centre = field_of_view(volume, findings)
    depth_mm, *in_plane_mm = np.multiply(field.shape_zyx, field.spacing_mm_zyx)
    flat = depth_mm < _FLAT * in_plane_mm[0]
    pixel_mm = max(in_plane_mm) / (_FLAT_PLANE_PX if flat else _PLANE_PX)
    planes = cut_planes(
        volume,
        findings,
        field,
        centre,
        pixel_mm=pixel_mm,
        window_hu=window_hu,
        label_detail=_DETAIL,
    )
    return _compose(planes, findings, pixel_mm, flat)


def _image_picture(volume: Volume, findings: Findings, window_hu) -> _Drawn:
    pixel = max(volume.geometry.shape_zyx[1:]) / _FLAT_PLANE_PX
    plane = cut_image(volume, findings, pixel_mm=pixel, window_hu=window_hu, label_detail=_DETAIL)
    rows, columns = plane.gray.shape
    corner = (_MARGIN, _MARGIN + _CAPTION_PX)
    width = max(columns, _NARROWEST_LEGEND_PX) + 2 * _MARGIN
    legend_at = (_MARGIN, corner[1] + rows + _MARGIN - 4)
    legend = legend_rows(findings, width - 2 * _MARGIN, 3)
    height = legend_at[1] + len(legend) * ROW_PX + _MARGIN - 4
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    picture.paste(_overlay(plane), corner)
    annotate(draw, plane, corner)
    draw_legend(draw, legend, legend_at)
    return picture, (*corner, corner[0] + columns, corner[1] + rows)


# How a scan of each modality is shown.
_PICTURES = {"ct": _planes_picture, "grey": _image_picture}
_BOXED_PICTURES = {"ct": boxed_planes_picture, "grey": boxed_image_picture}


def _compose(planes, findings: Findings, pixel_mm: float, flat: bool) -> _Drawn:
    """Sets the planes in a row over the legend; of a flat scan, strips and legend at the side."""
    axial = planes[0]
    rows, columns = zip(*(plane.gray.shape for plane in planes), strict=True)
    left, top = _MARGIN, _MARGIN + _CAPTION_PX
    second = left + columns[0] + _GAP
    if flat:
        strip = max(rows[1], 2 * ROW_PX)
        corners = [(left, top), (second, top), (second, top + strip + _CAPTION_PX)]
        size = max(columns[1:])
        legend_at = (second, corners[2][1] + strip + _GAP)
        legend_height = max(top + rows[0] - legend_at[1], 3 * ROW_PX)
        legend = legend_rows(findings, size, legend_height // ROW_PX)
        width = second + size + _MARGIN
    else:
        corners = [(left, top), (second, top), (second + columns[1] + _GAP, top)]
        width = corners[2][0] + columns[2] + _MARGIN
        legend_at = (left, top + max(rows) + _MARGIN - 4)
        legend = legend_rows(findings, width - 2 * _MARGIN, 3)
    bottom = max(top + max(rows), legend_at[1] + len(legend) * ROW_PX)

    picture = Image.new("RGB", (width, bottom + _MARGIN - 4), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for plane, corner in zip(planes, corners, strict=True):
        picture.paste(_overlay(plane), corner)
        annotate(draw, plane, corner)
    draw_scale_bar(draw, corners[0], axial.gray.shape, pixel_mm)
    draw_legend(draw, legend, legend_at)
    return picture, (left, top, left + columns[0], top + rows[0])


def _overlay(plane: Plane) -> Image.Image:
    picture = Image.fromarray(plane.gray).convert("RGB")
    labels = plane.labels
    if not labels.any():
        return picture
    edge = np.zeros(labels.shape, dtype=bool)
    for reach in (1, 2):  # inside the border, one and a half picture pixels wide
        for axis in (0, 1):
            low = tuple(slice(None, -reach) if k == axis else slice(None) for k in (0, 1))
            high = tuple(slice(reach, None) if k == axis else slice(None) for k in (0, 1))
            differs = labels[low] != labels[high]
            edge[low] |= differs
            edge[high] |= differs
    edge &= labels > 0
    tint = _tints(int(labels.max())).take(2 * labels.astype(np.intp) + edge)
    tint = Image.frombuffer("RGBa", labels.shape[::-1], tint.tobytes(), "raw", "RGBa", 0, 1)
    tint = tint.reduce(_DETAIL).convert("RGBA")
    picture.paste(tint, mask=tint)
    return picture


def _tints(highest: int) -> np.ndarray:
    """[2 * (highest + 1)] uint32: fill and edge of each label as premultiplied RGBA bytes."""
    tints = np.zeros((2 * (highest + 1), 4), dtype=np.uint8)
    for value in range(1, highest + 1):
        for row, alpha in ((2 * value, _FILL_ALPHA), (2 * value + 1, _EDGE_ALPHA)):
            tints[row] = [round(c * alpha / 255) for c in label_color(value)] + [alpha]
    return tints.view(np.uint32)[:, 0]
