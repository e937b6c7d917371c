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
from fastmed.errors import FastmedError, UsageError
from fastmed.findings import Findings
from fastmed.inference.case import Model, StageClock, load
from fastmed.inference.display import Display, index_table
from fastmed.inference.manifest import manifest
from fastmed.preprocessing.grid import NO_SPACING
from fastmed.readers.index import Series, index, read_series
from fastmed.spec import Spec
from fastmed.volume import Volume
from fastmed.writers.images import write_preview
from fastmed.writers.label_picture import write_label_picture
from fastmed.writers.nifti import write_labels, write_slice_labels
from fastmed.writers.report import ReportRow, write_report
from fastmed.writers.tables import (
    findings_rows,
    write_findings_csv,
    write_findings_json,
    write_json,
)

FORMATS = ("nifti", "json", "csv", "png", "report")


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
    write: Iterable[str] = FORMATS,
    strict: bool = True,
    series: Iterable[str] = (),
    dry_run: bool = False,
    quiet: bool = False,
) -> Run:
    """Runs a model over every scan below `input` and writes the results below `output`.

    A model of CT takes CT series and volumes, one of grey images takes pictures (PNG, BMP, JPEG,
    TIFF); a segmentation writes label maps (labels.nii.gz, of grey images labels.png), a
    classification scores.

    input: a folder or file, or several. output: defaults to ./fastmed-results/<input's name>.
    model: a bundle's folder; None takes the package's demo bundle and says so.
    engine, device: as `fastmed.load` takes them.
    write: some of FORMATS; nifti stands for labels.nii.gz, png for preview.png and labels.png. What
        a model has none of is left out; where nothing remains, that is a wrong usage.
    strict: refuse scans of doubtful geometry instead of mending them.
    series: names (SeriesInstanceUIDs) to run; empty runs all.
    dry_run: say what would be done, and stop. quiet: print errors only.

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
    loaded = load(model, engine=engine, device=device)
    if model is None:
        display.say(
            f"No --model named: the DEMO bundle {loaded.spec.name} runs. " + loaded.spec.notice
        )
    display.say(f"{loaded.engine_choice[0].upper()}{loaded.engine_choice[1:]}.")
    _prepare(target)

    rows: list[ReportRow] = []
    csv_rows: list[dict] = []
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
                    findings = _run_one(entry, loaded, target, formats, clock, step)
                    csv_rows += findings_rows(findings)
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
        _write_tables(target, formats, rows, csv_rows, loaded, strict, seconds)
    display.table(rows)
    display.say(f"Results are in {target}")
    return Run(target, tuple(rows), seconds)


def _run_one(
    entry: Series, model: Model, output: Path, formats: set[str], clock: StageClock, progress
) -> Findings:
    with clock("read"):
        volume = read_series(entry)
    findings = model(volume, clock=clock, progress=progress)
    with clock("write"):
        folder = output / "series" / entry.name
        _write_series(volume, findings, folder, formats, model.spec.window_hu)
    return findings


def _write_series(
    volume: Volume, findings: Findings, folder: Path, formats: set[str], window_hu
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
        if {"png", "report"} & formats:
            write_preview(volume, findings, partial / "preview.png", window_hu=window_hu)
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


def _write_tables(target, formats, rows, csv_rows, model, strict, seconds) -> None:
    facts = manifest(model, strict=strict, formats=sorted(formats), rows=rows, seconds=seconds)
    if "csv" in formats:
        write_findings_csv(csv_rows, target / "findings.csv")
    if "report" in formats:
        # The page lists the series, and says at its top what the notice says.
        run = {name: fact for name, fact in facts.items() if name not in ("series", "notice")}
        write_report(rows, run, target / "report.html")
    write_json(facts, target / "manifest.json")


def _formats(write: Iterable[str], spec: Spec) -> set[str]:
    """What to write, without the label maps in NIfTI that a model has none of."""
    formats = set(write)
    unknown = formats - set(FORMATS)
    if unknown or not formats:
        named = ",".join(sorted(unknown)) or "names nothing"
        raise UsageError(f"--write {named}: expected some of {','.join(FORMATS)}")
    if spec.task == "classification" or spec.modality == "grey":
        formats.discard("nifti")
    if not formats:
        has = "scores, and no label map" if spec.task == "classification" else "labels.png (png)"
        raise UsageError(f"--write nifti: the model {spec.name} writes {has}; name another format")
    return formats


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
