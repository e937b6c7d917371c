"""The legend of a picture: a colour, a name and a figure per label, the largest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageDraw

from fastmed.findings import Findings
from fastmed.writers.palette import BRIGHT, DIM, FAINT, font, label_color

ROW_PX = 26
_TEXT_PX = 14
_SWATCH_PX, _SPACE_PX, _BETWEEN_PX, _MORE_PX = 20, 7, 16, 90


@dataclass(frozen=True)
class Entry:
    """One label at `x` pixels from the legend's left; without a colour it is a plain remark."""

    x: float
    name: str
    figure: str = ""
    color: tuple[int, int, int] | None = None


def legend_rows(findings: Findings, width_px: float, most_rows: int) -> list[list[Entry]]:
    """Flows the labels that were found, or their scores, into rows.

    What has no room is counted at the end.
    """
    value_of = {label.name: label.value for label in findings.classes}
    found = _figures(findings)
    if not found:
        return [[Entry(0, "nothing found")]]
    rows, x = [[]], 0.0
    for rank, (label, figure) in enumerate(found):
        name = shorten(label)
        needed = _SWATCH_PX + font(_TEXT_PX).getlength(name + figure) + _SPACE_PX
        room = width_px - x - (_MORE_PX if len(rows) == most_rows else 0)
        if needed > room and rows[-1]:
            if len(rows) == most_rows:
                rows[-1].append(Entry(x, f"and {len(found) - rank} more"))
                break
            rows.append([])
            x = 0.0
        color = label_color(value_of[label]) if label in value_of else FAINT
        rows[-1].append(Entry(x, name, figure, color))
        x += needed + _BETWEEN_PX
    return rows


def draw_legend(draw: ImageDraw.ImageDraw, rows: list[list[Entry]], corner) -> None:
    """Draws rows of entries below and to the right of `corner` (x, y)."""
    for row, entries in enumerate(rows):
        middle = corner[1] + (row + 0.5) * ROW_PX
        for entry in entries:
            x = corner[0] + entry.x
            if entry.color:
                draw.rounded_rectangle((x, middle - 6, x + 12, middle + 6), 3, entry.color)
                x += _SWATCH_PX
            tone = BRIGHT if entry.color else DIM
            draw.text((x, middle), entry.name, tone, font(_TEXT_PX), anchor="lm")
            x += font(_TEXT_PX).getlength(entry.name) + _SPACE_PX
            draw.text((x, middle), entry.figure, DIM, font(_TEXT_PX), anchor="lm")


def format_size(volume_ml: float | None, voxels: int) -> str:
    """Formats a mask's size: its volume or, in a grey image, its pixels."""
    return f"{voxels} px" if volume_ml is None else format_ml(volume_ml)


def format_share(probability: float) -> str:
    """Formats a probability: 73.2 %."""
    return f"{100 * probability:.1f} %"


def format_score(score: float) -> str:
    """Formats the score of a box: 0.97."""
    return f"{score:.2f}"


def format_boxes(diameters: Sequence[float], scores: Sequence[float], unit: str) -> str:
    """Sums up the boxes of a scan: 3 findings · largest 12.4 mm · highest score 0.97."""
    if not scores:
        return "no finding"
    largest, highest = f"{max(diameters):.1f} {unit}", format_score(max(scores))
    if len(scores) == 1:
        return f"1 finding · {largest} · score {highest}"
    return f"{len(scores)} findings · largest {largest} · highest score {highest}"


def format_ml(volume_ml: float) -> str:
    """Formats a volume with about three figures: 1126 ml, 22.4 ml, 0.35 ml."""
    digits = 0 if volume_ml >= 100 else 1 if volume_ml >= 10 else 2
    return f"{volume_ml:.{digits}f} ml"


def _figures(findings: Findings) -> list[tuple[str, str]]:
    """Each label that was found, or scored, with its figure; the largest first."""
    if findings.scores:
        ranked = sorted(findings.scores, key=lambda score: -score.probability)
        return [(score.label, format_share(score.probability)) for score in ranked]
    ranked = sorted((m for m in findings.masks if m.voxels), key=lambda mask: -mask.voxels)
    return [(mask.label, format_size(mask.volume_ml, mask.voxels)) for mask in ranked]


def shorten(name: str, longest: int = 40) -> str:
    """Makes a name printable and at most `longest` characters long."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= longest else name[: longest - 1] + "…"
