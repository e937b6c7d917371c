"""LUNA16's official score: FROC of marks against nodules, with nodules that do not count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmed.metrics.average_precision import average_precision
from fastmed.metrics.froc import Froc, Outcome, froc, marks_on_scan

MOST_MARKS = 100  # per scan
UNKNOWN_DIAMETER_MM = 10.0


@dataclass(frozen=True, eq=False)
class Marks:
    """Marks of a detector: scans [M] from 0, centres_mm [M, 3] in LPS mm, scores [M]."""

    scans: np.ndarray
    centres_mm: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class Nodules:
    """Annotated nodules: scans [N] from 0, centres_mm [N, 3] in LPS mm, diameters_mm [N].

    A diameter below 0 (LUNA16 writes -1) is not known, and counts as 10 mm.
    """

    scans: np.ndarray
    centres_mm: np.ndarray
    diameters_mm: np.ndarray


@dataclass(frozen=True, eq=False)
class Luna16Score:
    """The score of S scans.

    froc: sensitivities, cpm, band and curve.
    ap: average precision (`average_precision`) of the same hits and false positives.
    findings, hits, false_positives: nodules that count, those of them that any mark hit, and marks
        that lie on no nodule. kept: marks within the limit per scan, of which those on excluded
        nodules, and all but the best on a finding, are neither hit nor false positive.
    """

    froc: Froc
    ap: float
    findings: int
    hits: int
    false_positives: int
    kept: int


def luna16_score(
    scans: int,
    marks: Marks,
    findings: Nodules,
    excluded: Nodules,
    *,
    bootstraps: int = 1000,
    seed: int = 0,
) -> Luna16Score:
    """Scores marks as the LUNA16 challenge does.

    scans: number of scans, which those without marks and nodules count in.
    findings: nodules to be found. excluded: those that neither help nor hurt.

    Of more than 100 marks on a scan those with a score strictly above the 101st remain. A mark is
    on a nodule where its squared distance from the centre is strictly below the squared radius.
    `froc.marks_on_scan` has what becomes of it, `froc.froc` the curve, and the bootstraps and seed
    of its band. A rate of false positives that the curve meets exactly is met exactly here, and
    where no nodule is found the sensitivity is 0.

    Raises ValueError for wrong shapes, scans out of range, or values that are not finite.

    Source: A. Setio et al., Validation, comparison, and combination of algorithms for automatic
    detection of pulmonary nodules in computed tomography images: The LUNA16 challenge, Medical
    Image Analysis 42 (2017).
    """
    _check("marks", scans, marks.scans, marks.centres_mm, marks.scores)
    _check("findings", scans, findings.scans, findings.centres_mm, findings.diameters_mm)
    _check("excluded", scans, excluded.scans, excluded.centres_mm, excluded.diameters_mm)
    marks_of, findings_of, excluded_of = (
        _by_scan(np.asarray(one.scans), scans) for one in (marks, findings, excluded)
    )
    hits, false_positives, kept = [], [], 0
    for scan in range(scans):
        mine = marks_of[scan]
        mine = mine[_within_limit(marks.scores[mine])]
        centres = marks.centres_mm[mine]
        on_findings = _touches(centres, findings, findings_of[scan])
        on_excluded = _touches(centres, excluded, excluded_of[scan])
        is_excluded = np.arange(on_findings.shape[1] + on_excluded.shape[1])
        hit, false = marks_on_scan(
            np.concatenate([on_findings, on_excluded], axis=1),
            is_excluded >= on_findings.shape[1],
            marks.scores[mine],
        )
        hits.append(hit)
        false_positives.append(false)
        kept += len(mine)
    outcome = Outcome(
        hit_scores=np.concatenate([*hits, np.zeros(0)]),
        hit_scans=np.repeat(np.arange(scans), [len(one) for one in hits]),
        false_scores=np.concatenate([*false_positives, np.zeros(0)]),
        false_scans=np.repeat(np.arange(scans), [len(one) for one in false_positives]),
        findings=np.array([len(one) for one in findings_of], np.int64),
    )
    return Luna16Score(
        froc=froc(outcome, bootstraps=bootstraps, seed=seed),
        ap=average_precision(outcome.hit_scores, outcome.false_scores, len(findings.scans)),
        findings=len(findings.scans),
        hits=len(outcome.hit_scores),
        false_positives=len(outcome.false_scores),
        kept=kept,
    )


def _within_limit(scores: np.ndarray) -> np.ndarray:
    if len(scores) <= MOST_MARKS:
        return np.ones(len(scores), bool)
    return scores > np.sort(scores)[-MOST_MARKS - 1]


def _touches(centres: np.ndarray, nodules: Nodules, mine: np.ndarray) -> np.ndarray:
    """[M, F] bool: which mark lies on which of a scan's nodules."""
    dx, dy, dz = (centres[:, None] - nodules.centres_mm[mine]).transpose(2, 0, 1)
    diameters = nodules.diameters_mm[mine]
    radius = np.where(diameters < 0, UNKNOWN_DIAMETER_MM, diameters) / 2
    return dx * dx + dy * dy + dz * dz < radius * radius


def _by_scan(scan_of: np.ndarray, scans: int) -> list[np.ndarray]:
    """The indices of each scan's rows, in their order."""
    order = np.argsort(scan_of, kind="stable")
    return np.split(order, np.searchsorted(scan_of[order], np.arange(1, scans))) if scans else []


def _check(name: str, scans: int, scan_of, centres, values) -> None:
    rows = len(scan_of)
    if np.shape(centres) != (rows, 3) or np.shape(values) != (rows,):
        raise ValueError(
            f"{name}: expected {rows} centres [{rows}, 3] and as many numbers, "
            f"got {list(np.shape(centres))} and {list(np.shape(values))}"
        )
    if not (np.isfinite(centres).all() and np.isfinite(values).all()):
        raise ValueError(f"{name}: a centre or number is not finite")
    if rows and not (np.min(scan_of) >= 0 and np.max(scan_of) < scans):
        raise ValueError(
            f"{name}: scans run from {np.min(scan_of)} to {np.max(scan_of)}: "
            f"expected 0..{scans - 1}"
        )
