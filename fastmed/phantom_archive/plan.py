"""The plan of a phantom archive: how many of each way, in which order, and writing them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from fastmed.errors import UsageError
from fastmed.phantom_archive import files, objects, series
from fastmed.phantom_archive.body import Body
from fastmed.phantom_archive.case import Case
from fastmed.phantom_archive.damages import DAMAGES
from fastmed.phantom_archive.encoding import syntaxes
from fastmed.phantom_archive.truth import Expected, write_truth

SIZES = {"small": (40, 128, 128), "tiny": (12, 32, 32)}  # [D, H, W] of a scan
_SOUND_SHARE = 0.6  # of an archive; the rest is damaged, or no CT
_PLAIN_SHARE = 0.5  # of what is sound: uncompressed and upright, one folder for each series
_CASES_PER_BODY = 100
_MAX_BODIES = 8

_SOUND: dict[str, Callable[[Case], list[Expected]]] = {
    "uniform": series.uniform,
    "tilted": series.tilted,
    "without extension": series.without_extension,
    "over several folders": series.over_folders,
    "two series in a folder": series.two_in_a_folder,
    "with localizer": series.with_localizer,
    **{name: series.encoded(name) for name in syntaxes()},
    "zip": files.zipped,
    "tar": files.tarred(".tar"),
    "tar.gz": files.tarred(".tar.gz"),
    "nifti": files.nifti(".nii"),
    "nifti.gz": files.nifti(".nii.gz"),
    "metaimage": files.metaimage,
    "enhanced": objects.enhanced,
}
_UNSOUND: dict[str, Callable[[Case], list[Expected]]] = {
    "uneven": series.uneven,
    "tilted and uneven": series.tilted_and_uneven,
    "single slice": series.single_slice,
    "mixed shapes": series.mixed_shapes,
    "mixed spacings": series.mixed_spacings,
    "mixed orientations": series.mixed_orientations,
    "acquisitions at the same positions": series.acquisitions_at_the_same_positions,
    "acquisitions interleaved": series.acquisitions_interleaved,
    "overlapping reconstructions": series.overlapping_reconstructions,
    "reconstructions at the same positions": series.reconstructions_at_the_same_positions,
    **DAMAGES,
    "enhanced with missing frames": objects.enhanced_with_missing_frames,
    "garbled slice": files.garbled_slice,
    "cut header": files.cut_header,
    "cut zip": files.cut_zip,
    "cut tar": files.cut_tar,
    "cut nifti": files.cut_nifti,
    "encrypted zip": files.encrypted_zip,
    "segmentation": objects.segmentation,
    "nifti label map": files.nifti_label_map,
    "localizer": objects.localizer,
    "derived projections": objects.derived_projections,
    "secondary capture": objects.secondary_capture,
    "dose report": objects.dose_report,
    "magnetic resonance": objects.magnetic_resonance,
    "broken link": files.broken_link,
    **files.PLAIN,
}
# Name of a way: the function that writes a case and returns what must be found of it.
WAYS = _SOUND | _UNSOUND


def shares() -> dict[str, float]:
    """The share of an archive that each way has: 60 % sound, half of that plain uniform series."""
    others = [name for name in _SOUND if name != "uniform"]
    share = {"uniform": _SOUND_SHARE * _PLAIN_SHARE}
    share |= dict.fromkeys(others, _SOUND_SHARE * (1 - _PLAIN_SHARE) / len(others))
    return share | dict.fromkeys(_UNSOUND, (1 - _SOUND_SHARE) / len(_UNSOUND))


def write_archive(
    output: Path, count: int, seed: int, size: str, *, ways: list[str] | None = None
) -> list[Path]:
    """Writes `count` cases to output/scans and what must be found of them to output/truth.csv.

    A case is a series in a folder, a file, or what its way makes of one; `shares` says how often
    each way comes, at least once where `count` allows it. The same arguments give the same bytes
    wherever the same libraries write them.

    size: of the scans, one of SIZES. ways: some of WAYS, to write these in equal shares.

    Returns the two paths. Raises UsageError for an unknown size or way.
    """
    if size not in SIZES:
        raise UsageError(f"--size {size}: expected one of {', '.join(SIZES)}")
    if unknown := set(ways or ()) - WAYS.keys():
        raise UsageError(f"ways {', '.join(sorted(unknown))}: expected some of {', '.join(WAYS)}")
    order = _order(count, seed, dict.fromkeys(ways, 1.0) if ways else shares())
    (output / "scans").mkdir(parents=True)
    cases = list(enumerate(order, start=1))
    bodies = min(-(-count // _CASES_PER_BODY), _MAX_BODIES)
    write = partial(_write_cases, output / "scans", seed, size)
    of_each = [cases[k::bodies] for k in range(bodies)]
    cores = min(len(os.sched_getaffinity(0)), bodies)
    if cores > 1:
        with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
            made = list(pool.map(write, range(bodies), of_each))
    else:
        made = list(map(write, range(bodies), of_each))
    truth = output / "truth.csv"
    write_truth((row for rows in made for row in rows), truth)
    return [output / "scans", truth]


def _order(count: int, seed: int, share: dict[str, float]) -> list[str]:
    """The way of each case: first each way once, then what brings all closest to their shares."""
    total = sum(share.values())
    numbers = dict.fromkeys(share, 0)
    for name in list(share)[:count]:
        numbers[name] = 1
    for _ in range(count - sum(numbers.values())):
        lacking = max(share, key=lambda name: share[name] / total * count - numbers[name])
        numbers[lacking] += 1
    order = [name for name, number in numbers.items() for _ in range(number)]
    return [order[k] for k in np.random.default_rng([seed, 1]).permutation(count)]


def _write_cases(
    scans: Path, seed: int, size: str, body_number: int, cases: list[tuple[int, str]]
) -> list[Expected]:
    """Writes the cases that are cut from one body, by number and way."""
    body = _body(seed, body_number)
    rows = []
    for number, way in cases:
        case = Case(
            way=way,
            scans=scans,
            name=f"case-{number:04d}",
            identity=f"phantom archive {seed} {size} {number}",
            shape_zyx=SIZES[size],
            body=body,
            rng=np.random.default_rng([seed, 2, number]),
        )
        rows += WAYS[way](case)
    return rows


@lru_cache(maxsize=1)
def _body(seed: int, number: int) -> Body:
    """Drawing a body takes longer than cutting a hundred tiny scans from it."""
    return Body.drawn(int(np.random.default_rng([seed, 3, number]).integers(2**31)))
