"""Each recipe from nothing to scores: python tools/train_on_phantoms.py RECIPE [--output DIR]

Makes phantoms, trains the recipe on them, runs the best bundle over phantoms that it never saw,
scores that, and prints one row. What is made already in the output folder is used again, so that a
run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastmed
from fastmed.phantom_scans import write_phantoms


@dataclass(frozen=True)
class Plan:
    """What a recipe is trained and tested on.

    seed of the test phantoms: far from those of training. share, test_share: of positive scans.
    """

    kind: str
    count: int
    test_count: int
    settings: tuple[str, ...] = ()
    share: float | None = None
    test_share: float | None = None
    goal: str = ""


PLANS = {
    "liver-unet3d": Plan(
        "liver", 48, 12,
        ("grid.spacing_mm_zyx=[4,4,4]", "tiles.size_zyx=[32,80,96]", "sampling.samples_per_case=1",
         "loop.epochs=40", "optimiser.learning_rate=2e-3", "optimiser.warmup_steps=17"),
        goal="Dice >= 0.95",
    ),
    "lung-resnet3d": Plan(
        "chest", 440, 300, ("grid.size_zyx=[64,64,64]", "loop.epochs=16"), 0.5, 0.1,
        goal="AUC >= 0.95 over at least 30 positives",
    ),
    "lesion-unet2d": Plan("lesions", 200, 60, goal="Dice >= 0.95 in 5 epochs"),
    "lung-unet2d-png": Plan(
        "lungs", 60, 6, ("network.base_channels=16", "loop.epochs=4"), goal="Dice >= 0.97"
    ),
    "nodule-ssd3d": Plan("nodules", 56, 40, goal="CPM >= 0.90"),
}  # fmt: skip
TEST_SEED = 100_000


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
    print(f"\n{arguments.recipe}: asked {plan.goal}")
    print(f"  on the held-out phantoms of the run: {_figures(held_out)}")
    print(f"  on {plan.test_count} unseen phantoms, by fastmed infer: {_figures(found)}")
    return 0


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
