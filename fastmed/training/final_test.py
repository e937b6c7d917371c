"""The final test: the best bundle on patients that the run never saw."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from fastmed import bundle as bundles
from fastmed.findings import Findings
from fastmed.metrics.classification import ClassificationScores
from fastmed.metrics.detection import DetectionScores
from fastmed.metrics.froc import RATES
from fastmed.ops import dice_score, iou_score
from fastmed.spec import Spec
from fastmed.training.loop import Job
from fastmed.training.pictures import calibration_png
from fastmed.training.recipe import Recipe
from fastmed.training.stored_case import StoredCase
from fastmed.training.task_loss import build_loss
from fastmed.training.terminal import Terminal, figure
from fastmed.training.validate import CaseResult, classify, detect, run_cases, summarise
from fastmed.writers.atomic import write_atomically
from fastmed.writers.label_picture import write_label_picture
from fastmed.writers.nifti import write_labels
from fastmed.writers.tables import write_json

PREDICTIONS = "predictions.csv"


def final_test(
    job: Job, cases: Sequence[StoredCase], best_epoch: int, device: str, terminal: Terminal
) -> dict[str, float | None]:
    """Judges the best bundle of a run; returns the mean scores, {} where nothing was held out.

    Writes test.json; of a classification predictions.csv and calibration.png; of a detection
    predictions.csv with a row per finding; of a segmentation predictions/ with the label map of
    each case that has no truth, which is not scored.
    """
    if not cases:
        terminal.say("no test cases: nothing was held out")
        return {}
    recipe, target, spec = job.recipe, job.run.path, job.recipe.spec
    network = bundles.read(target / "best").network().to(device)
    loss = build_loss(recipe, job.loss_name, job.class_weights)

    def keep(case: StoredCase, findings: Findings) -> None:
        if case.case.has_truth or findings.labels is None:
            return
        ending, write = (
            (".png", write_label_picture) if spec.modality == "grey" else (".nii.gz", write_labels)
        )
        write(findings, target / "predictions" / f"{case.case.name}{ending}")

    with terminal.counted("test", len(cases)) as progress:
        results = run_cases(
            network, cases, spec, loss.to(device), device, progress=progress, keep=keep
        )
    scored = [result for result in results if result.loss is not None]
    scores = summarise(scored, spec) if scored else {}
    facts: dict[str, Any] = {"best_epoch": best_epoch, "cases": len(scored), "mean": scores}
    shown = list(scores.items())
    if spec.task == "classification":
        write_atomically(target / PREDICTIONS, [predictions_csv(results, recipe).encode()])
        if (judged := classify(results, bootstraps=1000)) is not None:
            facts["classification"] = asdict(judged)
            shown += _shown(judged, spec)
            picture = calibration_png(
                [(b.probability, b.share, b.scans) for b in judged.calibration],
                judged.calibration_error,
            )
            write_atomically(target / "calibration.png", [picture])
    elif spec.task == "detection":
        write_atomically(target / PREDICTIONS, [marks_csv(results, cases, spec).encode()])
        if (found := detect(results, bootstraps=1000)) is not None:
            facts["detection"] = _detection_facts(found)
            shown += [
                (f"sensitivity at {rate:g} false positives per scan", sensitivity)
                for rate, sensitivity in zip(RATES, found.froc.sensitivities, strict=True)
            ]
    elif scored:
        facts["labels"] = _per_label(scored, spec)
        if len(spec.labels) > 1:
            shown += [
                (f"{score}, {label}", value)
                for label, own in facts["labels"].items()
                for score, value in own.items()
            ]
    facts["per_case"] = [_row(result, recipe) for result in scored]
    facts["predicted_only"] = [result.name for result in results if result.loss is None]
    write_json(facts, target / "test.json")
    if facts["predicted_only"]:
        place = "predictions" if spec.task == "segmentation" else PREDICTIONS
        terminal.say(f"{len(facts['predicted_only'])} cases without truth: {target / place}")
    if scored:
        terminal.table(
            f"Test, {len(scored)} cases held out, weights of epoch {best_epoch}",
            ("score", "value"),
            shown,
        )
    return scores


def _shown(judged: ClassificationScores, spec: Spec) -> list[tuple[str, Any]]:
    """What the table says of a classification beside its means."""
    low, high = (figure(float(end)) for end in judged.auc_band)
    rows = [
        ("precision", float(judged.precision)),
        ("recall", float(judged.recall)),
        ("auc, 95 % of resamples", f"{low} to {high}"),
        ("calibration error", float(judged.calibration_error)),
    ]
    names = (spec.negative, *(label.name for label in spec.labels))
    for name, counts in zip(names, judged.confusion.tolist(), strict=True):
        said = ", ".join(f"{n} {other}" for n, other in zip(counts, names, strict=True))
        rows.append((f"of {name}, said", said))
    return rows


def _per_label(results: Sequence[CaseResult], spec: Spec) -> dict[str, dict[str, float | None]]:
    """Mean Dice and IoU of each label over the cases that have it, in truth or prediction."""
    counts = torch.stack([result.counts for result in results])
    means = {"dice": dice_score(counts).nanmean(0), "iou": iou_score(counts).nanmean(0)}
    return {
        label.name: {
            name: None if math.isnan(mean[label.value]) else float(mean[label.value])
            for name, mean in means.items()
        }
        for label in spec.labels
    }


def _row(result: CaseResult, recipe: Recipe) -> dict[str, Any]:
    is_scored = result.counts is not None or result.truth
    scores = summarise([result], recipe.spec) if is_scored else {}
    return {"name": result.name, "patient": result.patient, "loss": result.loss, **scores}


def _detection_facts(found: DetectionScores) -> dict[str, Any]:
    return {
        "scans": found.scans,
        "findings": found.findings,
        "predictions": found.predictions,
        "mean_iou": found.mean_iou,
        "ap": {f"{iou:g}": ap for iou, ap in found.ap.items()},
        "map": found.map,
        "cpm": found.froc.cpm,
        "false_positives_per_scan": RATES,
        "sensitivities": found.froc.sensitivities,
        "band": found.froc.band,
    }


def marks_csv(results: Sequence[CaseResult], cases: Sequence[StoredCase], spec: Spec) -> str:
    """predictions.csv of a detection: a row per finding, by case and falling score.

    In 3D its centre as LUNA16 has marks, so that `fastmed evaluate --luna16` reads it, and its box,
    all in LPS mm; in 2D its slice and its box in pixels of the network's grid.
    """
    names = {label.value: label.name for label in spec.labels}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    corners = [axis + end for end in "12" for axis in "xyz"[: spec.dimensions]]
    head = ["name", "slice"]
    if spec.dimensions == 3:
        head = ["seriesuid", "coordX", "coordY", "coordZ"]
    writer.writerow([*head, "probability", "label", *corners])
    for result, case in zip(results, cases, strict=True):
        places = case.slices if spec.dimensions == 2 else (None,)
        for place, (boxes, scores, labels) in zip(places, result.found, strict=True):
            for row in np.argsort(-scores, kind="stable"):
                box = boxes[row]
                where = [place] if spec.dimensions == 2 else ((box[:3] + box[3:]) / 2).tolist()
                said = [*where, float(scores[row]), names[int(labels[row])], *box.tolist()]
                writer.writerow([result.name, *said])
    return text.getvalue()


def predictions_csv(results: Sequence[CaseResult], recipe: Recipe) -> str:
    """predictions.csv: a row per scan, its class and a probability per class."""
    names = [recipe.spec.negative, *(label.name for label in recipe.spec.labels)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "patient", "target", *(f"p_{name}" for name in names)])
    for result in results:
        target = "" if result.target is None else result.target
        writer.writerow([result.name, result.patient, target, *result.probabilities])
    return text.getvalue()
