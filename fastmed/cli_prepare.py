"""fastmed prepare: a published data set becomes data to train on."""

from __future__ import annotations

import argparse
from pathlib import Path


def prepare(arguments: argparse.Namespace) -> int:
    return arguments.prepare(arguments)


def add_kinds(command: argparse.ArgumentParser) -> None:
    """Adds the data sets that `fastmed prepare` knows."""
    kinds = command.add_subparsers(required=True, metavar="DATASET")
    kind = _add(
        kinds,
        "lung-pet-ct-dx",
        _lung_pet_ct_dx,
        "pair CT slices with VOC XML files by SOPInstanceUID, and join their boxes",
    )
    kind.add_argument("--dicom", type=Path, required=True, metavar="DIR", help="the DICOM tree")
    kind.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="DIR",
        help="XML files named by SOPInstanceUID, in folders",
    )
    _add_output(kind)
    kind.add_argument(
        "--classes",
        default="nodule=all",
        metavar="LIST",
        help="which classes count as which label: nodule=all (default), or "
        "adenocarcinoma=A,small-cell=B,large-cell=E,squamous=G",
    )
    how = kind.add_mutually_exclusive_group()
    how.add_argument(
        "--link",
        dest="copy",
        action="store_false",
        default=False,
        help="hard links to the originals; copies where the disk cannot link (default)",
    )
    how.add_argument("--copy", action="store_true", help="copies of the originals")
    kind.add_argument(
        "--images", metavar="FORMAT", help="also write annotated slices as png or bmp"
    )
    kind.add_argument(
        "--window",
        type=float,
        nargs=2,
        default=(-1000.0, 400.0),
        metavar=("LO", "HI"),
        help="HU shown as black and white (default: -1000 400)",
    )
    _add_quiet(kind)

    kind = _add(kinds, "luna16", _luna16, "list the nodules of annotations.csv by scan, as boxes")
    kind.add_argument(
        "--scans", type=Path, required=True, metavar="DIR", help="subset0, subset1, ..."
    )
    kind.add_argument(
        "--annotations", type=Path, required=True, metavar="FILE", help="annotations.csv"
    )
    _add_output(kind)
    _add_quiet(kind)

    kind = _add(kinds, "coco", _coco, "list the boxes of a COCO-style JSON file by picture")
    kind.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="where file_name starts"
    )
    kind.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="the JSON")
    _add_output(kind)
    _add_quiet(kind)


def _lung_pet_ct_dx(arguments: argparse.Namespace) -> int:
    from fastmed.training.prepare_lung_pet_ct_dx import prepare_lung_pet_ct_dx

    return prepare_lung_pet_ct_dx(
        arguments.dicom,
        arguments.annotations,
        arguments.output,
        classes=arguments.classes,
        copy=arguments.copy,
        images=arguments.images,
        window_hu=tuple(arguments.window),
        quiet=arguments.quiet,
    ).exit_status


def _luna16(arguments: argparse.Namespace) -> int:
    from fastmed.training.prepare_luna16 import prepare_luna16

    return prepare_luna16(
        arguments.scans, arguments.annotations, arguments.output, quiet=arguments.quiet
    ).exit_status


def _coco(arguments: argparse.Namespace) -> int:
    from fastmed.training.prepare_coco import prepare_coco

    return prepare_coco(
        arguments.images, arguments.annotations, arguments.output, quiet=arguments.quiet
    ).exit_status


def _add(kinds, name: str, run, summary: str) -> argparse.ArgumentParser:
    kind = kinds.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ". docs/data.md shows what it writes.",
        epilog="exit status: 0 all of it; 1 some was refused, each named in problems.csv; 2 wrong "
        "usage.",
    )
    kind.set_defaults(prepare=run)
    return kind


def _add_output(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write")


def _add_quiet(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--quiet", action="store_true", help="print errors only")
