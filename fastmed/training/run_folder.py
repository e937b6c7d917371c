"""The folder of one run: its recipe, its split, its bundles."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastmed import bundle as bundles
from fastmed.errors import FastmedError, UsageError
from fastmed.spec import Spec
from fastmed.training.checkpoint import STATE_FILE
from fastmed.training.recipe import Recipe, recipe_to_table
from fastmed.writers.atomic import write_atomically

RECIPE_FILE, SPLIT_FILE = "recipe.toml", "split.json"
_NAMED = {"segmentation": ("iou", "iou"), "classification": ("accuracy", "auc")}  # train_, val_


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    path: holds recipe.toml, split.json, survey.txt, state.safetensors, metrics.csv, curves.png,
        predictions.png, tensorboard/, checkpoints/, test.json, and the bundles best/ and last/.
    trained_on: what the bundles say they learnt from.
    """

    path: Path
    trained_on: str = ""

    def keep(self, recipe: Recipe, network: nn.Module, row: dict[str, Any], *, best: bool) -> None:
        """Writes an epoch's bundles: last, best where it is, and the named ones that are kept."""
        spec = replace(recipe.spec, trained_on=self.trained_on)
        bundles.write(self.path / "last", spec, network)
        if best:
            bundles.write(self.path / "best", spec, network)
        kept = recipe.loop.checkpoints
        if kept == "best" and not best:
            return
        folder = self.path / "checkpoints"
        name = checkpoint_name(row, spec.task)
        _write_whole(folder / name, spec, network)
        for other in folder.iterdir():
            if kept != "every" and other.name != name:
                shutil.rmtree(other)


def open_run(path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
    """Makes a run's folder, or opens the one that is to be resumed.

    Raises UsageError where a new run would mix with what is there, or where a resumed run has
    another recipe; FastmedError where the disk refuses.
    """
    there = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if there and not resume:
        hint = "; --resume goes on with it" if (path / RECIPE_FILE).is_file() else ""
        raise UsageError(f"--output {path}: not an empty folder; name a new one{hint}")
    text = _toml(recipe)
    written = path / RECIPE_FILE
    if there and not written.is_file():
        raise UsageError(f"--resume: {path} holds no {RECIPE_FILE}, so it is no run")
    if written.is_file() and (before := written.read_text("utf-8")) != text:
        what = _first_difference(tomllib.loads(before), tomllib.loads(text))
        raise UsageError(f"--resume: {path} was begun with another recipe ({what}); give the same")
    write_atomically(written, [text.encode()])
    for left in [*path.glob(".*.tmp"), *path.glob("*/.*.tmp")]:
        left.unlink(missing_ok=True)
    for left in path.glob("checkpoints/.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    return RunFolder(path)


def has_state(path: Path) -> bool:
    """Whether a run has come far enough to be resumed."""
    return (path / STATE_FILE).is_file()


def checkpoint_name(row: dict[str, Any], task: str) -> str:
    """Names an epoch with its scores: 12_train_iou_0.913_val_iou_0.887."""
    train, val = _NAMED[task]
    name = str(row["epoch"])
    for score in (f"train_{train}", f"val_{val}"):
        if row.get(score) is not None:
            name += f"_{score}_{row[score]:.3f}"
    return name


def _write_whole(folder: Path, spec: Spec, network: nn.Module) -> None:
    """Writes a bundle beside its place and renames it: a named checkpoint is whole or absent."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        bundles.write(partial, spec, network)
        partial.rename(folder)
    except OSError as error:
        raise FastmedError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _toml(recipe: Recipe) -> str:
    import tomli_w

    return tomli_w.dumps(recipe_to_table(recipe), multiline_strings=True)


def _first_difference(before: dict[str, Any], now: dict[str, Any], name: str = "") -> str:
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := _first_difference(old, new, f"{name}{key}."):
                return found
        elif old != new:
            return f"{name}{key} was {old!r} and is {new!r}"
    return ""
