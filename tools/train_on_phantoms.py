"""Each recipe from nothing to scores: python tools/train_on_phantoms.py RECIPE [--output DIR]

Makes phantoms, trains the recipe on them, runs the best bundle over phantoms that it never saw,
scores that, and prints it beside what is asked and, of liver, chest and nodules, beside the best
plain finder on the same phantoms. The exit status is 1 where something asked is missed. What is
made already in the output folder is used again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodule_baseline
import threshold_baseline

import fastmed
from fastmed.phantom_scans import write_phantoms


@dataclass(frozen=True)
class Plan:
    """What a recipe is trained and tested on.

    share, test_share: of positive scans. goal: the score that is asked for, and its least value.
    baseline: of the best plain finder on the same phantoms. most: what it may reach for a score of
        the network's, else the phantoms are too easy.
    """

    kind: str
    count: int
    test_count: int
    settings: tuple[str, ...] = ()
    share: float | None = None
    test_share: float | None = None
    goal: tuple[str, float] = ("dice", 0.95)
    baseline: Callable[[Path], float] | None = None
    most: Callable[[float], float] = lambda score: score - 0.2


def _plain_nodules(test: Path) -> float:
    tuning = _phantoms(test.parent / "tuning", "nodules", 16, TUNING_SEED, None)
    return nodule_baseline.best_finder(tuning, test)


PLANS = {
    "liver-unet3d": Plan(
        "liver", 160, 12,
        ("grid.spacing_mm_zyx=[4,4,4]", "tiles.size_zyx=[32,80,96]", "sampling.samples_per_case=2",
         "loop.epochs=10", "loop.validate_every=2", "loop.shares=[0.84,0.08,0.08]",
         "optimiser.learning_rate=2e-3", "optimiser.warmup_steps=30"),
        baseline=threshold_baseline.liver,
    ),
    "lung-resnet3d": Plan(
        "chest", 1200, 300,
        ("grid.size_zyx=[64,64,64]", "network.base_channels=32", "optimiser.learning_rate=5e-4",
         "optimiser.schedule=cosine", "optimiser.final_learning_rate=1e-5",
         "optimiser.warmup_steps=40", "loop.patience=0", "loop.epochs=24"), 0.5, 0.1,
        goal=("auc", 0.95), baseline=threshold_baseline.chest,
    ),
    "lesion-unet2d": Plan("lesions", 200, 60),
    "lung-unet2d-png": Plan(
        "lungs", 60, 6, ("network.base_channels=16", "loop.epochs=4"), goal=("dice", 0.97)
    ),
    "nodule-ssd3d": Plan(
        "nodules", 320, 45, ("loop.validate_every=110", "loop.shares=[0.975,0.025,0]"),
        goal=("cpm", 0.90), baseline=_plain_nodules, most=lambda score: score / 2,
    ),
}  # fmt: skip
TEST_SEED = 100_000  # far from the seeds of training
TUNING_SEED = 200_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=PLANS)
    parser.add_argument("--output", type=Path, default=Path("build/train-on-phantoms"))
    arguments = parser.parse_args()
    plan, folder = PLANS[arguments.recipe], arguments.output / arguments.recipe
    train = _phantoms(folder / "train", plan.kind, plan.count, 0, plan.share)
    test = _phantoms(folder / "test", plan.kind, plan.test_count, TEST_SEED, plan.test_share)
    run = fastmed.train(
        arguments.recipe, train, folder / "run", resume=True, settings=plan.settings
    )
    score = {"chest": _classification, "nodules": _detection}.get(plan.kind, _segmentation)
    found = score(run.best, test, folder / "results")
    held_out = {name: value for name, value in run.test.items() if name in ("dice", "auc", "cpm")}
    name, least = plan.goal
    print(f"\n{arguments.recipe}: asked {name} >= {least}")
    print(f"  on the held-out phantoms of the run: {_figures(held_out)}")
    print(f"  on {plan.test_count} unseen phantoms, by fastmed infer: {_figures(found)}")
    is_met = found[name] >= least
    if plan.baseline is not None:
        print()
        plain = plan.baseline(test)
        most = plan.most(found[name])
        print(f"\n  the best plain finder on them: {name} {plain:.4f}, at most {most:.4f} is asked")
        is_met &= plain <= most
    print(f"  {'met' if is_met else 'MISSED'}")
    return int(not is_met)


def _phantoms(folder: Path, kind: str, count: int, seed: int, share: float | None) -> Path:
    done = folder / ".complete"
    if not done.is_file():
        print(f"making {count} phantoms in {folder} ...", file=sys.stderr)
        write_phantoms(kind, folder, count=count, seed=seed, positive_share=share)
        done.touch()
    return folder


def _segmentation(bundle: Path, test: Path, results: Path) -> dict[str, Any]:
    fastmed.infer(test / "image", results, model=bundle, write=["nifti", "json", "csv"], quiet=True)
    mean = fastmed.evaluate(results, test / "label", task="segmentation", quiet=True).scores["mean"]
    (label,) = mean["labels"].values()
    return {"dice": label["dice"], "iou": label["iou"], "hausdorff_95_mm": label["hausdorff_95_mm"]}


def _classification(bundle: Path, test: Path, results: Path) -> dict[str, Any]:
    fastmed.infer(test / "scans", results, model=bundle, write=["json", "csv"], quiet=True)
    scores = fastmed.evaluate(
        results, test / "labels.csv", task="classification", quiet=True
    ).scores
    return {name: scores[name] for name in ("auc", "auc_band", "accuracy", "f1", "confusion")}


def _detection(bundle: Path, test: Path, results: Path) -> dict[str, Any]:
    fastmed.infer(test / "scans", results, model=bundle, write=["luna", "json", "csv"], quiet=True)
    marks = fastmed.evaluate(
        results / "marks.csv", test / "annotations.csv", task="detection", luna16=True,
        excluded=test / "annotations_excluded.csv", series=test / "seriesuids.csv", quiet=True,
        froc=results / "froc.png",
    ).scores  # fmt: skip
    boxes = fastmed.evaluate(results, test / "boxes.csv", task="detection", quiet=True).scores
    figures = {name: marks[name] for name in ("cpm", "sensitivities")}
    return figures | {name: boxes[name] for name in ("mean_iou", "ap")}


def _figures(scores: dict[str, Any]) -> str:
    shown: Callable[[Any], str] = lambda v: f"{v:.4f}" if isinstance(v, float) else str(v)  # noqa: E731
    return ", ".join(f"{name} {shown(value)}" for name, value in scores.items()) or "none"


if __name__ == "__main__":
    sys.exit(main())
