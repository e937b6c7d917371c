"""fastmed infer and fastmed index: what the command does with a whole archive."""

from __future__ import annotations

import argparse
from pathlib import Path

import fastmed
from fastmed.errors import FastmedError


def infer(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        from fastmed.inference.verify import verify

        return verify(arguments.verify, quiet=arguments.quiet).exit_status
    if not arguments.input:
        arguments.complain("--input PATH is missing: name folders or files")
    return fastmed.infer(
        arguments.input,
        arguments.output,
        model=arguments.model,
        engine=arguments.engine,
        device=arguments.device,
        precision=arguments.precision,
        write=[name.strip() for name in arguments.write.split(",") if name.strip()],
        strict=arguments.strict,
        series=arguments.series,
        part=arguments.part,
        dry_run=arguments.dry_run,
        fresh=arguments.fresh,
        workers=arguments.workers,
        attempts=arguments.attempts,
        hang_seconds=arguments.hang,
        memory_gb=arguments.memory,
        tune_malloc=True,
        log=arguments.log,
        quiet=arguments.quiet,
    ).exit_status


def index(arguments: argparse.Namespace) -> int:
    from fastmed.inference.display import Display, IndexTable, files_looked_at
    from fastmed.inference.index_lines import write_index_lines
    from fastmed.readers.index import iter_index
    from fastmed.readers.index_store import open_store

    table = IndexTable()
    options = {"strict": arguments.strict, "modality": arguments.modality}
    with open_store(arguments.path, modality=arguments.modality, fresh=arguments.fresh) as store:
        entries = files_looked_at(iter_index(arguments.path, store=store, **options), store)
        entries = map(table.add, entries)
        if arguments.json:
            write_index_lines(arguments.json, entries)
        for _ in entries:
            pass
        looked = str(store.counts)
    if not table.counts:
        raise FastmedError(f"{', '.join(map(str, arguments.path))}: no files here")
    table.print()
    Display(quiet=False).say(looked)
    return int(bool(table.counts["refused"] or table.counts["failed"]))


def kept(arguments: argparse.Namespace) -> str:
    """What a command that was stopped leaves behind, and what the same command will do."""
    if arguments.run is index:
        return "files that were read are remembered; the same command goes on"
    if arguments.run is not infer:
        return "the same command starts anew"
    if arguments.verify or arguments.dry_run:
        return "nothing was changed"
    from fastmed.inference.archive import default_output
    from fastmed.inference.journal import FILE, Journal

    output = arguments.output or default_output(arguments.input)
    try:
        if not (output / FILE).exists():
            return "nothing was done yet"
        with Journal(output) as journal:
            counts = journal.counts()
    except (FastmedError, KeyboardInterrupt):  # a disk that is gone; Ctrl-C again
        return "done scans are kept; the same command goes on"
    left = sum(counts.get(state, 0) for state in ("waiting", "running", "written"))
    return (
        f"scans: {counts.get('done', 0)} done and kept, {left} left; those in hand were dropped "
        "whole, and the same command goes on"
    )


def add_infer(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `fastmed infer`."""
    command.set_defaults(complain=command.error)
    command.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="folders, files, .zip, .tar or .tar.gz archives",
    )
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="default: ./fastmed-results/<input's name>"
    )
    command.add_argument(
        "--model", type=Path, metavar="BUNDLE", help="a bundle's folder; default: the demo (liver)"
    )
    command.add_argument(
        "--engine",
        default="auto",
        metavar="NAME",
        help="auto, torch, ort, ov or trt (default: auto, the fastest here; in an --output with "
        "results of the same model the engine that made them)",
    )
    command.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:1 (default: auto)"
    )
    command.add_argument(
        "--precision",
        default="fp32",
        metavar="NAME",
        help="what the network computes in: fp32, fp16, bf16 or int8; auto: the fastest that "
        "fastmed certify passed on this machine (default: fp32)",
    )
    command.add_argument(
        "--write",
        default="nifti,json,csv,png,report",
        metavar="LIST",
        help="what to write, with commas between (default: nifti,json,csv,png,report); of boxes "
        "also luna, voc, coco, sr (a DICOM report)",
    )
    _add_strict(command)
    command.add_argument(
        "--series",
        nargs="+",
        default=[],
        metavar="UID",
        help="only these, by SeriesInstanceUID or by the names in manifest.json",
    )
    command.add_argument(
        "--part",
        default="",
        metavar="I/N",
        help="only the I-th of N shares of the series; each machine takes one, with an --output "
        "of its own",
    )
    command.add_argument(
        "--fresh",
        action="store_true",
        help="do again what is done; each result stays until the new one takes its place",
    )
    command.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that run scans, each with its own model and its share of --memory; a crash "
        "costs one scan. 0: all in this process, where a crash ends the run (default: 1)",
    )
    command.add_argument(
        "--attempts",
        type=int,
        default=3,
        metavar="N",
        help="how often a failing series is tried before it is set aside (default: 3)",
    )
    command.add_argument(
        "--hang",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="end an attempt at a scan of which nothing is heard for so long; not with --workers 0 "
        "(default: 900)",
    )
    command.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="what the scans in hand may take together, beside models and programs; a scan that is "
        "larger runs by itself (default: half of what is free)",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="list the series with their verdicts, and stop"
    )
    command.add_argument(
        "--log", type=Path, metavar="FILE", help="append what happens, one JSON object to the line"
    )
    command.add_argument(
        "--verify",
        type=Path,
        metavar="DIR",
        help="in place of a run: compare the results in DIR, the bundle and the inputs with the "
        "hashes that the run noted",
    )
    command.add_argument(
        "--quiet", action="store_true", help="of a run, print only what failed or was refused"
    )


def add_index(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `fastmed index`."""
    command.add_argument(
        "path",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="folders, files, .zip, .tar or .tar.gz archives",
    )
    command.add_argument(
        "--modality", default="ct", metavar="NAME", help="ct, or grey for images (default: ct)"
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="also write one JSON object per line here"
    )
    command.add_argument(
        "--fresh",
        action="store_true",
        help="read every file again (default: only new or changed ones, the rest is remembered)",
    )
    _add_strict(command)


def _add_strict(command: argparse.ArgumentParser) -> None:
    choice = command.add_mutually_exclusive_group()
    choice.add_argument(
        "--strict",
        action="store_true",
        default=True,
        help="refuse scans whose geometry is doubtful, and say why (default)",
    )
    choice.add_argument(
        "--lenient",
        dest="strict",
        action="store_false",
        help="mend them, and record what was mended",
    )
