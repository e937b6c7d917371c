"""Label maps against their truth in world space: scores per case and label, and their means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastmed.errors import SeriesError, UsageError
from fastmed.geometry import Geometry
from fastmed.inference.label_codes import Codes, codes_of_values, named_codes, stored_values
from fastmed.inference.label_pairs import Pair
from fastmed.metrics.overlap import segmentation_scores
from fastmed.metrics.surface import surface_scores
from fastmed.ops import overlap_counts, window_resample
from fastmed.readers.label_maps import read_label_map

_COVERED = 0.99  # of the truth's voxels; below this the reader is told
_SAME_GRID_VOXELS = 1e-3  # affines stored as float32 differ by less


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
    code = codes.pictures if pair.prediction.is_picture else codes.predictions
    prediction = torch.from_numpy(code(prediction, pair.prediction.path))
    target, truth_grid = read_label_map(pair.truth.path)
    warnings = _mixed_truth(target, codes)
    target = torch.from_numpy(codes.truth(target, pair.truth.path))
    if pair.prediction.is_picture or pair.truth.is_picture:
        _check_pixels(pair, grid, truth_grid)
        grid = truth_grid

    classes = len(codes.names) + 1
    volumes = _volumes_ml(prediction, grid, classes)
    true_volumes = _volumes_ml(target, truth_grid, classes)
    prediction, covered = _on_truth(prediction, grid, truth_grid, pair)
    if covered < _COVERED:
        warnings.append(f"the prediction's grid covers {100 * covered:.0f} % of the truth's")
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
        "warnings": warnings,
    }


def _mixed_truth(target: np.ndarray, codes: Codes) -> list[str]:
    """A sentence where several values of the truth were taken as the one label there is."""
    if codes.truth.classes is not None or not target.any():
        return []
    values = stored_values(target).tolist()
    if len(values) < 2:
        return []
    some = ", ".join(map(str, values[:8])) + ", ..." * (len(values) > 8)
    name = codes.names[0]
    return [f"the truth's values {some} all count as {name}; --labels {name}=VALUE picks one"]


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
