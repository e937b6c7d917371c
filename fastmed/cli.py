"""The fastmed command: it reads flags and calls the Python function of the same name."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

import fastmed
from fastmed.cli_archive import add_index, add_infer, index, infer, kept
from fastmed.cli_prepare import add_kinds, prepare
from fastmed.errors import FastmedError, UsageError

EXIT_STATUS = """\
exit status: 0 all well, also when what is no CT was skipped; 1 some series failed or were refused,
each named, or the command could not go on; 2 wrong usage, or a named engine that is absent; 130 or
143 after Ctrl-C or SIGTERM.
For research use; not a medical device."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: finish as after Ctrl-C."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return arguments.run(arguments)
    except UsageError as error:
        return _complain(error, 2)
    except FastmedError as error:
        return _complain(error, 1)
    except Terminated:
        return _complain(f"stopped by SIGTERM; {_kept(arguments)}", 143)
    except KeyboardInterrupt:
        return _complain(f"stopped by Ctrl-C; {_kept(arguments)}", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def evaluate(arguments: argparse.Namespace) -> int:
    return fastmed.evaluate(
        arguments.predictions,
        arguments.truth,
        task=arguments.task,
        labels=arguments.labels,
        tolerance_mm=arguments.tolerance,
        luna16=arguments.luna16,
        excluded=arguments.excluded,
        series=arguments.series,
        froc=arguments.froc,
        json=arguments.json,
        quiet=arguments.quiet,
    ).exit_status


def export(arguments: argparse.Namespace) -> int:
    made = fastmed.export(
        arguments.bundle,
        to=arguments.to,
        precision=arguments.precision,
        scans=arguments.scans,
        device=arguments.device,
        quiet=arguments.quiet,
    )
    print(*made, sep="\n")
    if arguments.scans:
        return certify(arguments)
    hint = f"fastmed certify {arguments.bundle} --scans PATH says whether engines agree on it"
    print(f"Not certified; {hint}.", file=sys.stderr)
    return 0


def certify(arguments: argparse.Namespace) -> int:
    from fastmed.inference.certificate import table

    found = fastmed.certify(
        arguments.bundle, arguments.scans, device=arguments.device, quiet=arguments.quiet
    )
    print(table(found), end="")
    return 0


def train(arguments: argparse.Namespace) -> int:
    if arguments.recipe is None:
        from fastmed.training.recipe import recipe_names

        for name, description in recipe_names().items():
            print(f"{name:20}{description}")
        return 0
    if arguments.data is None:
        raise UsageError("train: --data DIR is missing; docs/data.md shows the layouts it takes")
    fastmed.train(
        arguments.recipe,
        arguments.data,
        arguments.output,
        devices=arguments.devices,
        device=arguments.device,
        resume=arguments.resume,
        settings=arguments.set,
        quiet=arguments.quiet,
    )
    return 0


def phantom(arguments: argparse.Namespace) -> int:
    from fastmed.phantom_scans import write_phantoms

    for path in write_phantoms(
        arguments.kind,
        arguments.output,
        count=arguments.count,
        seed=arguments.seed,
        positive_share=arguments.positive_share,
        form=arguments.format,
        into=arguments.into,
        size=arguments.size,
    ):
        print(path)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    from fastmed.doctor import doctor as look

    for check in look():
        print(
            f"{check.subject:16} {check.finding}" + (f"   -> {check.advice}" * bool(check.advice))
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastmed",
        description="CT imaging from archive to answer.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastmed {fastmed.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_infer(_add(commands, infer, "run a model over every CT scan or grey image below a folder"))
    add_index(_add(commands, index, "list every series below a folder with a verdict on each"))

    command = _add(commands, evaluate, "score predictions against the truth")
    command.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="PATH",
        help="what fastmed infer wrote, a folder of label maps, predictions.csv or marks.csv",
    )
    command.add_argument(
        "--truth",
        type=Path,
        required=True,
        metavar="PATH",
        help="a folder of label maps of the same names; or a CSV: of labels (path, label), "
        "boxes.csv or annotations.csv",
    )
    command.add_argument(
        "--task", required=True, metavar="TASK", help="segmentation, detection or classification"
    )
    command.add_argument(
        "--labels",
        metavar="LIST",
        help="values of the truth by label, such as liver=5,lungs=10+11 (default: as they are; "
        "for a model of one label everything above 0)",
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        metavar="MM",
        help="of the surface Dice, in mm (default: 2)",
    )
    command.add_argument(
        "--luna16",
        action="store_true",
        help="score a detection's marks.csv as the LUNA16 challenge does",
    )
    command.add_argument(
        "--excluded", type=Path, metavar="CSV", help="its annotations_excluded.csv"
    )
    command.add_argument("--series", type=Path, metavar="CSV", help="its seriesuids.csv")
    command.add_argument(
        "--froc", type=Path, metavar="FILE.png", help="also draw a detection's FROC curve here"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the scores here")
    command.add_argument("--quiet", action="store_true", help="print errors only")

    command = _add(
        commands,
        export,
        "write a bundle's network as ONNX into the bundle, or build it with TensorRT",
    )
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    command.add_argument(
        "--to", required=True, metavar="FORMAT", help="onnx, or trt: also build it for this GPU"
    )
    command.add_argument(
        "--precision",
        default="fp32",
        metavar="NAME",
        help="what the network computes in: fp32, fp16, bf16 or int8 (default: fp32)",
    )
    command.add_argument(
        "--scans",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="also certify it on these scans; int8 measures its ranges on them first",
    )
    command.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="of trt and --scans: auto, cpu, cuda or cuda:1 (default: auto)",
    )
    command.add_argument("--quiet", action="store_true", help="print errors only")

    command = _add(
        commands, certify, "run every engine over scans, and write which of them agree with torch"
    )
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    command.add_argument(
        "--scans", type=Path, nargs="+", required=True, metavar="PATH", help="folders or files"
    )
    command.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:1 (default: auto)"
    )
    command.add_argument("--quiet", action="store_true", help="print errors only")

    command = _add(
        commands, train, "train a pipeline on annotated scans; without RECIPE: list them"
    )
    command.add_argument("recipe", nargs="?", metavar="RECIPE", help="its name, or a .toml file")
    command.add_argument("--data", type=Path, metavar="DIR", help="annotated scans (docs/data.md)")
    command.add_argument(
        "--output", type=Path, metavar="RUN", help="default: ./fastmed-runs/<recipe's name>"
    )
    command.add_argument(
        "--devices", type=int, default=1, metavar="N", help="train in N processes (default: 1)"
    )
    command.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:1 (default: auto)"
    )
    command.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe, such as loop.epochs=5 values.liver=[5]",
    )
    command.add_argument("--quiet", action="store_true", help="print errors only")

    add_kinds(_add(commands, prepare, "make a published data set ready to train on"))

    command = _add(commands, phantom, "make synthetic CT scans with known truth")
    command.add_argument(
        "kind",
        metavar="KIND",
        help="abdomen or archive (a mixture with flaws); "
        "to train: liver, chest, lungs, lesions, nodules",
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument("--count", type=int, default=1, metavar="N", help="scans (default: 1)")
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of the first scan; the others count up (default: 0)",
    )
    command.add_argument(
        "--positive-share",
        type=float,
        metavar="P",
        help="chest: share of scans with a mass in a lung (default: 0.1)",
    )
    command.add_argument(
        "--format",
        metavar="FORMAT",
        help="nodules: nifti with tables of boxes, or dicom with VOC XML too (default: nifti)",
    )
    command.add_argument(
        "--into", type=Path, metavar="SCAN", help="nodules: a chest CT that takes them (one scan)"
    )
    command.add_argument(
        "--size",
        metavar="NAME",
        help="archive: small or tiny scans in every state that archives hold, and a table of what "
        "must be found of each",
    )

    _add(commands, doctor, "show devices, engines, kernels, versions, and what is missing")
    return parser


def _add(commands, run, summary: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        run.__name__,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _kept(arguments: argparse.Namespace) -> str:
    if arguments.run is not train:
        return kept(arguments)
    again = f"fastmed train {arguments.recipe} --data {arguments.data}"
    again += f" --output {arguments.output}" * (arguments.output is not None)
    again += f" --set {shlex.join(arguments.set)}" * bool(arguments.set)
    return f"finished epochs are kept; {again} --resume goes on"


def _complain(error: object, status: int) -> int:
    """Prints an error as one line that cannot steer the terminal, whatever path it quotes."""
    line = " ".join(str(error).splitlines())
    print("fastmed:", "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
