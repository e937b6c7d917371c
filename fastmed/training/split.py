"""Split: which patients train, validate and test; drawn once, written down, used again."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastmed.errors import DataError
from fastmed.training.cases import SUBSETS, Case
from fastmed.writers.atomic import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Split:
    """The names of the cases of each subset, sorted; that is the order of the test, too."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def write(self, path: str | Path) -> None:
        """Writes JSON, whole or not at all."""
        write_atomically(path, [self.text().encode()])

    def text(self) -> str:
        """What `write` writes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: str | Path, cases: Sequence[Case]) -> Split:
        """Reads what `write` wrote, to be used again for the same cases.

        Raises DataError where the file is damaged, where it names cases that are gone or lacks
        new ones, and where a patient is in two subsets.
        """
        try:
            table = json.loads(Path(path).read_text("utf-8"))
            if table.pop("format") != FORMAT or table.keys() != set(SUBSETS):
                raise ValueError("its entries are not those of a split")
            found = cls(**{subset: tuple(map(str, table[subset])) for subset in SUBSETS})
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise DataError(f"{path}: no split can be read from it ({error}); remove it") from error
        found._check(path, {case.name: case for case in cases})
        return found

    def _check(self, path: str | Path, by_name: dict[str, Case]) -> None:
        listed = Counter(name for subset in SUBSETS for name in getattr(self, subset))
        problems = [f"{name}: in the split, not in the data" for name in listed.keys() - by_name]
        problems += [f"{name}: in the data, not in the split" for name in by_name.keys() - listed]
        problems += [f"{name}: listed {count} times" for name, count in listed.items() if count > 1]
        if problems:
            raise DataError.listing(
                f"{path} was drawn for other data; remove it to draw a new split, or bring the "
                "old data back",
                sorted(problems),
            )
        _check_leakage({s: [by_name[name] for name in getattr(self, s)] for s in SUBSETS})


def split(
    cases: Sequence[Case],
    *,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int,
    strata: Mapping[str, Hashable] | None = None,
) -> Split:
    """Draws a split by patient.

    shares: of train, val and test; their sum is 1. A share of 0 leaves that subset empty.
    strata: case name -> what to keep in proportion (`Survey.strata`); None takes the target.

    Cases whose subset the data set names keep it; those without truth go to the test, where they
    are predicted. The draw depends on names, patients, shares and seed, not on the order of the
    list. Raises DataError for a patient in two subsets, an empty subset, a class that the
    training would not see.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise DataError(f"shares {tuple(shares)}: expected three from 0 to 1 that sum to 1")
    strata = strata or {case.name: case.target for case in cases}
    members: dict[str, list[Case]] = {subset: [] for subset in SUBSETS}
    patients: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.subset:
            members[case.subset].append(case)
        elif not case.has_truth:
            members["test"].append(case)
        else:
            patients[case.patient].append(case)
    _pin_known_patients(members, patients)
    _share_out(members, patients, shares, strata, seed)
    _check_leakage(members)
    _check_not_empty(members, shares)
    _check_truth(members["train"])
    _check_classes(members)
    return Split(**{s: tuple(sorted(case.name for case in members[s])) for s in SUBSETS})


def _pin_known_patients(members: dict, patients: dict) -> None:
    """Free cases of a patient whose other cases have a subset follow these."""
    for subset, known in members.items():
        for patient in {case.patient for case in known if case.has_truth}:
            members[subset] += patients.pop(patient, [])


def _share_out(members, patients, shares, strata, seed) -> None:
    """Gives each patient to the subset that lacks most in its stratum, debts carried on."""
    groups: dict[str, list[str]] = defaultdict(list)
    for patient, own in patients.items():
        groups[str(sorted({str(strata.get(case.name)) for case in own}))].append(patient)

    def draw(patient: str) -> tuple:
        text = f"{seed}\n{patient}".encode("utf-8", "surrogateescape")
        return -len(patients[patient]), hashlib.sha256(text).digest()

    placed: dict[str, list[str]] = {subset: [] for subset in SUBSETS}
    lack = dict.fromkeys(SUBSETS, 0.0)  # cases
    for _, group in sorted(groups.items()):
        count = sum(len(patients[patient]) for patient in group)
        for subset, share in zip(SUBSETS, shares, strict=True):
            lack[subset] += share * count
        open_subsets = [s for s, share in zip(SUBSETS, shares, strict=True) if share]
        for patient in sorted(group, key=draw):
            subset = max(open_subsets, key=lack.__getitem__)
            placed[subset].append(patient)
            lack[subset] -= len(patients[patient])
    _fill_empty(placed, members, shares)
    for subset, names in placed.items():
        for patient in names:
            members[subset] += patients[patient]


def _fill_empty(placed: dict, members: dict, shares) -> None:
    """With few patients a small share may come out empty: the largest subset gives one."""
    for subset, share in zip(SUBSETS, shares, strict=True):
        if share and not placed[subset] and not members[subset]:
            largest = max(SUBSETS, key=lambda s: len(placed[s]))
            if len(placed[largest]) > 1:
                placed[subset].append(placed[largest].pop())


def _check_leakage(members: dict[str, list[Case]]) -> None:
    where: dict[str, dict[str, str]] = defaultdict(dict)
    for subset, cases in members.items():
        for case in cases:
            if case.has_truth:  # what is only predicted tells nothing about the rest
                where[case.patient].setdefault(subset, case.name)
    leaks = [
        f"patient {patient}: " + ", ".join(f"{name} in {subset}" for subset, name in found.items())
        for patient, found in sorted(where.items())
        if len(found) > 1
    ]
    if leaks:
        raise DataError.listing("a patient may be in one subset only", leaks)


def _check_not_empty(members: dict[str, list[Case]], shares) -> None:
    for subset, share in zip(SUBSETS, shares, strict=True):
        scored = [case for case in members[subset] if case.has_truth]
        if not scored and (share or subset == "train"):
            patients = len({case.patient for cases in members.values() for case in cases})
            raise DataError(
                f"the subset {subset} is empty ({patients} patients, shares "
                f"{' / '.join(f'{s:g}' for s in shares)}): add data, or set its share to 0"
                if subset != "train"
                else f"the subset train is empty ({patients} patients): add data"
            )


def _check_truth(train: list[Case]) -> None:
    bare = [f"{case.name}: no mask, no label" for case in train if not case.has_truth]
    if bare:
        raise DataError.listing("cases without truth cannot train; list them under test", bare)
    boxes = [case.boxes for case in train if case.boxes is not None]
    if boxes and not any(boxes):
        raise DataError(
            f"the subset train has {len(boxes)} scans and not one finding: add data, or take "
            "another seed"
        )


def _check_classes(members: dict[str, list[Case]]) -> None:
    known = {case.target for cases in members.values() for case in cases} - {None}
    absent = known - {case.target for case in members["train"]}
    if absent:
        raise DataError(
            f"classes {sorted(absent)} have no example in train: add data or take another seed"
        )
