"""Label maps against their truth in world space: pairs by name, scores per case and label."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmed.errors import FastmedError, SeriesError, UsageError
from fastmed.geometry import Geometry
from fastmed.inference.label_codes import Codes, codes_of_values, named_codes, stored_values
from fastmed.metrics.overlap import segmentation_scores
from fastmed.metrics.surface import surface_scores
from fastmed.ops import overlap_counts, window_resample
from fastmed.readers.label_maps import EXTENSIONS, PICTURES, read_label_map, stem
from fastmed.readers.series import name_from_path
from fastmed.readers.walk import walk

_SAME_GRID_VOXELS = 1e-3  # affines stored as float32 differ by less
_NNUNET_CHANNEL = "_0000"  # imagesTr/a_0000.nii.gz has its truth in labelsTr/a.nii.gz


@dataclass(frozen=True)
class LabelFile:
    """One label map: its file, the names it may be paired by, the model's labels where known."""

    path: Path
    names: tuple[str, ...]
    model_labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Pair:
    """A prediction and its truth."""

    name: str
    prediction: LabelFile
    truth: LabelFile


def pair_label_maps(predictions: Path, truth: Path) -> tuple[list[Pair], list[str]]:
    """Pairs label maps by name; two files are a pair whatever their names.

    predictions: what `fastmed infer` wrote, a folder of label maps, or one file. truth: a folder,
        searched with all folders in it, or one file.

    A file's name is its path below the folder with / written as __, without the extension; that
    of a file called labels.* is its folder's. Where a folder holds such files, they alone count.

    Returns the pairs by name, and a sentence on each file without a partner. Raises UsageError
    where a path is absent, FastmedError where two files have one name or there is no pair.
    """
    predicted, problems = _predictions(predictions)
    true = _label_files(truth)
    if predictions.is_file() and truth.is_file():
        return [Pair(predicted[0].names[0], predicted[0], true[0])], problems
    by_name = _by_name(true)
    pairs, used = [], set()
    for file in predicted:
        plain = file.names[0].removesuffix(_NNUNET_CHANNEL)
        partner = next((by_name[n] for n in (*file.names, plain) if n in by_name), None)
        if partner is None:
            problems.append(f"{file.path}: no truth is named {file.names[0]}")
        elif partner.path in used:
            raise FastmedError(f"{partner.path}: it is the truth of two predictions")
        else:
            used.add(partner.path)
            pairs.append(Pair(file.names[0], file, partner))
    _by_name(predicted)
    problems += [
        f"{file.path}: no prediction is named {file.names[0]}"
        for file in true
        if file.path not in used
    ]
    if not pairs:
        raise FastmedError(
            f"{predictions}, {truth}: no prediction has the name of a truth; "
            f"{'; '.join(problems[:3]) or 'both are empty'}"
        )
    return pairs, problems


def score_label_maps(
    pairs: Sequence[Pair],
    labels: Mapping[str, Sequence[int]] | None,
    tolerance_mm: float,
    each: Callable[[Iterable[Pair]], Iterable[Pair]] = iter,
) -> tuple[dict[str, Any], list[str]]:
    """Scores the pairs; `each` may wrap their list to show progress.

    labels: truth values by label name; None takes the values as they are, and everything above 0
        for a model of one label.

    Returns {"labels", "tolerance_mm", "per_case", "mean"}, numbers unknown as NaN, and a sentence
    on each case that could not be scored. Raises UsageError where it stays unclear which value
    means what.
    """
    models = {pair.prediction.model_labels for pair in pairs} - {None}
    if len(models) > 1:
        raise UsageError(f"--predictions: of models with different labels: {sorted(models)}")
    codes = named_codes(next(iter(models), None), labels) or _codes_of_files(pairs)
    cases, problems = {}, []
    for pair in each(pairs):
        try:
            cases[pair.name] = _score(pair, codes, tolerance_mm)
        except SeriesError as error:
            problems.append(str(error))
    scores = {
        "labels": list(codes.names),
        "tolerance_mm": tolerance_mm,
        "per_case": cases,
        "mean": _mean(list(cases.values()), codes.names),
    }
    return scores, problems


def _score(pair: Pair, codes: Codes, tolerance_mm: float) -> dict[str, Any]:
    prediction, grid = read_label_map(pair.prediction.path)
    is_picture = _ends(pair.prediction.path.name, PICTURES)
    code = codes.pictures if is_picture else codes.predictions
    prediction = torch.from_numpy(code(prediction, pair.prediction.path))
    target, truth_grid = read_label_map(pair.truth.path)
    target = torch.from_numpy(codes.truth(target, pair.truth.path))
    if is_picture or _ends(pair.truth.path.name, PICTURES):
        _check_pixels(pair, grid, truth_grid)
        grid = truth_grid

    classes = len(codes.names) + 1
    volumes = _volumes_ml(prediction, grid, classes)
    true_volumes = _volumes_ml(target, truth_grid, classes)
    prediction, covered = _on_truth(prediction, grid, truth_grid, pair)
    overlap = segmentation_scores(prediction, target, classes)
    labels = {}
    for k, name in enumerate(codes.names):
        masks = ((side == k + 1).numpy() for side in (prediction, target))
        surface = surface_scores(*masks, truth_grid, tolerance_mm)
        error = volumes[k + 1] - true_volumes[k + 1]
        labels[name] = {
            "dice": overlap["dice"][k],
            "iou": overlap["iou"][k],
            "volume_ml": volumes[k + 1],
            "truth_volume_ml": true_volumes[k + 1],
            "volume_error_ml": error,
            "volume_error_percent": (
                100 * error / true_volumes[k + 1] if true_volumes[k + 1] else math.nan
            ),
            "hausdorff_95_mm": surface.hausdorff_95_mm,
            "surface_dice": surface.surface_dice,
        }
    return {
        "prediction": str(pair.prediction.path),
        "truth": str(pair.truth.path),
        "covered": covered,
        "labels": labels,
        "mean_iou": overlap["mean_iou"],
        "voxel_accuracy": overlap["accuracy"],
    }


def _check_pixels(pair: Pair, grid: Geometry, truth_grid: Geometry) -> None:
    if grid.shape_zyx != truth_grid.shape_zyx:
        size, wanted = (" x ".join(map(str, g.shape_zyx)) for g in (grid, truth_grid))
        raise SeriesError(
            f"{pair.prediction.path}: {size} pixels, its truth {pair.truth.path} {wanted}: images "
            "do not say where they are, so that only equal sizes can be compared"
        )


def _on_truth(
    prediction: torch.Tensor, grid: Geometry, truth_grid: Geometry, pair: Pair
) -> tuple[torch.Tensor, float]:
    """The predicted class at each voxel of the truth, and the share of those it was asked about.

    What lies outside the prediction's grid was not found: background.
    """
    matrix = grid.matrix_from(truth_grid)
    moved = np.abs(matrix - np.eye(3, 4)) @ [*truth_grid.shape_zyx, 1]
    if grid.shape_zyx == truth_grid.shape_zyx and moved.max() < _SAME_GRID_VOXELS:
        return prediction, 1.0
    shifted = window_resample(  # class + 1, so that 0 is left for what lies outside
        prediction + 1,
        torch.from_numpy(matrix),
        truth_grid.shape_zyx,
        fill=0.0,
        mode="nearest",
        dtype=prediction.dtype,
    )
    inside = shifted > 0
    covered = float(inside.double().mean())
    if not covered:
        raise SeriesError(
            f"{pair.prediction.path}: it lies at {_extent(grid)}, its truth {pair.truth.path} at "
            f"{_extent(truth_grid)}: they have no voxel in common"
        )
    return shifted - inside.to(shifted.dtype), covered


def _extent(grid: Geometry) -> str:
    corners = np.array(np.meshgrid(*([0, n - 1] for n in grid.shape_zyx), indexing="ij"))
    world = grid.to_world(corners.reshape(3, -1).T)
    spans = zip("xyz", world.min(axis=0), world.max(axis=0), strict=True)
    return ", ".join(f"{axis} {low:.0f}..{high:.0f}" for axis, low, high in spans) + " mm"


def _volumes_ml(labels: torch.Tensor, grid: Geometry, classes: int) -> list[float]:
    voxels = overlap_counts(labels[None], labels[None], classes)[0, :, 0]
    return (voxels.double() * grid.voxel_volume_mm3 / 1000).tolist()


def _mean(cases: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    labels = {}
    for name in names:
        rows = [case["labels"][name] for case in cases]
        means = {key: _mean_of(row[key] for row in rows) for key in (rows[0] if rows else ())}
        means["volume_error_ml_absolute"] = _mean_of(abs(row["volume_error_ml"]) for row in rows)
        means["cases"] = sum(not math.isnan(row["dice"]) for row in rows)
        means["in_one_alone"] = sum(math.isinf(row["hausdorff_95_mm"]) for row in rows)
        labels[name] = means
    return {
        "cases": len(cases),
        "labels": labels,
        "mean_iou": _mean_of(case["mean_iou"] for case in cases),
        "voxel_accuracy": _mean_of(case["voxel_accuracy"] for case in cases),
    }


def _mean_of(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _codes_of_files(pairs: Sequence[Pair]) -> Codes:
    predicted: set[int] = set()
    true: set[int] = set()
    for pair in pairs:
        for file, values in ((pair.prediction, predicted), (pair.truth, true)):
            try:
                values |= set(stored_values(read_label_map(file.path)[0]).tolist())
            except (SeriesError, IndexError):
                continue  # named when it is its turn to be scored
    return codes_of_values(predicted, true)


def _predictions(path: Path) -> tuple[list[LabelFile], list[str]]:
    folder = path / "series" if (path / "series").is_dir() else path
    files = _label_files(folder)
    without = []
    if folder != path:
        held = {file.path.parent for file in files}
        without = [
            f"{one}: it holds no labels.nii.gz; run fastmed infer with --write nifti,json"
            for one in sorted(folder.iterdir())
            if one.is_dir() and not one.name.startswith(".") and one not in held
        ]
    return [
        LabelFile(file.path, file.names, _model_labels(file.path.with_name("findings.json")))
        for file in files
    ], without


def _model_labels(path: Path) -> tuple[str, ...] | None:
    """The label names in a findings.json, in the order of their values; None without one."""
    if not path.is_file():
        return None
    try:
        masks = json.loads(path.read_text("utf-8"))["masks"]
        return tuple(str(mask["label"]) for mask in masks) or None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FastmedError(f"{path}: not readable as findings ({error}); run it again") from error


def _label_files(path: Path) -> list[LabelFile]:
    """The label maps at or below a path, each once, by name."""
    if path.is_file():
        return [LabelFile(path, (stem(path.name),))]
    found = [
        one
        for one in walk(path)
        if one.relative.lower().endswith(EXTENSIONS)
        and not any(part.startswith(".") for part in one.relative.split("/"))
    ]
    folders: dict[str, list[str]] = {}
    for one in found:
        folder, _, file = one.relative.rpartition("/")
        if stem(file).lower() == "labels":
            folders.setdefault(folder, []).append(file)
    if not folders:
        return [LabelFile(Path(one.path), (_name(one.relative),)) for one in found]
    return [_named_by_folder(path, folder, files) for folder, files in folders.items()]


def _named_by_folder(root: Path, folder: str, files: list[str]) -> LabelFile:
    """A labels.* goes by its folder's name, and by that of a scan beside it (case/ct.nii.gz)."""
    file = min(files, key=lambda f: next(k for k, e in enumerate(EXTENSIONS) if _ends(f, e)))
    beside = sorted(one.name for one in (root / folder).iterdir() if stem(one.name) != one.name)
    scans = [f"{folder}/{one}".lstrip("/") for one in beside if one not in files]
    names = (_name(folder) if folder else root.absolute().name, *map(_name, scans))
    return LabelFile(root / folder / file, names)


def _name(relative: str) -> str:
    return stem(name_from_path(relative))


def _ends(file: str, extension: str | tuple[str, ...]) -> bool:
    return file.lower().endswith(extension)


def _by_name(files: Sequence[LabelFile]) -> dict[str, LabelFile]:
    by_name: dict[str, LabelFile] = {}
    for file in files:
        for name in file.names:
            if name in by_name:
                raise FastmedError(f"{by_name[name].path}, {file.path}: both are named {name}")
            by_name[name] = file
    return by_name
