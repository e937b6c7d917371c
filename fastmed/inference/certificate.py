"""certificate.json: which engines and precisions give a bundle's answers on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastmed.bundle import Bundle
from fastmed.inference.agreement import Agreement
from fastmed.inference.machine import machine
from fastmed.spec import Spec
from fastmed.writers.atomic import write_atomically
from fastmed.writers.tables import write_json

JSON_FILE, TABLE_FILE = "certificate.json", "certificate.md"
FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One engine in one precision.

    agreement: with the reference; None where it did not run: `absent` says what it lacks, `misses`
        of what it died.
    load_seconds: until the first tile was done, compilation included. network_seconds: of all scans
        in the network. memory_mb: peak of its process above what the scans take; None where nobody
        counts it.
    misses: sentences, one for each limit that it does not keep.
    """

    engine: str
    precision: str
    device: str
    agreement: Agreement | None = None
    load_seconds: float | None = None
    network_seconds: float | None = None
    memory_mb: float | None = None
    misses: tuple[str, ...] = ()
    absent: str = ""

    @property
    def verdict(self) -> str:
        """One of "passed", "REFUSED" and "absent"."""
        return "REFUSED" if self.misses else "absent" if self.absent else "passed"


@dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    reference: the engine, in fp32, that the others are compared with. versions: of each engine's
    library, by the engine's name.
    """

    model: str
    sha256: dict[str, str]
    reference: str
    scans: tuple[str, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    limits: dict[str, float]
    rows: tuple[Row, ...]


def misses(agreement: Agreement, spec: Spec, precision: str) -> tuple[str, ...]:
    """A sentence for each of the spec's limits that an agreement does not keep."""
    limits, found = spec.limits, []
    if precision == "fp32" and not agreement.logits_relative <= limits.logits:
        found.append(
            f"logits differ by {agreement.logits_relative:.2g} of the largest, {limits.logits:g} "
            "may"
        )
    if agreement.equal_labels is not None and not agreement.equal_labels >= limits.equal_labels:
        found.append(
            f"{agreement.equal_labels:.4%} of labels are equal, {limits.equal_labels:.4%} must"
        )
    for name, dice in (agreement.dice or {}).items():
        if dice is not None and not dice >= limits.dice:
            found.append(f"Dice of {name} is {dice:.4f}, must be {limits.dice:g}")
    if agreement.probability is not None and not agreement.probability <= limits.probability:
        found.append(
            f"a probability differs by {agreement.probability:.3g}, {limits.probability:g} may"
        )
    if agreement.boxes == 0:
        found.append("the reference finds no box in these scans; certify on scans with findings")
    if agreement.ap is not None and not agreement.ap >= limits.ap:
        found.append(f"AP of its boxes is {agreement.ap:.3f}, must be {limits.ap:g}")
    return tuple(found)


def write(certificate: Certificate, folder: Path) -> tuple[Path, Path]:
    """Writes certificate.json and its table, certificate.md, into a bundle's folder."""
    facts = {"format": FORMAT, **asdict(certificate)}
    for row, plain in zip(certificate.rows, facts["rows"], strict=True):
        plain["verdict"] = row.verdict
    write_json(facts, folder / JSON_FILE)
    write_atomically(folder / TABLE_FILE, [table(certificate).encode()])
    return folder / JSON_FILE, folder / TABLE_FILE


@dataclass(frozen=True)
class Verdicts:
    """What a bundle's certificate says of the bundle as it is now; empty where it says nothing.

    refused: by engine and precision, the limits that it does not keep. seconds: in the network, of
        those that passed on this machine and device with the library's version of now.
    """

    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)


def verdicts(bundle: Bundle, device: str, versions: Mapping[str, str]) -> Verdicts:
    """Reads a bundle's certificate; one of other weights or of another spec says nothing.

    versions: of each engine's library as it is installed now.
    """
    try:
        facts = json.loads((bundle.path / JSON_FILE).read_text(encoding="utf-8"))
        now = bundle.sha256()
        if facts["format"] != FORMAT or any(now.get(f) != s for f, s in facts["sha256"].items()):
            return Verdicts()
        rows = {(row["engine"], row["precision"]): row for row in facts["rows"]}
        here = facts["machine"] == machine(device)
        return Verdicts(
            {key: "; ".join(row["misses"]) for key, row in rows.items() if row["misses"]},
            {
                key: float(row["network_seconds"])
                for key, row in rows.items()
                if here
                and row["verdict"] == "passed"
                and facts["versions"].get(row["engine"]) == versions.get(row["engine"])
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Verdicts()


def table(certificate: Certificate) -> str:
    """The certificate for people, as markdown."""
    kind = _columns(certificate)
    head = ["engine", "precision", "verdict", *kind, "load, s", "network, s", "memory, MB"]
    scans = f"{len(certificate.scans)} scan{'s' * (len(certificate.scans) > 1)}"
    lines = [
        f"`{certificate.model}` on {scans}, beside {certificate.reference} in fp32; "
        + ", ".join(certificate.machine.values()),
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in certificate.rows:
        if row.agreement is None:
            continue
        cells = [row.engine, row.precision, row.verdict]
        cells += [_cell(asdict(row.agreement), name) for name in kind.values()]
        cells += [f"{row.load_seconds:.1f}", f"{row.network_seconds:.2f}"]
        cells.append("" if row.memory_mb is None else f"{row.memory_mb:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    notes = [
        f"{row.engine} {row.precision}: {row.absent or '; '.join(row.misses)}"
        for row in certificate.rows
        if row.absent or row.misses
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _columns(certificate: Certificate) -> dict[str, str]:
    """Head of each column of agreement that this task has, with its field."""
    columns = {
        "logits, largest difference": "logits_largest",
        "of the largest": "logits_relative",
        "mean difference": "logits_mean",
        "equal labels": "equal_labels",
        "Dice": "dice",
        "probability, largest difference": "probability",
        "AP": "ap",
        "boxes": "boxes",
    }
    known = [asdict(row.agreement) for row in certificate.rows if row.agreement]
    return {
        head: name
        for head, name in columns.items()
        if any(facts[name] is not None for facts in known)
    }


def _cell(facts: dict[str, Any], name: str) -> str:
    value = facts[name]
    if value is None:
        return ""
    if name == "dice":
        return ", ".join(
            f"{label} {dice:.4f}" if dice is not None else f"{label} in no scan"
            for label, dice in value.items()
        )
    if name == "equal_labels":
        return f"{value:.4%}"
    return f"{value:.4f}" if name == "ap" else f"{value:.2g}" if name != "boxes" else str(value)
