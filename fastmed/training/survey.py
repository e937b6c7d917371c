"""Survey: every case is looked at before training starts; what is wrong is said all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from fastmed.errors import DataError
from fastmed.spec import Spec
from fastmed.training.box_truth import box_problems, size_mm
from fastmed.training.cases import Case, pair_problems, read_image, read_label
from fastmed.training.label_values import LabelValues
from fastmed.training.stored_case import network_grid

_UNITS = {"segmentation": "voxels", "classification": "cases", "detection": "findings"}
_NAMED = 6  # stored values that an error lists


@dataclass(frozen=True)
class CaseFacts:
    """What one case is like.

    voxels: of each class, in the label map; () where it has none.
    findings: (label, diameter in mm) of each box of a detection; None where it is no detection or
        has no truth.
    """

    name: str
    shape_zyx: tuple[int, int, int]
    spacing_mm_zyx: tuple[float, float, float]
    dtype: str
    voxels: tuple[int, ...] = ()
    target: int | None = None
    findings: tuple[tuple[int, float], ...] | None = None

    @property
    def stratum(self) -> tuple:
        """What a split keeps in proportion: the classes present, or whether there are findings."""
        if self.findings is not None:
            return (bool(self.findings),)
        if self.target is not None:
            return (self.target,)
        return tuple(np.flatnonzero(self.voxels).tolist())


@dataclass(frozen=True)
class Survey:
    """The facts of all cases, and what is worth a second look. str() is the printed table.

    unit: what `counts` counts: "voxels", "cases" of a classification, "findings" of a detection.
    """

    facts: tuple[CaseFacts, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    unit: str = "voxels"

    def strata(self) -> dict[str, tuple]:
        """Case name -> what `split` keeps in proportion."""
        return {fact.name: fact.stratum for fact in self.facts}

    def counts(self) -> tuple[int, ...]:
        """How much there is of each class; of a detection's class 0, scans without a finding."""
        counts = np.zeros(len(self.classes), np.int64)
        for fact in self.facts:
            if fact.target is not None:
                counts[fact.target] += 1
            elif fact.findings is not None:
                np.add.at(counts, [label for label, _ in fact.findings] or [0], 1)
            elif fact.voxels:
                counts += fact.voxels
        return tuple(counts.tolist())

    def _sizes(self, label: int) -> str:
        """How large the findings of a class are, "" where there are none."""
        own = [mm for fact in self.facts for of, mm in fact.findings or () if of == label]
        return f", {min(own):.1f} to {max(own):.1f} mm, median {np.median(own):.1f}" if own else ""

    def __str__(self) -> str:
        rows = [f"{len(self.facts)} cases{'':10} {'min':>8} {'median':>8} {'max':>8}"]
        for axis, letter in enumerate("zyx"):
            sizes = [fact.shape_zyx[axis] for fact in self.facts]
            rows.append(_row(f"size {letter}, voxels", sizes, "g"))
        for axis, letter in enumerate("zyx"):
            spacings = [fact.spacing_mm_zyx[axis] for fact in self.facts]
            rows.append(_row(f"spacing {letter}, mm", spacings, ".4g"))
        types = ", ".join(sorted({fact.dtype for fact in self.facts}))
        rows.append(f"stored as {types}")
        for label, (name, count) in enumerate(zip(self.classes, self.counts(), strict=True)):
            unit = "cases" if self.unit == "findings" and label == 0 else self.unit
            rows.append(f"{name[:24]:<24} {count:>12,} {unit}{self._sizes(label)}")
        return "\n".join([*rows, *(f"warning: {warning}" for warning in self.warnings)])


def _row(name: str, values: list[float], form: str) -> str:
    low, middle, high = min(values), float(np.median(values)), max(values)
    return f"{name:<18} {low:>8{form}} {middle:>8{form}} {high:>8{form}}"


def survey(
    cases: Sequence[Case],
    spec: Spec,
    values: Mapping[str, tuple[int, ...]],
    *,
    workers: int | None = None,
) -> Survey:
    """Reads every case once and checks it: shapes, grids, types, NaN, label values, classes.

    values: label name -> stored label values, as in LabelValues.of.
    workers: threads that read; None takes one per core, at most 4.

    Raises DataError with a line for each problem of each case. A mask without any label is a
    warning of the survey.
    """
    meaning = LabelValues.of(spec, values)
    facts: list[CaseFacts] = []
    problems: list[str] = []
    warnings: list[str] = []

    def look(case: Case):
        try:
            return _examined(case, spec, meaning)
        except DataError as error:
            return None, [str(error)], []

    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        for fact, bad, doubtful in _shown(pool.map(look, cases), len(cases)):
            facts += [fact] if fact else []
            problems += bad
            warnings += doubtful
    found = Survey(tuple(facts), _class_names(spec), tuple(warnings), _UNITS[spec.task])
    if not problems:
        problems += _absent_classes(found, spec)
    if problems:
        heading = f"{len(problems)} problems in {len(cases)} cases; training has not started"
        raise DataError.listing(heading, problems)
    return found


def _shown(results, total: int):
    """The results as they come, behind a progress bar where somebody watches."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("survey", total=total)
        for result in results:
            yield result
            progress.advance(task)


def _class_names(spec: Spec) -> tuple[str, ...]:
    first = {"classification": spec.negative, "detection": "without findings"}
    return (first.get(spec.task, "background"), *(label.name for label in spec.labels))


def _absent_classes(found: Survey, spec: Spec) -> list[str]:
    unit = found.unit.removesuffix("s")
    return [
        f"class {value} ({name}): not one {unit} of it in the whole data set"
        for value, (name, count) in enumerate(zip(found.classes, found.counts(), strict=True))
        if count == 0 and (value or spec.task != "detection")
    ]


def _examined(case: Case, spec: Spec, meaning: LabelValues):
    """Returns the facts, the problems and the warnings of one case."""
    volume = read_image(case, spec)
    grid = network_grid(case, volume, spec)
    facts = CaseFacts(
        case.name,
        volume.voxels.shape,
        volume.geometry.spacing_mm_zyx,
        str(volume.voxels.dtype),
        target=case.target,
    )
    if spec.dimensions == 2 and spec.modality == "grey" and volume.voxels.shape[0] != 1:
        return facts, [f"{case.name}: {volume.voxels.shape[0]} slices, expected one image"], []
    if case.boxes is not None:
        problems, warnings = box_problems(case, volume.geometry, grid)
        sizes = tuple((box.label, size_mm(box, volume.geometry)) for box in case.boxes)
        return replace(facts, findings=sizes), problems, warnings
    if case.label is None:
        return facts, [], []
    labels, geometry = read_label(case, spec)
    problems = pair_problems(case.name, volume.geometry, labels.shape, geometry)
    if unknown := meaning.unknown(labels):
        listed = ", ".join(map(str, unknown[:_NAMED])) + (", ..." if unknown[_NAMED:] else "")
        known = sorted(meaning.classes) if meaning.classes else "0 and above"
        problems.append(f"{case.name}: label values {listed} out of range; known are {known}")
    if problems:
        return None, problems, []
    counts = np.bincount(meaning.to_classes(labels).ravel(), minlength=meaning.num_classes)
    warnings = [] if counts[1:].any() else [f"{case.name}: its mask is empty"]
    return replace(facts, voxels=tuple(counts.tolist())), [], warnings
