"""The final test: the best bundle on patients that the run never saw."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from fastmed import bundle as bundles
from fastmed.findings import Findings
from fastmed.metrics.classification import ClassificationScores
from fastmed.ops import dice_score, iou_score
from fastmed.spec import Spec
from fastmed.training.loop import Job
from fastmed.training.pictures import calibration_png
from fastmed.training.recipe import Recipe
from fastmed.training.stored_case import StoredCase
from fastmed.training.task_loss import build_loss
from fastmed.training.terminal import Terminal, figure
from fastmed.training.validate import CaseResult, classify, run_cases, summarise
from fastmed.writers.atomic import write_atomically
from fastmed.writers.label_picture import write_label_picture
from fastmed.writers.nifti import write_labels
from fastmed.writers.tables import write_json


def final_test(
    job: Job, cases: Sequence[StoredCase], best_epoch: int, device: str, terminal: Terminal
) -> dict[str, float | None]:
    """Judges the best bundle of a run; returns the mean scores, {} where nothing was held out.

    Writes test.json; of a classification predictions.csv and calibration.png; of a segmentation
    predictions/ with the label map of each case that has no truth, which is not scored.
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
        write_atomically(target / "predictions.csv", [predictions_csv(results, recipe).encode()])
        if (judged := classify(results, bootstraps=1000)) is not None:
            facts["classification"] = asdict(judged)
            shown += _shown(judged, spec)
            picture = calibration_png(
                [(b.probability, b.share, b.scans) for b in judged.calibration],
                judged.calibration_error,
            )
            write_atomically(target / "calibration.png", [picture])
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
        terminal.say(
            f"{len(facts['predicted_only'])} cases without truth: {target / 'predictions'}"
        )
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
    scores = summarise([result], recipe.spec) if result.counts is not None else {}
    return {"name": result.name, "patient": result.patient, "loss": result.loss, **scores}


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
