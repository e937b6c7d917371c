"""Certify: every engine and precision that is present runs the same scans, beside the reference."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastmed import bundle as bundles
from fastmed.bundle import Bundle
from fastmed.errors import FastmedError, UsageError
from fastmed.inference import certificate
from fastmed.inference.agreement import Answer, compare
from fastmed.inference.certificate import Certificate, Row
from fastmed.inference.certify_worker import Order, read_answers, read_facts
from fastmed.inference.display import Display
from fastmed.inference.engines import present
from fastmed.inference.engines.kinds import PRECISIONS, device_of, versions
from fastmed.inference.machine import machine
from fastmed.inference.scans import paths_of, readable


@dataclass(frozen=True)
class _Outcome:
    """How the process of one engine and precision ended."""

    answers: list[Answer]
    facts: dict[str, float | None]
    failure: str = ""


def certify(
    bundle: str | Path,
    scans: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    quiet: bool = False,
) -> Certificate:
    """Runs every engine and precision that is present over scans and compares what they find.

    bundle: its folder, which receives certificate.json and certificate.md. scans: a folder or file,
        or several, of the kind that the model is for; every one that can be read is taken.
    device: as `fastmed.load` takes it. quiet: print errors only.

    The reference is torch in float32, or of a bundle that torch cannot build the first engine that
    is present. Each engine runs in a process of its own, so that one that dies is a line and no
    end, and its memory is its own. Limits are the spec's (`fastmed.spec.Limits`); the engines and
    precisions that miss them are passed over by `--engine auto`.

    Raises UsageError where no scan can be read, BundleError for a damaged bundle, FastmedError
    where the reference itself fails or the disk refuses.
    """
    read = bundles.read(bundle)
    display = Display(quiet)
    device = device_of(device)
    paths = paths_of(scans)
    entries = readable(paths, read.spec)
    reference, *others = _candidates(read, device)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fastmed-certify-") as folder:

        def run(engine: str, precision: str) -> _Outcome:
            display.say(f"{engine} in {precision} on {device} ...")
            order = Order(
                bundle=str(read.path),
                engine=engine,
                precision=precision,
                device=device,
                paths=[str(path) for path in paths],
                names=[entry.name for entry in entries],
                output=str(Path(folder) / f"{engine}-{precision}"),
            )
            return _outcome(order)

        expected = run(*reference)
        if expected.failure:
            raise FastmedError(
                f"bundle {read.path}: {reference[0]}, which others are compared with, fails: "
                f"{expected.failure}"
            )
        rows.append(_row(read, *reference, device, expected, expected))
        for engine, precision, lacking in others:
            if lacking:
                rows.append(Row(engine, precision, device, absent=lacking))
                continue
            rows.append(_row(read, engine, precision, device, run(engine, precision), expected))
    found = Certificate(
        model=read.spec.name,
        sha256=read.sha256(),
        reference=reference[0],
        scans=tuple(entry.name for entry in entries),
        machine=machine(device),
        versions=versions(),
        limits=vars(read.spec.limits),
        rows=tuple(rows),
    )
    certificate.write(found, read.path)
    return found


def _candidates(read: Bundle, device: str) -> list[tuple]:
    """The reference (engine, precision), then (engine, precision, what it lacks) of the others."""
    lacking = {precision: present(read, device, precision) for precision in PRECISIONS}
    reference = "torch"
    if lacking["fp32"]["torch"]:
        able = [engine for engine, lack in lacking["fp32"].items() if not lack]
        if not able:
            reasons = "; ".join(f"{e}: {lack}" for e, lack in lacking["fp32"].items())
            raise UsageError(f"no engine runs {read.path} in fp32 on {device}: {reasons}")
        reference = able[0]
    others = [
        (engine, precision, lack)
        for precision, engines in lacking.items()
        for engine, lack in engines.items()
        if (engine, precision) != (reference, "fp32")
    ]
    return [(reference, "fp32"), *others]


def _outcome(order: Order) -> _Outcome:
    """Runs an order in a process of its own."""
    folder = Path(order.output)
    folder.mkdir()
    path = folder / "order.json"
    path.write_text(json.dumps(vars(order)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "fastmed.inference.certify_worker", str(path)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    if done.returncode:
        return _Outcome([], {}, _failure(done.returncode, done.stderr))
    return _Outcome(read_answers(order), read_facts(order))


def _failure(status: int, said: str) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    lines = said.strip().splitlines()
    return lines[-1][:300] if lines else f"its process ended with status {status}"


def _row(
    read: Bundle, engine: str, precision: str, device: str, outcome: _Outcome, expected: _Outcome
) -> Row:
    if outcome.failure:
        return Row(engine, precision, device, misses=(outcome.failure,))
    agreement = compare(outcome.answers, expected.answers, read.spec)
    return Row(
        engine,
        precision,
        device,
        agreement,
        misses=certificate.misses(agreement, read.spec, precision),
        **outcome.facts,
    )
