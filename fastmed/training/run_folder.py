"""The folder of one run: its recipe, its split, its bundles."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastmed import bundle as bundles
from fastmed.errors import DataError, FastmedError, UsageError
from fastmed.spec import Spec
from fastmed.training.recipe import Recipe, recipe_to_table
from fastmed.writers.atomic import write_atomically

RECIPE_FILE, SPLIT_FILE = "recipe.toml", "split.json"
_NAMED = {  # train_, val_
    "segmentation": ("iou", "iou"), "classification": ("accuracy", "auc"),
    "detection": ("iou", "iou"),
}  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    path: holds recipe.toml, split.json, survey.txt, state.safetensors, metrics.csv, curves.png,
        samples.png, predictions.png, tensorboard/, checkpoints/, test.json, predictions/, and the
        bundles best/ and last/.
    trained_on: what the bundles say they learnt from.
    """

    path: Path
    trained_on: str = ""

    def begin(self, recipe: Recipe, texts: dict[str, str]) -> None:
        """Makes the folder a run's: its recipe, and other texts by file name.

        Raises DataError where a run that goes on has other texts: its data are no longer the same.
        """
        for name, text in texts.items():
            place = self.path / name
            if place.is_file() and place.read_text("utf-8") != text:
                raise DataError(
                    f"--resume: {place} differs from what the data say now: files were changed; "
                    "bring the old data back, or train anew into another --output"
                )
        for name, text in ({RECIPE_FILE: _toml(recipe)} | texts).items():
            write_atomically(self.path / name, [text.encode()])

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
            # The same epoch under another name: it was repeated where sums have no fixed order.
            is_repeated = other.name.split("_")[0] == name.split("_")[0]
            if other.name != name and (kept != "every" or is_repeated):
                shutil.rmtree(other, ignore_errors=True)


def open_run(path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
    """Looks at the folder of a new run, or of the one that is to be resumed; writes no file.

    Raises UsageError where a new run would mix with what is there, or where a resumed run has
    another recipe; FastmedError where the disk refuses.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {path}: is a file; name a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastmedError(f"{path}: cannot be made ({error.strerror or error})") from error
    written = path / RECIPE_FILE
    remnants = list(path.glob(".*.tmp"))  # of a run that was killed while it wrote
    is_empty = not set(path.iterdir()) - set(remnants if resume else ())
    if not is_empty and not resume:
        hint = "; --resume goes on with it" if written.is_file() else ""
        raise UsageError(f"--output {path}: not an empty folder; name a new one{hint}")
    if not is_empty and not written.is_file():
        raise UsageError(f"--resume: {path} holds no {RECIPE_FILE}, so it is no run")
    text = _toml(recipe)
    if written.is_file() and (before := written.read_text("utf-8")) != text:
        what = _first_difference(tomllib.loads(before), tomllib.loads(text))
        raise UsageError(f"--resume: {path} was begun with another recipe ({what}); give the same")
    for left in [*remnants, *path.glob("*/.*.tmp")]:
        left.unlink(missing_ok=True)
    for left in path.glob("checkpoints/.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    return RunFolder(path)


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
