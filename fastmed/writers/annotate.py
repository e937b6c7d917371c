"""What stands around and in every plane of a picture: its name, the patient's sides, a scale."""

from __future__ import annotations

from PIL import ImageDraw

from fastmed.writers.palette import BRIGHT, DIM, FAINT, font
from fastmed.writers.planes import Plane


def annotate(draw: ImageDraw.ImageDraw, plane: Plane, corner: tuple[int, int]) -> None:
    """Writes a plane's name over it, the patient's sides at its edges, ticks where others cut."""
    rows, columns = plane.gray.shape
    x, y = corner
    draw.text((x, y - 10), plane.name.upper(), DIM, font(12), anchor="ls")
    if plane.crossing is None:
        return
    across, down = x + plane.crossing[0] * columns, y + plane.crossing[1] * rows
    for start, end in (
        ((across, y - 6), (across, y - 2)),
        ((across, y + rows + 1), (across, y + rows + 5)),
        ((x - 6, down), (x - 2, down)),
        ((x + columns + 1, down), (x + columns + 5, down)),
    ):
        draw.line((start, end), FAINT, 1)
    at_left, at_right, at_top, at_bottom = plane.letters
    middle_x, middle_y = x + columns / 2, y + rows / 2
    letters = [(at_left, x + 7, middle_y, "lm"), (at_right, x + columns - 7, middle_y, "rm")]
    if rows > 90:
        letters.append((at_top, middle_x, y + 6, "ma"))
        letters.append((at_bottom, middle_x, y + rows - 7, "md"))
    for letter, *at, anchor in letters:
        draw.text(
            at, letter, BRIGHT, font(14), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0)
        )


def draw_scale_bar(draw: ImageDraw.ImageDraw, corner, shape, pixel_mm: float) -> None:
    """Draws a bar of a round length in mm into the lower left of a plane of `shape` (rows,
    columns) whose upper left is `corner`.
    """
    rows, columns = shape
    longest = columns * pixel_mm / 3.5
    length_mm = max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm <= longest), default=1)
    x, y = corner[0] + 12, corner[1] + rows - 14
    end = x + length_mm / pixel_mm
    draw.rectangle((x - 1, y - 1, end + 1, y + 2), (0, 0, 0))
    draw.rectangle((x, y, end, y + 1), BRIGHT)
    text = f"{length_mm // 10} cm" if length_mm >= 10 else f"{length_mm} mm"
    draw.text((x, y - 6), text, BRIGHT, font(12), anchor="ls", stroke_width=2, stroke_fill=0)
