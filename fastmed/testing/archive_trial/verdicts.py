"""Verdicts against the truth: what an index and a run say of each thing in a phantom archive."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from fastmed.phantom_archive import Expected
from fastmed.readers.series import Series

_OTHERS = "not an image"  # such files share one entry of an index
_IN_A_RUN = {"ok": "done"}


@dataclass(frozen=True)
class Difference:
    """Where a verdict is not the true one."""

    way: str
    source: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.way} ({self.source}): expected {self.expected}; found {self.found}"


def compare_index(
    truth: list[Expected], entries: Iterable[Series], *, strict: bool
) -> list[Difference]:
    """Compares the entries of an index of scans/ with the truth: kinds, verdicts, conditions.

    What shows in voxels alone may be "ok" in an index, which reads headers.
    """
    entries = list(entries)
    others = sum(entry.files for entry in entries if entry.kind == _OTHERS)
    by_source = _by_source([e for e in entries if e.kind != _OTHERS])
    wanted = _truth_by_source(truth)
    found = []
    for source in sorted(wanted.keys() | by_source.keys()):
        rows, got = wanted.get(source, []), by_source.get(source, [])
        expected = [_of_row(row, strict) for row in rows for _ in range(row.entries(strict=strict))]
        unmet = list(map(_of_entry, got))
        missing = []
        for one in expected:
            match = next((other for other in unmet if _agree(one, other)), None)
            if match is None:
                missing.append(one)
            else:
                unmet.remove(match)
        if missing or unmet:
            way = rows[0].way if rows else "nothing known"
            found.append(Difference(way, source, _listed(missing), _listed(unmet)))
    return found + _of_others(truth, others)


def compare_manifest(
    truth: list[Expected], series: Iterable[dict], *, strict: bool
) -> list[Difference]:
    """Compares the "series" of a run's manifest.json with the truth: each done, or named."""
    series = list(series)
    reasons = [s["reason"] for s in series if _is_of_others(s)]
    others = sum(int(re.match(r"\d+", reason)[0]) for reason in reasons)
    by_source = _by_source([_Row(**_kept(s)) for s in series if not _is_of_others(s)])
    wanted = _truth_by_source(truth)
    found = []
    for source in sorted(wanted.keys() | by_source.keys()):
        rows, got = wanted.get(source, []), by_source.get(source, [])
        expected = Counter()
        for row in rows:
            verdict = row.verdict(strict=strict)
            expected[_IN_A_RUN.get(verdict, verdict)] += row.entries(strict=strict)
        unnamed = [row.source for row in got if row.verdict != "done" and not row.reason]
        said = Counter(row.verdict for row in got)
        if said != expected or unnamed:
            way = rows[0].way if rows else "nothing known"
            reasons = "; ".join(sorted({row.reason for row in got if row.reason}))
            listed = f"{_counted(said)} ({reasons or 'no reason'})"
            found.append(Difference(way, source, _counted(expected), listed))
    return found + _of_others(truth, others)


def table(truth: list[Expected], found: dict[str, list[Difference]]) -> str:
    """Lines of a table: for each way its number, its true verdicts, and how many were missed.

    found: the differences of each comparison, by its name.
    """
    rows: dict[str, list[Expected]] = defaultdict(list)
    for row in truth:
        rows[row.way].append(row)
    missed = {name: Counter(one.way for one in differences) for name, differences in found.items()}
    lines = [f"{'way':<40}{'things':>7}  {'strict':<16}{'lenient':<16}" + "".join(
        f"{name:>18}" for name in found
    )]  # fmt: skip
    for way in sorted(rows):
        words = ["/".join(sorted({getattr(r, mode) for r in rows[way]})) for mode in _MODES]
        counts = "".join(f"{missed[name][way] or 'exact':>18}" for name in found)
        lines.append(f"{way:<40}{len(rows[way]):>7}  {words[0]:<16}{words[1]:<16}{counts}")
    return "\n".join(lines)


_MODES = ("strict", "lenient")


@dataclass(frozen=True)
class _Row:
    """One series of a manifest."""

    source: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class _Judged:
    """What is compared of an entry. may_pass: its fault may be found later than by an index."""

    kind: str
    verdict: str
    conditions: frozenset[str]
    may_pass: bool = False

    def __str__(self) -> str:
        return f"{self.kind}, {self.verdict} [{', '.join(sorted(self.conditions)) or 'nothing'}]"


def _of_row(row: Expected, strict: bool) -> _Judged:
    conditions = frozenset(row.conditions.split("; "))
    return _Judged(row.kind, row.verdict(strict=strict), conditions, row.shows == "voxels")


def _of_entry(entry: Series) -> _Judged:
    return _Judged(entry.kind, entry.verdict, frozenset(entry.conditions))


def _agree(expected: _Judged, found: _Judged) -> bool:
    """Whether an entry is the expected one; what is wrong decides whether it counts as uniform."""
    if expected.may_pass and found.verdict == "ok":
        return expected.kind == found.kind
    ignored = {"uniform"} if expected.conditions != {"uniform"} else set()
    return (expected.kind, expected.verdict) == (
        found.kind,
        found.verdict,
    ) and expected.conditions - ignored == found.conditions - ignored


def _truth_by_source(truth: list[Expected]) -> dict[str, list[Expected]]:
    return _by_source([row for row in truth if row.kind != _OTHERS])


def _by_source(things) -> dict[str, list]:
    """Groups what has a source by it; what lies in a zip or tar counts as that file's."""
    found: dict[str, list] = defaultdict(list)
    for thing in things:
        outer = re.match(r".*?\.(?:zip|tar\.gz|tar)(?=$|/)", thing.source)
        found[outer[0] if outer else thing.source].append(thing)
    return found


def _of_others(truth: list[Expected], found: int) -> list[Difference]:
    expected = sum(row.files for row in truth if row.kind == _OTHERS)
    if expected == found:
        return []
    return [Difference(_OTHERS, "all", f"{expected} files", f"{found} files")]


def _is_of_others(series: dict) -> bool:
    return bool(re.match(r"\d+ files? that (is|are) no", series["reason"] or ""))


def _kept(series: dict) -> dict:
    return {name: series[name] for name in ("source", "verdict", "reason")}


def _listed(judged: list[_Judged]) -> str:
    return "; ".join(f"{n} x {one}" for one, n in Counter(judged).items()) or "nothing more"


def _counted(counts: Counter) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())) or "nothing"
