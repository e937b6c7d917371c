"""FROC: sensitivity over false positives per scan, its mean (CPM), and its band over resamples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastmed.metrics.average_precision import counts_by_falling_score, falling_runs

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # false positives per scan
_CHUNK = 1 << 22  # entries of the resamples' count tables that are held at once


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of every mark that counts, and how much there was to be found.

    hit_scores, hit_scans: [H] of each finding that was hit, its best mark's score and its scan.
    false_scores, false_scans: [F] of each false positive.
    findings: [S] int64, findings of each of all S scans, those without marks or findings included.
    """

    hit_scores: np.ndarray
    hit_scans: np.ndarray
    false_scores: np.ndarray
    false_scans: np.ndarray
    findings: np.ndarray


@dataclass(frozen=True, eq=False)
class Froc:
    """Sensitivity over false positives per scan.

    sensitivities: at the 7 RATES. cpm: their mean, the competition performance metric of Niemeijer
        et al., IEEE Transactions on Medical Imaging 30 (2011). NaN where nothing was to be found.
    band: 7 x (low, high): where the middle 95 % of the resamples of the scans lie; NaN without.
    resamples: on how many the band stands; those that held no finding are left out.
    rates, curve: [P] false positives per scan, from 0 on, and the sensitivity there.
    band_rates, curve_band: [G] and [G, 2], the band along the curve, for a picture.
    """

    sensitivities: tuple[float, ...]
    cpm: float
    band: tuple[tuple[float, float], ...]
    resamples: int
    rates: np.ndarray
    curve: np.ndarray
    band_rates: np.ndarray
    curve_band: np.ndarray


def marks_on_scan(
    touches: np.ndarray, excluded: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the marks of one scan are: hits of its findings, false positives, or neither.

    touches: [M, F] bool, which mark lies on which finding. excluded: [F] bool, the findings that
        neither help nor hurt. scores: [M].

    A finding is hit once, with the best score of the marks on it. A mark on several findings hits
    each of them; one on an excluded finding alone counts for nothing. Returns the score of each
    finding that was hit, and those of the false positives.
    """
    on_included = touches[:, ~excluded]
    best = np.max(np.where(on_included, scores[:, None], -np.inf), axis=0, initial=-np.inf)
    return best[on_included.any(axis=0)], scores[~touches.any(axis=1)]


def froc(outcome: Outcome, *, bootstraps: int = 1000, seed: int = 0) -> Froc:
    """The FROC curve of an outcome.

    Between two scores of marks the curve is a straight line; marks of one score enter together.
    Where it rises upright at an asked rate its upper end counts, and beyond its last point it stays
    as high as there.

    bootstraps: resamples of the S scans, with replacement, behind the band: of the sorted values of
        n resamples at a rate, those at 2.5 and 97.5 % of n. seed: of those.
    """
    scans, findings = len(outcome.findings), int(outcome.findings.sum())
    hits, false_positives = counts_by_falling_score(outcome.hit_scores, outcome.false_scores)
    at = np.array(RATES)
    band_rates = np.geomspace(RATES[0], RATES[-1], 97)
    if not findings:
        sensitivities, curve = np.full(len(at), math.nan), np.full(len(hits), math.nan)
    else:
        sensitivities = _hits_at(at * scans, hits, false_positives) / findings
        curve = hits / findings
    asked = np.concatenate([at, band_rates])
    resampled = _resampled(outcome, asked * scans, bootstraps, seed)
    band = _middle(resampled)
    return Froc(
        sensitivities=tuple(map(float, sensitivities)),
        cpm=float(sensitivities.mean()),
        band=tuple((float(low), float(high)) for low, high in band[: len(at)]),
        resamples=len(resampled),
        rates=false_positives / max(scans, 1),
        curve=curve,
        band_rates=band_rates,
        curve_band=band[len(at) :],
    )


def _hits_at(counts: np.ndarray, hits: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    """Hits where the curve has as many false positives; counts are compared, which is exact."""
    below = np.searchsorted(false_positives, counts, side="right") - 1
    above = np.minimum(below + 1, len(hits) - 1)
    step = np.maximum(false_positives[above] - false_positives[below], 1)
    return hits[below] + (counts - false_positives[below]) / step * (hits[above] - hits[below])


def _resampled(outcome: Outcome, counts: np.ndarray, bootstraps: int, seed: int) -> np.ndarray:
    """[R, len(counts)] sensitivity of each resample that holds a finding."""
    order, ends = falling_runs(np.concatenate([outcome.hit_scores, outcome.false_scores]))
    scan = np.concatenate([outcome.hit_scans, outcome.false_scans])[order].astype(np.int64)
    is_hit = order < len(outcome.hit_scores)
    few = ends[: _enough(np.cumsum(~is_hit)[ends], counts.max())]
    rows = []
    for drawn in _draws(len(outcome.findings), few[-1] + 1 if len(few) else 0, bootstraps, seed):
        curves = _curves(drawn, scan, is_hit, few)
        for row, findings in enumerate(drawn @ outcome.findings):
            if not findings:
                continue
            hits, false_positives = curves[0][row], curves[1][row]
            if len(few) < len(ends) and false_positives[-1] <= counts.max():
                whole = _curves(drawn[row : row + 1], scan, is_hit, ends)
                hits, false_positives = whole[0][0], whole[1][0]
            rows.append(_hits_at(counts, hits, false_positives) / findings)
    return np.array(rows).reshape(-1, len(counts))


def _enough(false_positives: np.ndarray, most: float) -> int:
    """How many scores the curve needs to reach `most` false positives in most resamples."""
    return int(np.searchsorted(false_positives, 2 * most)) + 1


def _curves(drawn, scan, is_hit, ends) -> tuple[np.ndarray, np.ndarray]:
    """Hits and false positives [B, P + 1] of B resamples [B, S], at the ends of P scores."""
    marks = ends[-1] + 1 if len(ends) else 0
    of_marks = drawn[:, scan[:marks]]
    return tuple(
        np.pad(np.cumsum(of_marks * counted, axis=1, dtype=np.int32)[:, ends], ((0, 0), (1, 0)))
        for counted in (is_hit[:marks], ~is_hit[:marks])
    )


def _draws(scans: int, marks: int, bootstraps: int, seed: int) -> Iterator[np.ndarray]:
    """Yields [B, S] tables: how often each scan is in each of some resamples."""
    rng = np.random.default_rng(seed)
    at_once = max(_CHUNK // max(scans, marks, 1), 1)
    for first in range(0, bootstraps if scans else 0, at_once):
        rows = min(at_once, bootstraps - first)
        drawn = rng.integers(0, scans, (rows, scans)) + np.arange(rows)[:, None] * scans
        counts = np.bincount(drawn.reshape(-1), minlength=rows * scans)
        yield counts.reshape(rows, scans).astype(np.int32)


def _middle(values: np.ndarray) -> np.ndarray:
    """[G, 2]: the ends of the middle 95 % of each column of [R, G]; NaN where R is 0."""
    resamples, columns = values.shape
    if not resamples:
        return np.full((columns, 2), math.nan)
    ordered = np.sort(values, axis=0)
    return np.stack([ordered[25 * resamples // 1000], ordered[975 * resamples // 1000]], axis=1)
