"""Scores as tables on the terminal, and what a reader has to know of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastmed.inference.display import Display, scores_table
from fastmed.metrics.froc import RATES


def show_scores(scores: dict[str, Any], display: Display) -> None:
    """Prints the scores of a task, as `evaluate` has them, on stdout."""
    show = {"segmentation": _show_masks, "detection": _show_boxes, "classification": _show_labels}
    show[scores["task"]](scores, display)


def _show_masks(scores: dict[str, Any], display: Display) -> None:
    columns = (
        "case", "label", "Dice", "IoU", "ml", "truth ml", "error %", "HD95 mm", "surface Dice",
    )  # fmt: skip
    rows = [
        (case, *row) for case, found in scores["per_case"].items() for row in _label_rows(found)
    ]
    rows += [("mean", *row) for row in _label_rows(scores["mean"])]
    scores_table(columns, rows)
    for case, found in scores["per_case"].items():
        for warning in found["warnings"]:
            display.say(f"{case}: {warning}")


def _label_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            label,
            _number(row["dice"], 4),
            _number(row["iou"], 4),
            _number(row["volume_ml"], 1),
            _number(row["truth_volume_ml"], 1),
            _number(row["volume_error_percent"], 1),
            _number(row["hausdorff_95_mm"], 2),
            _number(row["surface_dice"], 4),
        )
        for label, row in found["labels"].items()
    ]


def _show_labels(scores: dict[str, Any], display: Display) -> None:
    low, high = (_number(end, 4) for end in scores["auc_band"])
    rows = [("scans", str(scores["scans"])), ("ROC AUC", _number(scores["auc"], 4))]
    rows += [("  95 % of resamples", f"{low} to {high} ({scores['auc_resamples']} resamples)")]
    rows += [
        (name.replace("_", " "), _number(scores[name], 4))
        for name in ("accuracy", "precision", "recall", "f1", "calibration_error")
    ]
    scores_table(("score", ""), rows)
    header = ("truth \\ predicted", *scores["classes"])
    confusion = zip(scores["classes"], scores["confusion"].tolist(), strict=True)
    scores_table(header, [(name, *map(str, counts)) for name, counts in confusion])


def _show_boxes(scores: dict[str, Any], display: Display) -> None:
    counts = [("scans", str(scores["scans"])), ("findings", str(scores["findings"]))]
    if scores["luna16"]:
        counts += [
            ("marks, kept", f"{scores['marks']}, {scores['kept_marks']}"),
            ("hits", str(scores["hits"])),
            ("false positives", str(scores["false_positives"])),
            ("AP", _number(scores["ap"], 4)),
        ]
    else:
        counts += [("predictions", str(scores["predictions"]))]
        counts += [("mean IoU", _number(scores["mean_iou"], 4))]
        counts += [(f"AP at IoU {iou}", _number(ap, 4)) for iou, ap in scores["ap"].items()]
        counts += [("mAP", _number(scores["map"], 4))]
        if len(scores["labels"]) > 1:
            header = ("label", "findings", "predictions", *(f"AP at {iou}" for iou in scores["ap"]))
            scores_table(header, [_box_row(*item) for item in scores["labels"].items()])
    scores_table(("score", ""), [*counts, ("CPM", _number(scores["cpm"], 4))])
    scores_table(
        ("false positives per scan", *(f"{rate:g}" for rate in RATES)),
        [
            ("sensitivity", *(_number(one, 4) for one in scores["sensitivities"])),
            ("  2.5 % of resamples", *(_number(low, 4) for low, _ in scores["band"])),
            ("  97.5 %", *(_number(high, 4) for _, high in scores["band"])),
        ],
    )
    if scores["luna16"] and any(scores["left_out"].values()):
        left_out = ", ".join(f"{n} {what}" for what, n in scores["left_out"].items() if n)
        display.say(f"Left out, for the list lacks their series: {left_out}.")
    for what, scans in scores.get("assumed", {}).items():
        if scans:
            without = what.replace("_", " ")
            display.say(f"Scans in one table alone, which count as {without}: {scans}.")


def _box_row(label: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    aps = (_number(ap, 4) for ap in row["ap"].values())
    return (label, str(row["findings"]), str(row["predictions"]), *aps)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
