"""Figures of one row of report.html: what was found, in words, and in numbers to sort by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastmed.writers.legend import format_boxes, format_score, format_share, format_size
from fastmed.writers.palette import label_color

_MOST_SHOWN = 6  # findings named in a row of the table; all can be filtered and sorted by


@dataclass(frozen=True)
class Item:
    """One finding: its label, its figure in words, and its colour as #rrggbb ("" without one)."""

    label: str
    text: str
    color: str = ""


@dataclass(frozen=True)
class RowFigures:
    """What a row shows and is sorted by.

    words: a summary before the list. shown: the first few, the largest first; more: how many
    others there are.
    by_label: "0=12.5 3=0.97", each label that was found with its largest figure: volume (pixels
    of a grey image), score of a box, or probability of the likeliest class.
    figure: the largest, to sort by where no label is chosen; of a classification, the largest
    probability of any class but the first, which stands for nothing found. None without findings.
    """

    words: str = ""
    shown: tuple[Item, ...] = ()
    more: int = 0
    by_label: str = ""
    figure: str | None = None


class Figures:
    """Numbers the labels as they are met: `labels` are all of them, once every row was asked."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    @property
    def labels(self) -> Mapping[str, int]:
        """The labels by their numbers, in the order of the numbers."""
        return self._number

    def of(self, row) -> RowFigures:
        """The figures of a row, from the content of its findings.json."""
        findings = row.findings or {}
        if boxes := findings.get("boxes"):
            return self._boxes(boxes, "px" if findings.get("modality") == "grey" else "mm")
        if scores := findings.get("scores"):
            return self._scores(scores)
        return self._masks(findings.get("masks") or ())

    def _masks(self, masks) -> RowFigures:
        found = [(k, mask) for k, mask in enumerate(masks, 1) if mask["voxels"]]
        found.sort(key=lambda item: -item[1]["voxels"])
        items = [
            Item(mask["label"], format_size(mask["volume_ml"], mask["voxels"]), _color(k))
            for k, mask in found
        ]
        sizes = [
            (mask["label"], mask["voxels"] if mask["volume_ml"] is None else mask["volume_ml"])
            for _, mask in found
        ]
        return self._row("", items, sizes)

    def _boxes(self, boxes, unit: str) -> RowFigures:
        ranked = sorted(boxes, key=lambda box: -box["score"])
        items = [
            Item(box["label"], f"{format_score(box['score'])}, {box['diameter_mm']:.1f} {unit}")
            for box in ranked
        ]
        words = format_boxes([b["diameter_mm"] for b in boxes], [b["score"] for b in boxes], unit)
        return self._row(words, items, [(box["label"], box["score"]) for box in ranked])

    def _scores(self, scores) -> RowFigures:
        ranked = sorted(enumerate(scores), key=lambda item: -item[1]["probability"])
        items = [
            Item(score["label"], format_share(score["probability"]), _color(k) if k else "")
            for k, score in ranked
        ]
        likeliest = ranked[0][1]
        figure = max((s["probability"] for s in scores[1:]), default=likeliest["probability"])
        found = [(likeliest["label"], likeliest["probability"])]
        return self._row("", items, found, figure)

    def _row(self, words: str, items: list[Item], found, figure: float | None = None):
        largest: dict[str, float] = {}
        for label, size in found:
            largest[label] = max(size, largest.get(label, size))
        if figure is None and largest:
            figure = max(largest.values())
        numbers = (f"{self._numbered(label)}={size:.6g}" for label, size in largest.items())
        return RowFigures(
            words=words,
            shown=tuple(items[:_MOST_SHOWN]),
            more=max(0, len(items) - _MOST_SHOWN),
            by_label=" ".join(numbers),
            figure=None if figure is None else f"{figure:.6g}",
        )

    def _numbered(self, label: str) -> int:
        return self._number.setdefault(label, len(self._number))


def _color(value: int) -> str:
    return f"#{bytes(label_color(value)).hex()}"
