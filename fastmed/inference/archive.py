"""An archive run: every series under a folder is done, or named with the reason."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastmed import bundle as bundles
from fastmed.bundle import Bundle
from fastmed.errors import FastmedError, SeriesError, UsageError
from fastmed.findings import Findings
from fastmed.inference.case import Model, StageClock, load
from fastmed.inference.certificate import verdicts
from fastmed.inference.display import Display, index_table
from fastmed.inference.engines.kinds import device_of, versions
from fastmed.inference.manifest import engine_of_the_run_in, manifest
from fastmed.inference.memory import keep_freed_memory
from fastmed.inference.run_tables import RunTables
from fastmed.preprocessing.grid import NO_SPACING
from fastmed.readers.dicom_evidence import read_evidence
from fastmed.readers.index import Series, index, read_series
from fastmed.spec import Spec
from fastmed.volume import Volume
from fastmed.writers.dicom_sr import images_with_boxes, write_sr
from fastmed.writers.images import write_preview
from fastmed.writers.label_picture import write_label_picture
from fastmed.writers.nifti import write_labels, write_slice_labels
from fastmed.writers.report import ReportRow, write_report
from fastmed.writers.slice_boxes import boxes_by_slice
from fastmed.writers.tables import write_findings_json, write_json
from fastmed.writers.voc import write_voc

DEFAULT_FORMATS = ("nifti", "json", "csv", "png", "report")
BOX_FORMATS = ("luna", "voc", "coco", "sr")
FORMATS = DEFAULT_FORMATS + BOX_FORMATS


@dataclass(frozen=True)
class Run:
    """What became of a run: its output folder and one row per series, in the index's order.

    series_seconds: seconds per stage (read, resample, network, stitch, decode, write), by name.
    """

    output: Path | None
    rows: tuple[ReportRow, ...]
    series_seconds: dict[str, dict[str, float]]

    @property
    def exit_status(self) -> int:
        """0 where all went well (what is no CT is skipped), 1 where a series did not."""
        return int(any(row.verdict in ("failed", "refused") for row in self.rows))


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
    dry_run: bool = False,
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
    dry_run: say what would be done, and stop. quiet: print errors only.
    keep_memory: where torch runs on the CPU, this process keeps from then on what it frees, which
        makes torch about twice as fast (`fastmed.inference.memory`); the command does so.

    A series' folder appears when it is complete, by one rename. A series that cannot be done is
    named in the rows, in report.html and in manifest.json, and the others go on.

    Raises UsageError for a wrong argument, BundleError for a damaged bundle, FastmedError where
    there is no scan at all or the output folder cannot be written.
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
    found = index(inputs, strict=strict, exclude=[target], modality=read.spec.modality)
    entries = _select([_suited(entry, read.spec) for entry in found], set(series))
    _demand_scans(entries, inputs, read.spec)
    if dry_run:
        index_table(entries)
        return Run(None, tuple(_row(entry) for entry in entries if entry.verdict != "ok"), {})
    loaded = _load(read, target, engine, device, precision, display)
    if keep_memory and (loaded.engine.name, loaded.engine.device) == ("torch", "cpu"):
        keep_freed_memory()
    if model is None:
        display.say(
            f"No --model named: the DEMO bundle {loaded.spec.name} runs. " + loaded.spec.notice
        )
    display.say(f"{loaded.engine_choice[0].upper()}{loaded.engine_choice[1:]}.")
    _prepare(target)
    begun = {"strict": strict, "formats": sorted(formats), "rows": (), "seconds": {}}
    write_json(manifest(loaded, **begun, is_finished=False), target / "manifest.json")

    rows: list[ReportRow] = []
    tables = RunTables(formats)
    seconds: dict[str, dict[str, float]] = {}
    try:
        with display.progress(sum(entry.verdict == "ok" for entry in entries)) as progress:
            for entry in entries:
                if entry.verdict != "ok":
                    rows.append(_row(entry))
                    continue
                clock = StageClock()
                step = progress.start(entry)
                try:
                    findings = _run_one(entry, loaded, target, formats, tables, clock, step)
                    rows.append(_done(entry, findings, target, clock))
                except (FastmedError, OSError, MemoryError) as error:
                    rows.append(_row(entry, verdict="failed", reason=str(error)))
                except Exception as error:  # the other scans go on; this one is named
                    reason = f"unexpected {type(error).__name__}: {error}"
                    rows.append(_row(entry, verdict="failed", reason=reason))
                seconds[entry.name] = clock.seconds
                progress.finish(rows[-1])
    finally:
        rows += [_not_reached(entry) for entry in entries[len(rows) :]]
        _write_tables(target, formats, rows, tables, loaded, strict, seconds)
    display.table(rows)
    display.say(f"Results are in {target}")
    return Run(target, tuple(rows), seconds)


def _load(
    read: Bundle, target: Path, engine: str, device: str, precision: str, display: Display
) -> Model:
    """Loads the model; `auto` keeps the engine of the run whose results lie in `target`."""
    earlier = None
    if engine == "auto":
        device = device_of(device)
        earlier = engine_of_the_run_in(target, read, device, precision)
        if earlier in verdicts(read, device, versions()).refused:
            earlier = None
    if earlier is None:
        return load(read.path, engine=engine, device=device, precision=precision, say=display.say)
    engine, precision = earlier
    try:
        found = load(read.path, engine=engine, device=device, precision=precision, say=display.say)
    except UsageError as error:
        raise UsageError(
            f"{error}; the run in {target} was begun with it: name an engine, or another --output"
        ) from error
    why = f"as the run before in {target}"
    return replace(found, engine_choice=found.engine_choice.replace("as asked", why))


def _run_one(
    entry: Series,
    model: Model,
    output: Path,
    formats: set[str],
    tables: RunTables,
    clock: StageClock,
    progress,
) -> Findings:
    with clock("read"):
        volume = read_series(entry)
    findings = model(volume, clock=clock, progress=progress)
    with clock("write"):
        evidence = None
        if "sr" in formats:
            evidence, findings = _evidence(entry, volume, findings)
        folder = output / "series" / entry.name
        _write_series(volume, findings, folder, formats, model.spec, evidence)
        tables.add(volume, findings)
    return findings


def _evidence(entry: Series, volume: Volume, findings: Findings) -> tuple[list | None, Findings]:
    """What a DICOM report refers to; where the scan has no such thing, a warning in its place."""
    try:
        return read_evidence(entry, images_with_boxes(findings, volume)), findings
    except SeriesError as error:
        warning = f"findings.sr.dcm is left out: {error}"
        return None, replace(findings, warnings=(*findings.warnings, warning))


def _write_series(
    volume: Volume,
    findings: Findings,
    folder: Path,
    formats: set[str],
    spec: Spec,
    evidence: list | None,
) -> None:
    """Writes one series' files into a hidden folder, then renames it into place."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if "nifti" in formats:
            write_labels(findings, partial / "labels.nii.gz")
            if findings.slice_labels:
                write_slice_labels(findings, partial / "labels_slices.npz")
        if "png" in formats and findings.modality == "grey" and findings.labels is not None:
            write_label_picture(findings, partial / "labels.png")
        if "json" in formats:
            write_findings_json(findings, partial / "findings.json")
        if "voc" in formats:
            for at in boxes_by_slice(findings, volume):
                write_voc(at, partial / "voc" / f"{at.name}.xml", folder=findings.series)
        if evidence:
            write_sr(findings, volume, evidence, partial / "findings.sr.dcm")
        if {"png", "report"} & formats:
            threshold = spec.detection.score_threshold if spec.detection else None
            write_preview(
                volume,
                findings,
                partial / "preview.png",
                window_hu=spec.window_hu,
                score_threshold=threshold,
                with_thumbnail="report" in formats,
            )
        if not partial.exists():  # a run that wants findings.csv alone
            return
        _replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_tables(target, formats, rows, tables, model, strict, seconds) -> None:
    facts = manifest(model, strict=strict, formats=sorted(formats), rows=rows, seconds=seconds)
    tables.write(target, model.spec)
    if "report" in formats:
        # The page lists the series, and says at its top what the notice says.
        run = {name: fact for name, fact in facts.items() if name not in ("series", "notice")}
        write_report(rows, run, target / "report.html")
    write_json(facts, target / "manifest.json")


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


def _select(entries: list[Series], wanted: set[str]) -> list[Series]:
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
    """Makes the output folder, shows that it can be written, clears what a killed run left."""
    try:
        (target / "series").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FastmedError(
            f"{target}: cannot be written, {reason}; name another folder with --output"
        ) from error
    for left in target.glob(".*.tmp"):
        left.unlink(missing_ok=True)
    for left in (target / "series").glob(".*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    for old in (target / "series").glob(".*.old"):
        folder = old.with_name(old.name[1 : -len(".old")])
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, folder)


def _done(entry: Series, findings: Findings, target: Path, clock: StageClock) -> ReportRow:
    return ReportRow(
        name=entry.name,
        source=entry.source,
        findings=findings,
        preview_png=target / "series" / entry.name / "preview.png",
        seconds=sum(clock.seconds.values()),
    )


def _not_reached(entry: Series) -> ReportRow:
    """The row of a series that the run was stopped before, or in the midst of."""
    if entry.verdict != "ok":
        return _row(entry)
    reason = "the run was stopped before this scan was done; run it again"
    return _row(entry, verdict="failed", reason=reason)


def _row(entry: Series, *, verdict: str | None = None, reason: str | None = None) -> ReportRow:
    return ReportRow(
        name=entry.name,
        source=entry.source,
        verdict=verdict or entry.verdict,
        reason=reason if reason is not None else entry.reason,
        warnings=entry.warnings,
    )
