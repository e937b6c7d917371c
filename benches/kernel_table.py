"""The table of the kernel benches and its gates: ratios within one run, never times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- kernels: table -->", "<!-- kernels: end of table -->"

# What `at_most` in gates.toml may bound; a rival's or a call's name follows the last two.
COPY, WARM, LIMIT, MEMORY = "plain copy of the output", "warm copy", "limit", "extra memory, MB"
FRESH = "itself, in fresh memory"
MEMORY_OF, TIME_OF = "extra memory of ", "time of "


@dataclass(frozen=True)
class Row:
    """One call as it was measured: seconds and bytes, its rivals' beside it.

    copy, warm_copy: seconds of copying the output, to fresh memory and to memory in use.
    fresh: seconds of the same call where no memory of earlier results is kept.
    limit: seconds of reading the inputs and writing the outputs once at the measured copy speed.
    left_out: rivals that cannot do it, and why.
    details: which of its ways a rival went.
    """

    op: str
    case: str
    device: str
    seconds: float
    large: bool = True
    rivals: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    copy: float = math.nan
    warm_copy: float = math.nan
    fresh: float = math.nan
    limit: float = math.nan
    extra: float = math.nan
    rivals_extra: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """Its section in gates.toml."""
        name = f"{self.op}-{self.case}"
        return name if self.device == "cpu" else f"{name} on {self.device}"

    def ratios(self) -> dict[str, float]:
        """How many times longer each rival takes."""
        return {name: taken / self.seconds for name, taken in self.rivals.items()}


def measures(row: Row, rows: Iterable[Row]) -> dict[str, float]:
    """Everything of a row that `at_most` may bound, by name."""
    found = {
        COPY: row.seconds / row.copy,
        WARM: row.seconds / row.warm_copy,
        FRESH: row.seconds / row.fresh,
        LIMIT: row.seconds / row.limit,
        MEMORY: row.extra / 2**20,
    }
    for name, extra in row.rivals_extra.items():
        found[MEMORY_OF + name] = row.extra / extra if extra else math.nan
    for other in rows:
        if other is not row and other.device == row.device:
            found[TIME_OF + f"{other.op}-{other.case}"] = row.seconds / other.seconds
    return found


def fallen(rows: Sequence[Row], gates: Mapping[str, Mapping]) -> list[str]:
    """One sentence for every floor missed, every bound passed and every rival that is faster."""
    sentences = []
    for row in rows:
        mine = gates.get(row.key, {})
        for name, ratio in row.ratios().items():
            floor = mine.get(name, 1.0)
            if not ratio >= floor:
                slower = "SLOWER: " if ratio < 1 else ""
                sentences.append(
                    f"{slower}{row.key}: {ratio:.2f} times faster than {name}, the floor is "
                    f"{floor:g}"
                )
        found = measures(row, rows)
        for name, bound in mine.get("at_most", {}).items():
            value = found.get(name, math.nan)
            # What could not be measured here (no /proc, a call not in this run) cannot fail.
            if value > bound:
                sentences.append(
                    f"{row.key}: {name}: {value:.2f}, may be {bound:g} at most"
                    if name == MEMORY
                    else f"{row.key}: {value:.2f} of {name}, may be {bound:g} at most"
                )
    return sentences


def unknown(gates: Mapping[str, Mapping], keys: Iterable[str]) -> list[str]:
    """Sections of the gates that name no call."""
    return sorted(set(gates) - set(keys))


def suggested(rows: Sequence[Row], share: float = 0.7) -> str:
    """gates.toml with each floor at a share of what was measured; for large calls alone."""
    lines = []
    for row in rows:
        if not row.large or not row.rivals:
            continue
        lines.append(f'["{row.key}"]')
        for name, ratio in row.ratios().items():
            lines.append(f'"{name}" = {_rounded_down(ratio * share):g}')
        lines.append("")
    return "\n".join(lines)


HEADER = (
    "call", "ms", "extra MB", "against", "its ms", "times faster", "its extra MB", "gate", "",
)  # fmt: skip


def lines(rows: Sequence[Row], gates: Mapping[str, Mapping]) -> list[list[str]]:
    """Cells of the large calls: a line per rival, then the copy of the output and the limit."""
    table = []
    for row in rows:
        if not row.large:
            continue
        mine = gates.get(row.key, {})
        bounds = mine.get("at_most", {})
        found = measures(row, rows)
        block = []
        for name, ratio in row.ratios().items():
            floor = mine.get(name)
            verdict = "SLOWER" if ratio < 1 else ""
            if floor is not None:
                verdict = "ok" if ratio >= floor else "BELOW"
            theirs = _megabytes(row.rivals_extra.get(name, math.nan))
            gate = "" if floor is None else f">= {floor:g}"
            detail = f" ({row.details[name]})" if row.details.get(name) else ""
            taken = _milliseconds(row.rivals[name])
            block.append([name + detail, taken, _times(ratio), theirs, gate, verdict])
        block += [[name, "-", "-", why, "", ""] for name, why in row.left_out.items()]
        beside = {FRESH: row.fresh, COPY: row.copy, WARM: row.warm_copy, LIMIT: row.limit}
        for name, taken in beside.items():
            if taken == taken:
                gate, verdict = _bound(bounds, name, found)
                share = f"{_figures(row.seconds / taken)} of it"
                block.append([name, _milliseconds(taken), share, "", gate, verdict])
        for name in bounds:
            if name not in beside:
                gate, verdict = _bound(bounds, name, found)
                value = found.get(name, math.nan)
                block.append([name, "", f"{value:.2f}", "", gate, verdict])
        title = row.key + (f" ({row.note})" if row.note else "")
        first = [title, _milliseconds(row.seconds), _megabytes(row.extra)]
        for number, cells in enumerate(block or [[""] * 6]):
            table.append([*(first if number == 0 else [""] * 3), *cells])
    return table


def small(rows: Sequence[Row]) -> list[str]:
    """One line per op and device for the calls that are not large."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row.large:
            groups.setdefault((row.op, row.device), []).append(row)
    found = []
    for (op, device), group in groups.items():
        ratios = [(ratio, row.case, name) for row in group for name, ratio in row.ratios().items()]
        where = "" if device == "cpu" else f" on {device}"
        if ratios:
            least, case, name = min(ratios)
            middle = statistics.median(ratio for ratio, _, _ in ratios)
            slower = sum(ratio < 1 for ratio, _, _ in ratios)
            found.append(
                f"{op}{where}: {len(group)} small calls; times faster: least {_times(least)} "
                f"({case}, {name}), median {_times(middle)}; slower in {slower} of {len(ratios)}"
            )
        else:
            found.append(f"{op}{where}: {len(group)} small calls without a rival")
    return found


def text(table: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal."""
    full = [HEADER, *table]
    widths = [max(len(row[k]) for row in full) for k in range(len(HEADER))]
    left = (0, 3, 7, 8)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in full
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The same for a document, without gates."""
    full = [HEADER[:7], ["---", "--:", "--:", "---", "--:", "--:", "--:"]]
    full += [row[:7] for row in table]
    return "\n".join("| " + " | ".join(row) + " |" for row in full)


def write_into(path: Path, content: str) -> None:
    """Replaces what stands between the two marks of a document, or writes a file without marks."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN in before and END in before:
        head, rest = before.split(BEGIN, 1)
        tail = rest.split(END, 1)[1]
        content = f"{head}{BEGIN}\n{content}\n{END}{tail}"
    path.write_text(content, encoding="utf-8")


def _bound(bounds: Mapping, name: str, found: Mapping[str, float]) -> tuple[str, str]:
    if name not in bounds:
        return "", ""
    value = found.get(name, math.nan)
    verdict = "not measured" if math.isnan(value) else "ok" if value <= bounds[name] else "ABOVE"
    return f"<= {bounds[name]:g}", verdict


def _milliseconds(taken: float) -> str:
    return f"{taken * 1e3:.{3 if taken < 1e-3 else 2 if taken < 0.1 else 0}f}"


def _megabytes(count: float) -> str:
    return "-" if math.isnan(count) else f"{count / 2**20:.{1 if count < 100 * 2**20 else 0}f}"


def _times(ratio: float) -> str:
    return f"{_figures(ratio)}x"


def _figures(value: float) -> str:
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _rounded_down(value: float) -> float:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return math.floor(value * 10**digits) / 10**digits
