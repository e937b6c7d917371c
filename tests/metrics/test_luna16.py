"""LUNA16's score: tables worked by hand, and a slow reference straight from the rules."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.metrics import froc as froc_module
from fastmed.metrics.froc import RATES
from fastmed.metrics.luna16 import Marks, Nodules, luna16_score

O, P, Q = (0, 0, 0), (50, 0, 0), (0, 50, 0)  # noqa: E741


def marks(*rows) -> Marks:
    """Rows of scan, centre, score."""
    return Marks(
        np.array([row[0] for row in rows], int),
        np.array([row[1] for row in rows], float).reshape(-1, 3),
        np.array([row[2] for row in rows], float),
    )


def nodules(*rows) -> Nodules:
    """Rows of scan, centre, diameter."""
    return Nodules(*vars(marks(*rows)).values())


def score(scans, found, findings, excluded=(), **arguments):
    arguments = {"bootstraps": 0} | arguments
    return luna16_score(scans, marks(*found), nodules(*findings), nodules(*excluded), **arguments)


def test_a_literal_table():
    found = [(0, O, 0.9), (0, Q, 0.8), (1, P, 0.7), (1, Q, 0.6), (2, Q, 0.5)]
    scores = score(4, found, [(0, O, 10), (1, P, 10), (3, O, 10)])
    # one false positive in 4 scans is a rate of 1/4, the second 1/2, the third 3/4
    assert scores.froc.rates.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.75]
    assert scores.froc.curve == pytest.approx(np.array([0, 1, 1, 2, 2, 2]) / 3)
    assert scores.froc.sensitivities == pytest.approx((1 / 3, *[2 / 3] * 6))
    assert scores.froc.cpm == pytest.approx((1 / 3 + 6 * 2 / 3) / 7)
    assert scores.ap == pytest.approx((1 + 2 / 3) / 3)
    assert (scores.findings, scores.hits, scores.false_positives, scores.kept) == (3, 2, 3, 5)


HITS = {
    "below the radius": ((4.999, 0, 0), 10, 1),
    "at the radius": ((3, 4, 0), 10, 0),
    "in all three directions": ((2.8, 2.8, 2.8), 10, 1),
    "outside": ((3, 3, 3), 10, 0),
    "unknown diameter": ((4.999, 0, 0), -1, 1),
    "unknown diameter, at 5 mm": ((5, 0, 0), -1, 0),
    "no size": ((0, 0, 0), 0, 0),
}


@pytest.mark.parametrize(("centre", "diameter", "hits"), HITS.values(), ids=HITS.keys())
def test_a_hit_is_strictly_within_the_radius(centre, diameter, hits):
    scores = score(1, [(0, centre, 0.5)], [(0, O, diameter)])
    assert (scores.hits, scores.false_positives) == (hits, 1 - hits)


def test_a_mark_of_another_scan_hits_nothing():
    scores = score(2, [(1, O, 0.5)], [(0, O, 10)])
    assert (scores.hits, scores.false_positives) == (0, 1)


def test_of_several_marks_on_a_finding_the_best_counts_and_the_others_do_not():
    found = [(0, (1, 0, 0), 0.2), (0, O, 0.9), (0, (0, 1, 0), 0.4), (0, Q, 0.5)]
    scores = score(1, found, [(0, O, 10), (0, P, 10)])
    assert (scores.hits, scores.false_positives) == (1, 1)
    assert scores.froc.curve.tolist() == [0, 0.5, 0.5]
    assert scores.froc.sensitivities == (0.5,) * 7


def test_a_mark_on_two_findings_hits_both():
    scores = score(1, [(0, O, 0.9)], [(0, (1, 0, 0), 10), (0, (-1, 0, 0), 10)])
    assert (scores.hits, scores.false_positives) == (2, 0)


def test_an_excluded_finding_neither_helps_nor_hurts():
    found, findings = [(0, O, 0.9), (0, Q, 0.8)], [(0, P, 10)]
    without = score(1, found, findings)
    scores = score(1, found, findings, [(0, O, -1), (0, Q, 4)])
    assert (without.hits, without.false_positives) == (0, 2)
    assert (scores.hits, scores.false_positives, scores.findings) == (0, 0, 1)


def test_a_mark_on_a_finding_and_on_an_excluded_one_is_a_hit():
    scores = score(1, [(0, O, 0.9)], [(0, O, 10)], [(0, O, 10)])
    assert (scores.hits, scores.false_positives) == (1, 0)


def limited(scores_of_marks):
    found = [(0, Q, one) for one in scores_of_marks]
    return score(1, found, [(0, P, 10)]).kept


LIMITS = {
    "100": (np.arange(100), 100),
    "100 of one score": (np.ones(100), 100),
    "101": (np.arange(101), 100),
    "101 of one score": (np.ones(101), 0),
    "a tie with the 101st": (np.r_[np.arange(2, 100), np.ones(5)], 98),
    "a tie within the first 100": (np.r_[np.full(100, 2.0), np.ones(5)], 100),
}


@pytest.mark.parametrize(("values", "kept"), LIMITS.values(), ids=LIMITS.keys())
def test_marks_strictly_above_the_101st_are_kept(values, kept):
    assert limited(values) == kept


def test_the_limit_is_of_each_scan():
    found = [(scan, Q, k) for scan in range(3) for k in range(150)]
    assert score(3, found, [(0, P, 10)]).kept == 300


def test_scans_without_marks_thin_out_the_false_positives():
    found, findings = [(0, Q, 0.9), (0, O, 0.8)], [(0, O, 10)]
    assert score(1, found, findings).froc.sensitivities == (0, 0, 0, 1, 1, 1, 1)
    assert score(4, found, findings).froc.sensitivities == (0, 1, 1, 1, 1, 1, 1)


def test_marks_of_one_score_enter_together_on_a_straight_line():
    scores = score(1, [(0, Q, 0.9), (0, O, 0.9)], [(0, O, 10)])
    assert scores.froc.sensitivities == (1 / 8, 1 / 4, 1 / 2, 1, 1, 1, 1)


def test_the_curve_stays_at_its_height_beyond_its_end():
    scores = score(1, [(0, O, 0.9)], [(0, O, 10), (0, P, 10)])
    assert scores.froc.sensitivities == (0.5,) * 7


def test_no_hit_at_all_is_zero_and_no_finding_at_all_is_no_score():
    assert score(1, [(0, Q, 0.9)], [(0, O, 10)]).froc.cpm == 0
    assert score(1, [], [(0, O, 10)]).froc.cpm == 0
    assert math.isnan(score(1, [(0, Q, 0.9)], []).froc.cpm)
    assert score(1, [(0, Q, 0.9)], [], bootstraps=5).froc.resamples == 0


def slow_score(scans, found, findings, excluded):
    """The 7 sensitivities by the rules, in exact fractions; None where there is no finding."""
    positives, negatives = [], []
    total = 0
    for scan in scans:
        mine = [mark for mark in found if mark[0] == scan]
        if len(mine) > 100:
            limit = sorted((mark[2] for mark in mine), reverse=True)[100]
            mine = [mark for mark in mine if mark[2] > limit]
        left = list(mine)
        for state, listed in (("included", findings), ("excluded", excluded)):
            for _, centre, diameter in [one for one in listed if one[0] == scan]:
                radius = Fraction(10 if diameter < 0 else diameter) / 2
                on_it = [
                    mark
                    for mark in mine
                    if sum(Fraction(a - b) ** 2 for a, b in zip(mark[1], centre, strict=True))
                    < radius**2
                ]
                left = [mark for mark in left if mark not in on_it]
                if state == "included":
                    total += 1
                    positives += [max(mark[2] for mark in on_it)] if on_it else []
        negatives += [mark[2] for mark in left]
    if not total:
        return None
    points = [(Fraction(0), Fraction(0))]
    for threshold in sorted({*positives, *negatives}, reverse=True):
        rate = Fraction(sum(one >= threshold for one in negatives), len(scans))
        points.append((rate, Fraction(sum(one >= threshold for one in positives), total)))
    return [slow_interpolation(points, Fraction(rate)) for rate in RATES]


def slow_interpolation(points, rate):
    at = [y for x, y in points if x == rate]
    if at:
        return max(at)
    if rate > points[-1][0]:
        return points[-1][1]
    x0, y0 = max(point for point in points if point[0] < rate)
    x1, y1 = min(point for point in points if point[0] > rate)
    return y0 + (y1 - y0) * (rate - x0) / (x1 - x0)


def random_rows(rng, scans, most, last):
    count = rng.integers(0, most + 1)
    return [
        (int(rng.integers(0, scans)), tuple(map(int, rng.integers(0, 7, 3))), last(rng))
        for _ in range(count)
    ]


def random_set(seed, scans, crowd):
    rng = np.random.default_rng(seed)
    found = random_rows(rng, scans, 30, lambda r: int(r.integers(0, 9)))
    if crowd:  # more than the limit, on one scan
        found += [
            (0, tuple(map(int, rng.integers(0, 30, 3))), int(rng.integers(0, 40)))
            for _ in range(120)
        ]
    # each mark is a thing of its own: the reference takes marks out of a list by their value
    found = list(dict.fromkeys(found))
    findings = random_rows(rng, scans, 8, lambda r: int(r.integers(1, 7)))
    excluded = random_rows(rng, scans, 8, lambda r: int(r.choice([-1, 1, 3])))
    return found, findings, excluded


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.booleans())
def test_the_score_is_that_of_the_slow_rules(seed, scans, crowd):
    sets = random_set(seed, scans, crowd)
    fast, slow = score(scans, *sets).froc, slow_score(range(scans), *sets)
    if slow is None:
        assert math.isnan(fast.cpm)
        return
    assert fast.sensitivities == pytest.approx([float(one) for one in slow])
    assert fast.cpm == pytest.approx(float(sum(slow) / 7))


def drawn_set(drawn, rows):
    """The rows of the drawn scans, each copy of a scan under a number of its own."""
    return [(copy, *row[1:]) for copy, scan in enumerate(drawn) for row in rows if row[0] == scan]


def mostly_found(scans):
    rng = np.random.default_rng(1)
    hits = [(scan, O, float(rng.random())) for scan in range(scans) if rng.random() < 0.7]
    false = [(scan, P, float(rng.random())) for scan in rng.integers(0, scans, 3 * scans)]
    return hits + false, [(scan, O, 10) for scan in range(scans)], []


SETS = {"mostly found": mostly_found(9), "crowded": random_set(3, 9, True)}


@pytest.mark.parametrize("sets", SETS.values(), ids=SETS.keys())
def test_the_band_is_that_of_scans_drawn_and_scored_one_by_one(sets):
    scans, bootstraps = 9, 80
    values = []
    for drawn in np.random.default_rng(7).integers(0, scans, (bootstraps, scans)):
        one = slow_score(range(scans), *(drawn_set(drawn, rows) for rows in sets))
        if one is not None:
            values.append([float(value) for value in one])
    expected = np.sort(values, axis=0)[[25 * len(values) // 1000, 975 * len(values) // 1000]].T
    found = score(scans, *sets, bootstraps=bootstraps, seed=7).froc
    assert found.resamples == len(values)
    assert found.band == pytest.approx(expected)
    assert (expected[:, 0] < expected[:, 1]).any()


def test_the_band_counts_far_marks_where_a_resample_needs_them(monkeypatch):
    # The false positives of the highest scores are of one scan, which some resamples lack.
    found = [(0, Q, 900 + k) for k in range(90)] + [(k, P, k) for k in range(1, 4)]
    found += [(k, Q, 100 * k + n) for k in range(1, 4) for n in range(1, 60)]
    findings = [(k, P, 10) for k in range(4)]
    few = score(4, found, findings, bootstraps=50).froc
    whole_counts = lambda false_positives, _: len(false_positives)  # noqa: E731
    monkeypatch.setattr(froc_module, "_enough", whole_counts)
    assert score(4, found, findings, bootstraps=50).froc.band == few.band


def test_the_band_at_the_rates_is_the_picture_s():
    sets = random_set(11, 12, True)
    found = score(12, *sets, bootstraps=30).froc
    assert found.band_rates[[0, -1]] == pytest.approx([1 / 8, 8])
    assert found.curve_band[[0, -1]].tolist() == [list(found.band[0]), list(found.band[-1])]


def test_the_seed_decides_the_band_and_the_order_of_the_rows_does_not():
    sets = random_set(11, 12, False)
    first, again, other = (
        score(12, *rows, bootstraps=50, seed=seed).froc
        for rows, seed in ((sets, 1), ([one[::-1] for one in sets], 1), (sets, 2))
    )
    assert first.band == again.band != other.band
    assert first.sensitivities == again.sensitivities


def test_resamples_in_pieces_are_the_same(monkeypatch):
    sets = random_set(11, 12, True)
    whole = score(12, *sets, bootstraps=50).froc.band
    monkeypatch.setattr(froc_module, "_CHUNK", 1000)
    assert score(12, *sets, bootstraps=50).froc.band == whole


WRONG = {
    "shape": (Marks(np.zeros(2, int), np.zeros((2, 2)), np.zeros(2)), "marks: expected 2 centres"),
    "scores": (Marks(np.zeros(2, int), np.zeros((2, 3)), np.zeros(3)), "marks: expected 2"),
    "NaN": (marks((0, O, math.nan)), "marks: a centre or number is not finite"),
    "range": (marks((0, O, 1), (5, O, 1)), "scans run from 0 to 5: expected 0..1"),
}


@pytest.mark.parametrize(("found", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(found, words):
    with pytest.raises(ValueError, match=words):
        luna16_score(2, found, nodules(), nodules())
