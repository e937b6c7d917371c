"""Split: by patient, stratified, the same whenever it is drawn, and never leaking."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.errors import DataError
from fastmed.training.cases import Case
from fastmed.training.split import Split, split


def case(name: str, patient: str | None = None, **more) -> Case:
    return Case(name, patient or name, Path(f"{name}.nii"), **{"target": 0, **more})


def cohort(count: int, positives: int) -> list[Case]:
    return [case(f"c{k:03}", target=int(k < positives)) for k in range(count)]


def test_shares_hold_within_each_class():
    cases = cohort(200, 20)
    drawn = split(cases, seed=3)
    targets = {c.name: c.target for c in cases}
    sizes = {s: len(getattr(drawn, s)) for s in ("train", "val", "test")}
    positives = {s: sum(targets[n] for n in getattr(drawn, s)) for s in sizes}
    assert sizes == {"train": 140, "val": 30, "test": 30}
    assert positives == {"train": 14, "val": 3, "test": 3}


@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.integers(1, 4), min_size=3, max_size=40),
    seed=st.integers(0, 1000),
    order=st.randoms(use_true_random=False),
)
def test_a_split_parts_patients_completely_whatever_the_order(patients, seed, order):
    cases = [case(f"{p}-{k}", f"p{p}") for p, count in enumerate(patients) for k in range(count)]
    drawn = split(cases, seed=seed)
    names = [*drawn.train, *drawn.val, *drawn.test]
    assert sorted(names) == sorted(c.name for c in cases)
    owners = [
        {name.split("-")[0] for name in part} for part in (drawn.train, drawn.val, drawn.test)
    ]
    assert all(owners)
    assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    order.shuffle(cases)
    assert split(cases, seed=seed) == drawn


def test_seeds_draw_different_splits_and_one_seed_the_same():
    cases = cohort(40, 10)
    drawn = {split(cases, seed=seed) for seed in range(5)}
    assert len(drawn) == 5
    assert split(cases, seed=2) in drawn


def test_strata_are_kept_in_proportion():
    cases = cohort(60, 0)
    strata = {c.name: ("with" if k < 20 else "without") for k, c in enumerate(cases)}
    drawn = split(cases, shares=(0.5, 0.25, 0.25), seed=1, strata=strata)
    assert Counter(strata[name] for name in drawn.val) == {"with": 5, "without": 10}


def test_the_test_is_in_a_fixed_order():
    cases = cohort(30, 8)
    random.Random(1).shuffle(cases)
    assert list(split(cases, seed=0).test) == sorted(split(cases, seed=0).test)


def test_subsets_that_the_data_name_are_kept():
    cases = [
        case("a", subset="test"), case("b", subset="val"), case("c", subset="train"),
        case("d", subset="train"),
    ]  # fmt: skip
    assert split(cases, seed=0) == Split(("c", "d"), ("b",), ("a",))


def test_a_patient_in_two_subsets_is_an_error_by_name():
    cases = [
        case("a", "p7", subset="train"),
        case("b", "p7", subset="test"),
        case("v", subset="val"),
    ]
    with pytest.raises(DataError, match=r"patient p7: a in train, b in test"):
        split(cases, seed=0)


def test_free_cases_follow_their_patient():
    cases = [case("a", "p1", subset="test"), case("b", "p1"), *cohort(10, 0)]
    assert {"a", "b"} <= set(split(cases, seed=0).test)


@pytest.mark.parametrize(
    ("count", "shares", "message"),
    [
        (2, (0.7, 0.15, 0.15), "the subset test is empty"),
        (1, (0.8, 0.2, 0.0), "the subset (train|val) is empty"),
        (5, (0.9, 0.2, 0.1), "sum to 1"),
    ],
)
def test_an_empty_subset_is_an_error(count, shares, message):
    with pytest.raises(DataError, match=message):
        split(cohort(count, 0), shares=shares, seed=0)


def test_a_share_of_none_leaves_a_subset_empty():
    assert split(cohort(10, 0), shares=(0.8, 0.2, 0.0), seed=0).test == ()


def test_cases_without_truth_are_predicted_only():
    bare = case("bare", target=None)
    assert "bare" in split([*cohort(10, 0), bare], seed=0).test
    with pytest.raises(DataError, match="bare: no mask, no label"):
        split([*cohort(10, 0), replace(bare, subset="train")], seed=0)


def test_a_class_that_training_would_not_see_is_named():
    cases = [case(f"c{k}", subset="train") for k in range(4)]
    cases += [case("v", subset="val"), case("t", target=1, subset="test")]
    with pytest.raises(DataError, match=r"classes \[1\] have no example in train"):
        split(cases, seed=0)


def test_a_written_split_is_used_again(tmp_path):
    cases = cohort(20, 5)
    drawn = split(cases, seed=4)
    drawn.write(tmp_path / "split.json")
    assert Split.read(tmp_path / "split.json", cases) == drawn


def test_a_split_of_other_data_is_refused(tmp_path):
    cases = cohort(20, 5)
    split(cases, seed=4).write(tmp_path / "split.json")
    with pytest.raises(DataError, match=r"new: in the data, not in the split") as error:
        Split.read(tmp_path / "split.json", [*cases[1:], case("new")])
    assert "c000: in the split, not in the data" in str(error.value)
    assert "remove it to draw a new split" in str(error.value)


def test_a_split_read_back_is_checked_for_leakage(tmp_path):
    cases = cohort(20, 5)
    split(cases, seed=4).write(tmp_path / "split.json")
    one = [replace(c, patient="same") for c in cases]
    with pytest.raises(DataError, match="patient same"):
        Split.read(tmp_path / "split.json", one)


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1, "train": []}', "[1]"])
def test_a_damaged_split_is_named(content, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"split.json: no split can be read"):
        Split.read(path, [])
