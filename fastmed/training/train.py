"""fastmed train: from a folder of annotated scans to a bundle and its scores on unseen patients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from fastmed.training import balance, layouts
from fastmed.training.cache import Cache
from fastmed.training.cases import Case
from fastmed.training.final_test import final_test
from fastmed.training.loop import Job
from fastmed.training.processes import choose_devices, launch
from fastmed.training.recipe import Recipe, read_recipe
from fastmed.training.rehearsal import rehearse
from fastmed.training.run_folder import SPLIT_FILE, open_run
from fastmed.training.split import Split, split
from fastmed.training.stored_case import StoredCase
from fastmed.training.survey import Survey, survey
from fastmed.training.terminal import Terminal

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
    chosen = read_recipe(recipe, settings)
    kind, which = choose_devices(chosen, devices=devices, device=device)
    parameters = rehearse(chosen, batch_size=chosen.loop.batch_size // devices)
    target = Path(output) if output is not None else Path("fastmed-runs") / Path(recipe).stem
    run = open_run(target, chosen, resume=resume)
    terminal = Terminal(quiet=quiet)
    if device == "auto" and kind == "cpu":
        terminal.say("no CUDA device: training runs on the CPU")
    terminal.say(f"{chosen.spec.network.name}: {parameters:,} parameters")
    cases = layouts.discover(Path(data), chosen.spec)
    found = survey(cases, chosen.spec, chosen.values)
    terminal.say(str(found))
    parts = _split(target / SPLIT_FILE, cases, found, chosen)
    stored = _store(cases, parts, chosen, terminal)
    # From here on the folder is a run's: until the data proved right, nothing was written to it.
    run.begin(chosen, {SPLIT_FILE: parts.text(), "survey.txt": f"{found}\n"})
    terminal.say(
        f"{len(parts.train)} cases to train, {len(parts.val)} to validate, "
        f"{len(parts.test)} to test, by patient; {target / SPLIT_FILE}"
    )
    loss_name, weights, reason = _loss(stored["train"], chosen)
    if reason:
        terminal.say(reason)
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
    tester = f"cuda:{which[0] if isinstance(which, list) else 0}" if kind == "cuda" else "cpu"
    scores = final_test(job, stored["test"], progress.best_epoch, tester, terminal)
    terminal.say(
        f"best epoch {progress.best_epoch}: fastmed infer --model {target / 'best'} --input ..."
    )
    return TrainingRun(target, progress.epoch, progress.best_epoch, scores)


def _split(path: Path, cases: Sequence[Case], found: Survey, recipe: Recipe) -> Split:
    """The split of an earlier start where there is one, else a new one."""
    if path.is_file():
        return Split.read(path, cases)
    return split(cases, shares=recipe.loop.shares, seed=recipe.loop.seed, strata=found.strata())


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
