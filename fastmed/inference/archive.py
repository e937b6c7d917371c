"""An archive run: every series under a folder is done, or named with the reason."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastmed import bundle as bundles
from fastmed.errors import FastmedError, UsageError
from fastmed.inference.display import Display, index_table
from fastmed.inference.journal import DiskFull, Journal
from fastmed.inference.manifest import run_facts, write_manifest
from fastmed.inference.memory_budget import budget_of
from fastmed.inference.outcome import counts, report_row
from fastmed.inference.owners import Owner
from fastmed.inference.recovery import recover
from fastmed.inference.run import Run
from fastmed.inference.run_events import RunEvents
from fastmed.inference.run_log import RunLog
from fastmed.inference.run_plan import (
    Selection,
    asked_for,
    entries_of,
    plan,
    row_of,
    share_of,
)
from fastmed.inference.run_settings import RunSettings
from fastmed.inference.run_tables import write_run_tables
from fastmed.inference.workers import Workers
from fastmed.readers.index_store import open_store
from fastmed.readers.walk import MANIFEST
from fastmed.spec import Spec
from fastmed.writers.report import write_report

DEFAULT_FORMATS = ("nifti", "json", "csv", "png", "report")
BOX_FORMATS = ("luna", "voc", "coco", "sr")
FORMATS = DEFAULT_FORMATS + BOX_FORMATS
ATTEMPTS = 3
HANG_SECONDS = 900.0


def infer(
    input: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    model: str | Path | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    write: Iterable[str] = DEFAULT_FORMATS,
    strict: bool = True,
    series: Iterable[str] = (),
    part: str = "",
    dry_run: bool = False,
    fresh: bool = False,
    workers: int = 0,
    attempts: int = ATTEMPTS,
    hang_seconds: float = HANG_SECONDS,
    memory_gb: float | None = None,
    tune_malloc: bool = False,
    log: str | Path | None = None,
    quiet: bool = False,
) -> Run:
    """Runs a model over every scan below `input` and writes the results below `output`.

    A model of CT takes CT series and volumes, one of grey images takes pictures (PNG, BMP, JPEG,
    TIFF); a segmentation writes label maps (labels.nii.gz, of grey images labels.png), a
    classification scores, a detection boxes.

    input: a folder or file, or several. output: defaults to ./fastmed-results/<input's name>.
    model: a bundle's folder; None takes the package's demo bundle and says so.
    engine, device, precision: as `fastmed.load` takes them; "auto" keeps the engine of an earlier
        run of the same model into the same folder, so that its results are of one engine.
    write: some of FORMATS; nifti stands for labels.nii.gz, png for preview.png and labels.png, and
        of a detection luna for marks.csv, voc for an XML file per slice with findings, coco for
        coco.json, sr for findings.sr.dcm. What a model has none of is left out; where nothing
        remains, that is a wrong usage.
    strict: refuse scans of doubtful geometry instead of mending them.
    series: names (SeriesInstanceUIDs) to run; empty runs all.
    part: "2/8" takes the second of eight shares of the series; whoever runs the others, on other
        machines, shares nothing with this run but the archive.
    dry_run: say what would be done, and stop. quiet: print errors only.
    fresh: do everything again; each result stays until the new one takes its place.
    workers: processes that run scans, each with its own model. One looks after them, so that a
        crash or a hang costs one scan. 0 does all in this process; the command starts one.
    attempts: how often a failing series is tried before it is set aside.
    hang_seconds: a scan of which nothing is heard for so long is stopped (with workers only).
    memory_gb: what the scans in hand may take together; None takes half of what is free.
    log: a file to which what happens is appended, one JSON object to the line.
    tune_malloc: this process's malloc is set for a run (`fastmed.malloc`): with torch on the CPU,
        to keep from then on what is freed, which makes it about twice as fast; else to return
        large blocks at once, so that a long run takes no more than a short one. The kernels keep
        no memory of results then (`fastmed.ops.keep_result_memory`). The command does so.

    A series' folder appears when it is complete, by one rename. A series that cannot be done is
    named in the rows, in report.html and in manifest.json, and the others go on. What is done
    stands in journal.sqlite: the same call goes on where a run was stopped or killed, and does
    again only what other settings or other files touch. Several may work on one folder.

    Raises UsageError for a wrong argument, BundleError for a damaged bundle, FastmedError where
    there is no scan at all or the output folder cannot be written (DiskFull: it is full).
    """
    inputs = [Path(p) for p in ([input] if isinstance(input, str | Path) else input)]
    if not inputs:
        raise UsageError("--input: name at least one folder or file")
    read = bundles.read(model if model is not None else bundles.demo_path())
    formats = _formats(write, read.spec)
    target = Path(output) if output is not None else default_output(inputs)
    display = Display(quiet)
    if any(target.resolve() == path.resolve() for path in inputs):
        raise UsageError(f"--output {target}: it is the input itself; name another folder")
    for path in inputs:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    select = Selection(frozenset(series), share_of(part))
    _check_counts(workers, attempts, hang_seconds, memory_gb)
    settings = RunSettings(
        bundle=str(read.path.resolve()),
        output=str(target.resolve()),
        engine=engine,
        device=device,
        precision=precision,
        strict=strict,
        formats=tuple(sorted(formats)),
        attempts=attempts,
        memory_bytes=budget_of(memory_gb) // max(workers, 1),
        tune_malloc=tune_malloc,
        asked_for=(tuple(os.path.abspath(p) for p in inputs), tuple(sorted(series)), (part,)),
    )
    searched = (inputs, target, read.spec, settings, select)
    if dry_run:
        with open_store(inputs, modality=read.spec.modality) as store:
            entries = [entry for entry, is_wanted in entries_of(*searched, store) if is_wanted]
        index_table(entries)
        return Run.dry(tuple(row_of(entry) for entry in entries if entry.verdict != "ok"))
    with contextlib.ExitStack() as stack:
        run_log = stack.enter_context(RunLog(log))
        before = _facts_before(target)
        runs = stack.enter_context(_runs(settings, before, workers, display.say, hang_seconds))
        facts = runs.facts()
        with (
            open_store(inputs, modality=read.spec.modality) as store,
            contextlib.closing(entries_of(*searched, store)) as entries,
        ):
            if model is None:
                display.say(
                    f"No --model named: the DEMO bundle {read.spec.name} runs. {read.spec.notice}"
                )
            choice = facts["engine_choice"]
            display.say(f"{choice[0].upper()}{choice[1:]}.")
            _prepare(target)
            journal = stack.enter_context(Journal(target))
            owner = stack.enter_context(Owner(target, asked_for(settings, facts)))
            plan(journal, settings, facts, entries, owner.token, fresh=fresh)
        begun = run_facts(facts, settings, is_finished=False)
        write_manifest(begun, journal.listed(), target / MANIFEST)
        events = stack.enter_context(RunEvents(journal, facts, run_log, quiet))
        try:
            runs.run(journal, events.take)
        except BaseException as error:
            runs.stop()
            with contextlib.suppress(FastmedError):  # where the disk is full, for one
                recover(journal)
                _write_tables(journal, settings, facts, read.spec, is_finished=False)
            if isinstance(error, DiskFull):
                raise DiskFull(f"{error}; {_left(journal)}") from error
            raise
        journal.set_fact("finished", True)
        _write_tables(journal, settings, facts, read.spec, is_finished=True)
        display.table(
            (report_row(unit, target) for unit in journal.listed()), counts(journal.listed())
        )
    display.say(f"Results are in {target}")
    return Run(target)


def _runs(settings: RunSettings, before, workers: int, say, hang_seconds: float):
    """Who does the scans: workers, for which this process need not wait for torch, or itself."""
    if workers:
        return Workers(settings, before, workers, say, hang_seconds)
    from fastmed.inference.in_this_process import InThisProcess

    return InThisProcess(settings, before, say)


def _facts_before(target: Path) -> dict[str, Any] | None:
    """What the journal of an earlier run in this folder says of its model."""
    if not (target / "journal.sqlite").exists():
        return None
    with Journal(target) as journal:
        return journal.fact("model")


def _write_tables(
    journal: Journal, settings: RunSettings, facts: dict[str, Any], spec: Spec, *, is_finished: bool
) -> None:
    target, formats = settings.output_path, set(settings.formats)
    run = run_facts(facts, settings, is_finished=is_finished)
    write_run_tables(journal.listed, formats, spec, target)
    if "report" in formats:
        # The page says at its top what the notice says.
        shown = {name: fact for name, fact in run.items() if name != "notice"}
        rows = (report_row(unit, target) for unit in journal.listed())
        write_report(rows, shown, target / "report.html", counts=counts(journal.listed()))
    write_manifest(run, journal.listed(), target / MANIFEST)


def _left(journal: Journal) -> str:
    left = journal.counts().get("waiting", 0)
    scans = "1 scan is" if left == 1 else f"{left} scans are"
    return f"{scans} left, with which the same command goes on"


def _check_counts(workers, attempts, hang_seconds, memory_gb) -> None:
    least = {
        "--workers": (workers, 0),
        "--attempts": (attempts, 1),
        "--hang": (hang_seconds, 1),
        "--memory": (1 if memory_gb is None else memory_gb, 0.001),
    }
    for flag, (value, smallest) in least.items():
        if not value >= smallest:
            raise UsageError(f"{flag} {value:g}: expected at least {smallest:g}")


def _formats(write: Iterable[str], spec: Spec) -> set[str]:
    """What to write, without what a model of this kind has none of."""
    wanted = set(write)
    unknown = wanted - set(FORMATS)
    if unknown or not wanted:
        named = ",".join(sorted(unknown)) or "names nothing"
        raise UsageError(f"--write {named}: expected some of {','.join(FORMATS)}")
    absent: set[str] = set()
    if spec.task != "segmentation" or spec.modality == "grey":
        absent.add("nifti")
    if spec.task != "detection":
        absent.update(BOX_FORMATS)
    elif spec.modality == "grey":  # no millimetres, no DICOM
        absent.update(("luna", "sr"))
    if not wanted - absent:
        named = ",".join(name for name in FORMATS if name in wanted)
        raise UsageError(
            f"--write {named}: the model {spec.name} writes {_written_by(spec)}; "
            "name another format"
        )
    return wanted - absent


def _written_by(spec: Spec) -> str:
    if spec.task == "segmentation":
        return "labels.png (png)" if spec.modality == "grey" else "label maps (nifti)"
    return "scores, and no label map" if spec.task == "classification" else "boxes, no label map"


def default_output(inputs: list[Path]) -> Path:
    return Path("fastmed-results") / (Path(os.path.abspath(inputs[0])).name or "scans")


def _prepare(target: Path) -> None:
    """Makes the output folder and shows that it can be written."""
    try:
        (target / "series").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FastmedError(
            f"{target}: cannot be written, {reason}; name another folder with --output"
        ) from error
