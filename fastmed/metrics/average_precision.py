"""Average precision: the area under the curve of precision over recall."""

from __future__ import annotations

import math

import numpy as np


def average_precision(hits: np.ndarray, false_positives: np.ndarray, findings: int) -> float:
    """Average precision by all points of the curve, as PASCAL VOC takes it since 2010.

    hits, false_positives: scores of the predictions that found something and of those that did
        not, in any order. findings: how many there were to be found, at least len(hits).

    The precision at a recall is the highest at that recall or any above it; the area is summed over
    every step, not over 11 or 101 samples of it. Equal scores enter together, so that their order
    does not matter. 0 without a hit, NaN where nothing was to be found.

    Source: M. Everingham et al., The PASCAL Visual Object Classes Challenge: a Retrospective,
    International Journal of Computer Vision 111 (2015).
    """
    if not findings:
        return math.nan
    hit_count, false_count = counts_by_falling_score(hits, false_positives)
    precision = hit_count[1:] / (hit_count[1:] + false_count[1:])
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hit_count) * highest) / findings)


def counts_by_falling_score(
    hits: np.ndarray, false_positives: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many hits [P + 1] and false positives [P + 1] score at least each of P scores.

    The P distinct scores fall; before them stands (0, 0).
    """
    order, ends = falling_runs(np.concatenate([hits, false_positives]))
    is_hit = order < len(hits)
    return tuple(
        np.concatenate([[0], np.cumsum(counted, dtype=np.int64)[ends]])
        for counted in (is_hit, ~is_hit)
    )


def falling_runs(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of N scores from the highest, and where in it each run of equal scores ends."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(-scores[order], append=np.inf) > 0)
    return order, ends
