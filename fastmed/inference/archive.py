"""An archive run: every series under a folder is done, or named with the reason."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmed import bundle as bundles
from fastmed.errors import FastmedError, UsageError
from fastmed.inference.display import Display, index_table
from fastmed.inference.journal import DiskFull, Journal, Planned
from fastmed.inference.manifest import run_facts, write_manifest
from fastmed.inference.memory_budget import default_budget
from fastmed.inference.outcome import counts, report_row
from fastmed.inference.owners import Owner
from fastmed.inference.recovery import recover, remove_temporary_files
from fastmed.inference.run import Run
from fastmed.inference.run_settings import RunSettings, digest
from fastmed.inference.run_tables import write_run_tables
from fastmed.inference.series_folder import is_whole
from fastmed.inference.workers import Workers
from fastmed.readers.index import Series, index
from fastmed.readers.series_json import series_dict
from fastmed.readers.walk import MANIFEST
from fastmed.spec import Spec
from fastmed.volume import NO_SPACING
from fastmed.writers.report import ReportRow, write_report

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
    keep_memory: bool = False,
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
    keep_memory: where torch runs on the CPU, this process keeps from then on what it frees, which
        makes torch about twice as fast (`fastmed.inference.memory`); the command does so.

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
    target = Path(output) if output is not None else _default_output(inputs)
    display = Display(quiet)
    if any(target.resolve() == path.resolve() for path in inputs):
        raise UsageError(f"--output {target}: it is the input itself; name another folder")
    for path in inputs:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    share = _share(part)
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
        memory_bytes=default_budget() if memory_gb is None else int(memory_gb * 2**30),
        keep_memory=keep_memory,
    )
    select = Selection(frozenset(series), share)
    if dry_run:
        entries, chosen = _entries(inputs, target, read.spec, settings, select)
        wanted = [entry for entry in entries if entry.name in chosen]
        index_table(wanted)
        return Run.dry(tuple(_row(entry) for entry in wanted if entry.verdict != "ok"))
    runner = _InWorkers if workers else _InThisProcess
    # Workers load the model while the archive is looked through.
    with runner(settings, _facts_before(target), workers, display, hang_seconds) as runs:
        found = _InBackground(_entries, inputs, target, read.spec, settings, select)
        facts = runs.facts(found.raise_what_it_met)
        entries, chosen = found.result()
        if model is None:
            display.say(
                f"No --model named: the DEMO bundle {read.spec.name} runs. " + read.spec.notice
            )
        choice = facts["engine_choice"]
        display.say(f"{choice[0].upper()}{choice[1:]}.")
        _prepare(target)
        with Journal(target) as journal:
            _plan(journal, settings, facts, entries, chosen, fresh)
            write_manifest(run_facts(facts, settings, is_finished=False), (), target / MANIFEST)
            try:
                _follow(runs, journal, display)
            except BaseException as error:
                runs.stop()
                with contextlib.suppress(FastmedError):  # where the disk is full, for one
                    _write_tables(journal, settings, facts, read.spec, is_finished=False)
                if isinstance(error, DiskFull):
                    raise DiskFull(f"{error}; {_left(journal)}") from error
                raise
            journal.set_fact("finished", True)
            _write_tables(journal, settings, facts, read.spec, is_finished=True)
    done = Run(target)
    display.table(done.rows)
    display.say(f"Results are in {target}")
    return done


@dataclass(frozen=True)
class Selection:
    """Which series of an archive a run takes: those named (all, if none), of one share of n."""

    names: frozenset[str]
    share: tuple[int, int] | None


def _entries(
    inputs: list[Path], target: Path, spec: Spec, settings: RunSettings, select: Selection
) -> tuple[list[Series], set[str]]:
    """The entries of the index, and the names of those that were asked for."""
    found = index(inputs, strict=settings.strict, exclude=[target], modality=spec.modality)
    entries = [_suited(entry, spec) for entry in found]
    chosen = _chosen(entries, select)
    if select.share is None:
        _demand_scans([entry for entry in entries if entry.name in chosen], inputs, spec)
    return entries, chosen


def _plan(
    journal: Journal,
    settings: RunSettings,
    facts: dict[str, Any],
    entries: list[Series],
    chosen: set[str],
    fresh: bool,
) -> None:
    """Clears up after the dead, then writes what is to be done into the journal."""
    recover(journal)
    remove_temporary_files(journal)
    _refuse_another_run(journal, settings, facts)
    journal.set_fact("model", facts)
    series_folder = settings.output_path / "series"
    journal.plan(
        _plans(entries, chosen, settings.results_key(facts)),
        fresh=fresh,
        is_there=lambda unit: is_whole(series_folder / unit.name, unit.files),
    )


class _InBackground:
    """A call in a thread of its own, which nobody need wait for."""

    def __init__(self, function: Callable, *arguments) -> None:
        self._future: Future = Future()
        call = threading.Thread(target=self._call, args=(function, arguments), daemon=True)
        call.start()

    def _call(self, function: Callable, arguments: tuple) -> None:
        try:
            self._future.set_result(function(*arguments))
        except BaseException as error:
            self._future.set_exception(error)

    def raise_what_it_met(self) -> None:
        if self._future.done():
            self._future.result()

    def result(self) -> Any:
        return self._future.result()


class _InThisProcess:
    """Runs the scans in this process."""

    def __init__(self, settings, before, workers, display, hang_seconds) -> None:
        self._settings, self._before, self._display = settings, before, display
        self._stopped = threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()

    def facts(self, meanwhile: Callable[[], None]) -> dict[str, Any]:
        from fastmed.inference.manifest import model_facts
        from fastmed.inference.run_model import load_for_run

        self._model = load_for_run(self._settings, self._before, self._display.say)
        return model_facts(self._model)

    def run(self, journal: Journal, on_event) -> None:
        from fastmed.inference.pipeline import Pipeline

        lock = threading.Lock()

        def report(event: dict[str, Any]) -> None:
            with lock:
                on_event(event)

        with Owner(journal.folder) as owner:
            Pipeline(journal, owner.token, self._model, self._settings, report, self._stopped).run()


class _InWorkers(Workers):
    """Runs the scans in processes of their own."""

    def __init__(self, settings, before, workers, display, hang_seconds) -> None:
        super().__init__(settings, before, workers, display.say, hang_seconds)


def _follow(runs, journal: Journal, display: Display) -> None:
    """Has the scans run, and shows what happens."""
    sources = {}
    total = journal.counts().get("waiting", 0)
    with display.progress(total) as progress:

        def on_event(event: dict[str, Any]) -> None:
            what, name = event["event"], event.get("name")
            if what == "stage":
                sources[name] = event["source"]
                if event["stage"] == "network":
                    progress.start(event["source"])
            elif what == "tiles":
                progress.tiles(sources[name], event["done"], event["total"])
            elif what in ("done", "unchanged") or (what == "failed" and not event["again"]):
                sources.pop(name, None)
                progress.finish(report_row(journal.unit(name), journal.folder))

        runs.run(journal, on_event)


def _plans(entries: Sequence[Series], chosen: set[str], key: str) -> Iterator[Planned]:
    """What a run wants of each entry: its key names the model, the settings, and what the index
    says of the series; its stamp names the files."""
    for entry in entries:
        plain = series_dict(entry)
        members = plain.pop("members")
        yield Planned(
            name=entry.name,
            source=entry.source,
            verdict=entry.verdict,
            reason=entry.reason,
            warnings=entry.warnings,
            entry=plain | {"members": members},
            key=digest([key, plain]),
            stamp=digest(members),
            is_wanted=entry.name in chosen,
        )


def _facts_before(target: Path) -> dict[str, Any] | None:
    """What the journal of an earlier run in this folder says of its model."""
    if not (target / "journal.sqlite").exists():
        return None
    with Journal(target) as journal:
        return journal.fact("model")


def _refuse_another_run(journal: Journal, settings: RunSettings, facts: dict[str, Any]) -> None:
    """Raises UsageError where a process is at work in the folder that makes other results."""
    wanted = digest([settings.results_key(facts), settings.strict])
    if journal.owners() and journal.fact("results") not in (None, wanted):
        raise UsageError(
            f"--output {settings.output}: another process is at work there with another model or "
            "other settings; wait for it, or name another folder"
        )
    journal.set_fact("results", wanted)


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


def _share(part: str) -> tuple[int, int] | None:
    """(i, n) of "i/n"; None where all series are wanted."""
    if not part:
        return None
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--part {part}: expected i/n with i from 1 to n, such as 2/8")
    return int(found[1]), int(found[2])


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


def _chosen(entries: Sequence[Series], select: Selection) -> set[str]:
    """Names of the entries that were asked for."""
    selected = _select(entries, set(select.names))
    if select.share is not None:
        number, shares = select.share
        selected = [e for e in selected if int(digest(_identity(e)), 16) % shares == number - 1]
    return {entry.name for entry in selected}


def _identity(entry: Series) -> str:
    """What decides the share of an entry: volumes split from one series stay together."""
    return re.sub(r"-\d+$", "", entry.name)


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


def _suited(entry: Series, spec: Spec) -> Series:
    """The entry, refused where it lacks what this model needs and can be read for others."""
    needs_mm = spec.modality == "ct" and spec.spacing_mm_zyx is not None
    if entry.verdict == "ok" and needs_mm and not entry.spacing_is_known:
        return replace(entry, verdict="refused", reason=NO_SPACING, warnings=())
    return entry


def _default_output(inputs: list[Path]) -> Path:
    return Path("fastmed-results") / (Path(os.path.abspath(inputs[0])).name or "scans")


def _select(entries: Sequence[Series], wanted: set[str]) -> Sequence[Series]:
    """The entries of the wanted names; a UID also stands for the volumes split from its series."""
    if not wanted:
        return entries
    names = {entry.name: {entry.name, re.sub(r"-\d+$", "", entry.name)} for entry in entries}
    if missing := wanted - set().union(*names.values()):
        raise UsageError(f"--series {', '.join(sorted(missing))}: not among the series found")
    return [entry for entry in entries if names[entry.name] & wanted]


def _demand_scans(entries: list[Series], inputs: list[Path], spec: Spec) -> None:
    if any(entry.verdict != "skipped" for entry in entries):
        return
    where = ", ".join(str(path) for path in inputs)
    if not entries:
        wanted = "CT scans" if spec.modality == "ct" else "grey images"
        raise FastmedError(f"{where}: no files here; name a folder of {wanted} with --input")
    found = ", ".join(sorted({entry.kind for entry in entries}))
    wanted = "CT series" if spec.modality == "ct" else "grey image"
    raise FastmedError(
        f"{where}: no {wanted} among {len(entries)} entries ({found}); fastmed index says more"
    )


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


def _row(entry: Series) -> ReportRow:
    return ReportRow(
        name=entry.name,
        source=entry.source,
        verdict=entry.verdict,
        reason=entry.reason,
        warnings=entry.warnings,
    )
