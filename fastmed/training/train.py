"""fastmed train: from a folder of annotated scans to a bundle and its scores on unseen patients."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmed import bundle as bundles
from fastmed import losses
from fastmed.errors import UsageError
from fastmed.training import balance, layouts
from fastmed.training.cache import Cache
from fastmed.training.cases import Case
from fastmed.training.loop import Job, launch
from fastmed.training.pictures import calibration_png
from fastmed.training.recipe import Recipe, read_recipe
from fastmed.training.run_folder import SPLIT_FILE, open_run
from fastmed.training.split import Split, split
from fastmed.training.stored_case import StoredCase
from fastmed.training.survey import Survey, survey
from fastmed.training.terminal import Terminal
from fastmed.training.validate import CaseResult, classify, run_cases, summarise
from fastmed.writers.atomic import write_atomically

_READERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class TrainingRun:
    """What became of a run.

    best, last: bundles. epochs: trained. test: scores on the held-out patients; empty without.
    """

    path: Path
    epochs: int
    best_epoch: int
    test: dict[str, float | None]

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def last(self) -> Path:
        return self.path / "last"


def train(
    recipe: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    devices: int = 1,
    device: str = "auto",
    resume: bool = False,
    settings: Iterable[str] = (),
    quiet: bool = False,
) -> TrainingRun:
    """Trains a pipeline on annotated scans, and tests it on patients that it never saw.

    recipe: one of `fastmed.training.recipe.recipe_names()`, or a TOML file.
    data: a folder or file in one of the layouts of docs/data.md.
    output: the run's folder, new unless `resume`; defaults to ./fastmed-runs/<recipe's name>.
    devices: processes that train together. device: "auto", "cpu", "cuda" or "cuda:1".
    resume: go on with a run that was stopped, to the same end as without the stop.
    settings: changes to the recipe, as "loop.epochs=5".

    Raises UsageError for a wrong argument, DataError naming every case that is wrong, and
    FastmedError where the disk refuses; the state of the last epoch is kept then.
    """
    if devices < 1:
        raise UsageError(f"--devices {devices}: expected at least 1")
    chosen = read_recipe(recipe, settings)
    target = Path(output) if output is not None else Path("fastmed-runs") / Path(recipe).stem
    run = open_run(target, chosen, resume=resume)
    terminal = Terminal(quiet=quiet)
    cases = layouts.discover(Path(data), chosen.spec)
    found = survey(cases, chosen.spec, chosen.values)
    write_atomically(target / "survey.txt", [f"{found}\n".encode()])
    terminal.say(str(found))
    parts = _split(target / SPLIT_FILE, cases, found, chosen)
    terminal.say(
        f"{len(parts.train)} cases to train, {len(parts.val)} to validate, "
        f"{len(parts.test)} to test, by patient; {target / SPLIT_FILE}"
    )
    stored = _store(cases, parts, chosen, terminal)
    loss_name, weights, reason = _loss(stored["train"], chosen)
    if reason:
        terminal.say(reason)
    if device == "auto" and not torch.cuda.is_available():
        terminal.say("no CUDA device: training runs on the CPU")
    trained_on = (
        f"{len(parts.train)} cases of {Path(os.path.abspath(data)).name}, recipe {chosen.spec.name}"
    )
    job = Job(
        recipe=chosen,
        run=replace(run, trained_on=trained_on),
        train=stored["train"],
        val=stored["val"],
        loss_name=loss_name,
        class_weights=weights,
        quiet=quiet,
    )
    progress = launch(job, devices=devices, device=device)
    scores = _test(target, chosen, stored["test"], job, progress.best_epoch, terminal)
    terminal.say(
        f"best epoch {progress.best_epoch}: fastmed infer --model {target / 'best'} --input ..."
    )
    return TrainingRun(target, progress.epoch, progress.best_epoch, scores)


def _split(path: Path, cases: Sequence[Case], found: Survey, recipe: Recipe) -> Split:
    """The split of an earlier start where there is one, else a new one, written at once."""
    if path.is_file():
        return Split.read(path, cases)
    made = split(cases, shares=recipe.loop.shares, seed=recipe.loop.seed, strata=found.strata())
    made.write(path)
    return made


def _store(
    cases: Sequence[Case], parts: Split, recipe: Recipe, terminal: Terminal
) -> dict[str, tuple[StoredCase, ...]]:
    """Decodes every case once; what is judged is kept whole, whatever training crops."""
    by_name = {case.name: case for case in cases}
    limit = int(recipe.loop.cache_gb * 1e9)
    cache = Cache(Cache.default_folder(), limit_bytes=limit)
    crops = {"train": recipe.sampling.crop, "val": "scan", "test": "scan"}
    wanted = [(part, name) for part in crops for name in getattr(parts, part)]

    def store(entry: tuple[str, str]) -> StoredCase:
        part, name = entry
        return cache.stored(by_name[name], recipe.spec, recipe.values, crops[part])

    with ThreadPoolExecutor(_READERS) as pool:
        made = list(terminal.tracked(pool.map(store, wanted), "preparing", len(wanted)))
    return {
        part: tuple(case for (of, _), case in zip(wanted, made, strict=True) if of == part)
        for part in crops
    }


def _loss(cases: Sequence[StoredCase], recipe: Recipe) -> tuple[str, tuple[float, ...] | None, str]:
    """The loss's name, the weights of the classes, and a sentence where it was chosen here."""
    name, reason, method = recipe.loss.name, "", recipe.loss.class_weights
    if recipe.spec.task != "classification":
        if name == "auto" or method != "none":
            raise UsageError("loss.name auto and loss.class_weights are for classifications")
        return name, None, ""
    targets = [case.case.target for case in cases]
    classes = (recipe.spec.negative, *(label.name for label in recipe.spec.labels))
    if name == "auto":
        choice = balance.choose_loss(targets, class_names=classes)
        name, reason = choice.name, choice.reason
        if choice.weighted and method == "none":
            method = "inverse"
    if method == "none":
        return name, None, reason
    counts = [targets.count(k) for k in range(len(classes))]
    weights = balance.class_weights(counts, method, beta=recipe.loss.beta, class_names=classes)
    return name, tuple(float(w) for w in weights), reason


def _test(
    target: Path,
    recipe: Recipe,
    cases: Sequence[StoredCase],
    job: Job,
    best_epoch: int,
    terminal: Terminal,
) -> dict[str, float | None]:
    """Judges the best bundle on the held-out patients: test.json, test.csv, predictions.csv."""
    if not cases:
        terminal.say("no test cases: nothing was held out")
        return {}
    network = bundles.read(target / "best").network()
    weights = None if job.class_weights is None else torch.tensor(job.class_weights)
    classes = recipe.spec.num_classes
    loss = losses.build(job.loss_name, num_classes=classes, class_weights=weights)
    results = run_cases(network, cases, recipe.spec, loss, "cpu")
    scores = summarise(results, recipe.spec)
    facts: dict[str, Any] = {"best_epoch": best_epoch, "cases": len(results), "mean": scores}
    if recipe.spec.task == "classification":
        write_atomically(target / "predictions.csv", [_predictions(results, recipe).encode()])
        if (judged := classify(results, bootstraps=1000)) is not None:
            facts["classification"] = asdict(judged)
            picture = calibration_png(
                [(b.probability, b.share, b.scans) for b in judged.calibration],
                judged.calibration_error,
            )
            write_atomically(target / "calibration.png", [picture])
    per_case = [_row(result, recipe) for result in results]
    facts["per_case"] = per_case
    write_atomically(target / "test.json", [json.dumps(facts, indent=2, default=list).encode()])
    terminal.table(
        f"Test, {len(results)} cases held out, weights of epoch {best_epoch}",
        ("score", "value"),
        scores.items(),
    )
    return scores


def _row(result: CaseResult, recipe: Recipe) -> dict[str, Any]:
    scores = summarise([result], recipe.spec) if result.counts is not None else {}
    return {"name": result.name, "patient": result.patient, "loss": result.loss, **scores}


def _predictions(results: Sequence[CaseResult], recipe: Recipe) -> str:
    """predictions.csv: a row per scan, its class and a probability per class."""
    names = [recipe.spec.negative, *(label.name for label in recipe.spec.labels)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "patient", "target", *(f"p_{name}" for name in names)])
    for result in results:
        target = "" if result.target is None else result.target
        writer.writerow([result.name, result.patient, target, *result.probabilities])
    return text.getvalue()
