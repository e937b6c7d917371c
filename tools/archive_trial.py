"""The archive run put to the proof on phantoms: verdicts, kills, memory and rate, shared work.

    python tools/archive_trial.py verdicts kill scale part workers --series 1000 --output trial

Exit status 1 where anything is not as it must be. The archive in OUTPUT is kept and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path

from fastmed.errors import FastmedError
from fastmed.phantom_archive import SIZES, read_truth, write_archive
from fastmed.readers.index import index
from fastmed.testing import archive_trial as trial

PEAK_RATIO = 1.10  # how far memory may grow from 10 series to the most
RATE_RATIO = 1.20  # and the time for each further series, either way
CALLS_RATIO = 1.05  # and the system calls and opened files for each
SCALES = (10, 100, 1000)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=list(TRIALS), metavar="WHAT",
                        help=f"some of {', '.join(TRIALS)}")  # fmt: skip
    parser.add_argument("--series", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="default: small")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="default: 100")
    parser.add_argument("--parts", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="grows to some GB"
    )
    parser.add_argument("--with", dest="more", nargs="+", default=[], metavar="FLAG",
                        help="of fastmed infer, without dashes, such as workers=2")  # fmt: skip
    arguments = parser.parse_args(namespace=argparse.Namespace(has_unbroken=False))
    try:
        passed = [TRIALS[what](arguments) for what in dict.fromkeys(arguments.what)]
    except FastmedError as error:
        print(f"archive_trial: {error}", file=sys.stderr)
        return 1
    return int(not all(passed))


def verdicts(arguments) -> bool:
    """Every thing of the archive done or named, strict and lenient, as the truth has it."""
    archive = _archive(arguments)
    truth, found = read_truth(archive / "truth.csv"), {}
    for mode in ("strict", "lenient"):
        strict = mode == "strict"
        output = _empty(arguments.output / f"results-{mode}")
        trial.run(_infer(arguments, archive, output, mode), output)
        series = json.loads((output / "manifest.json").read_bytes())["series"]
        entries = index(archive / "scans", strict=strict)
        found[f"{mode} index"] = trial.compare_index(truth, entries, strict=strict)
        found[f"{mode} run"] = trial.compare_manifest(truth, series, strict=strict)
    print(trial.table(truth, found))
    for name, differences in found.items():
        print(f"{name}: {len(truth)} things, {len(differences)} verdicts not as they must be")
        print("".join(f"  {one}\n" for one in differences), end="")
    return not any(found.values())


def kill(arguments) -> bool:
    """SIGKILL at random moments, started again each time: the end state of an unbroken run."""
    archive, folder = _archive(arguments), _empty(arguments.output / "kill")
    found = trial.kill_trial(
        lambda output: _infer(arguments, archive, output, "strict"),
        folder,
        kills=arguments.kills,
        seed=arguments.seed,
        say=_say,
    )
    print(found)
    return found.is_clean


def scale(arguments) -> bool:
    """Memory, rate, files and system calls for 10, 100 and 1,000 sound series."""
    sizes = [n for n in SCALES if n <= arguments.series]
    archive = arguments.output / f"sound-{sizes[-1]}"
    if not (archive / "truth.csv").exists():
        _say(f"writing {sizes[-1]} sound series to {archive}")
        shutil.rmtree(archive, ignore_errors=True)
        write_archive(archive, sizes[-1], arguments.seed, arguments.size, ways=["uniform"])
    measured = []
    for n in sizes:
        scans = _linked(archive / "scans", arguments.output / f"sound-{sizes[-1]}-of-{n}", n)
        folder = _empty(arguments.output / f"scale-{n}")
        infer = _infer(arguments, scans, None, "strict")
        measured.append(trial.measure(infer, folder / "results", n))
        _say(str(measured[-1]))
    return _judge(measured)


def _judge(measured) -> bool:
    print(f"{'series':>7}{'seconds':>9}{'a second':>9}{'peak MB':>9}{'largest':>9}{'calls':>12}"
          f"{'opened':>9}{'tiles':>9}")  # fmt: skip
    for one in measured:
        counts = ["-" if n is None else n for n in (one.calls, one.opened, sum(one.tiles.values()))]
        print(f"{one.series:>7}{one.seconds:>9.1f}{one.series / one.seconds:>9.2f}"
              f"{one.peak_mb:>9.0f}{one.largest_mb:>9.0f}{counts[0]:>12}"
              f"{counts[1]:>9}{counts[2]:>9}")  # fmt: skip
    peaks = [one.peak_mb for one in measured]
    good = _within("peak memory, most to least", max(peaks) / min(peaks), PEAK_RATIO)
    steps = [trial.per_series(less, more) for less, more in pairwise(measured)]
    for step in steps:
        print("each further series: " + ", ".join(
            f"{value:.3f} {name}" for name, value in step.items() if value is not None
        ))  # fmt: skip
    if len(steps) == 2:
        limits = {"seconds": RATE_RATIO} | dict.fromkeys(("calls", "opened"), CALLS_RATIO)
        for name, limit in limits.items():
            if steps[0][name] is None:
                print(f"{name}: not measured (strace counts them)")
                continue
            good &= _within(
                f"{name} per series, later to earlier", steps[1][name] / steps[0][name], limit
            )
    for less, more in pairwise(measured):
        other = [scan for scan, tiles in less.tiles.items() if more.tiles.get(scan) != tiles]
        print(f"of the {less.series} series that both runs have, {len(other)} with other tiles")
        good &= not other
    return good


def _within(what: str, ratio: float, limit: float) -> bool:
    good = 1 / limit <= ratio <= limit
    print(f"{what}: {ratio:.3f} (limit {limit:g}): {'good' if good else 'MISSED'}")
    return good


def part(arguments) -> bool:
    """--part 1/n .. n/n: disjoint, and together the unbroken run."""
    archive, folder = _archive(arguments), _empty(arguments.output / "part")

    def infer(output: Path) -> list:
        return _infer(arguments, archive, output, "strict")

    found = trial.union_trial(infer, folder, _unbroken(arguments), parts=arguments.parts)
    print(found)
    return not found.wrong


def workers(arguments) -> bool:
    """Two commands on one output folder: the unbroken run, and nothing done twice."""
    archive, folder = _archive(arguments), _empty(arguments.output / "workers")

    def infer(output: Path) -> list:
        return _infer(arguments, archive, output, "strict")

    found = trial.together_trial(infer, folder, _unbroken(arguments), runs=2)
    print(found)
    return not found.wrong


TRIALS = {function.__name__: function for function in (verdicts, kill, scale, part, workers)}


def _archive(arguments) -> Path:
    archive = arguments.output / f"archive-{arguments.series}-{arguments.size}-{arguments.seed}"
    if not (archive / "truth.csv").exists():
        _say(f"writing {arguments.series} phantoms to {archive}")
        shutil.rmtree(archive, ignore_errors=True)
        write_archive(archive, arguments.series, arguments.seed, arguments.size)
    return archive


def _unbroken(arguments) -> Path:
    """The results of an unbroken strict run, made once for the trials of one call."""
    output = arguments.output / "unbroken"
    if not arguments.has_unbroken:
        _say(f"an unbroken run into {output}")
        trial.run(_infer(arguments, _archive(arguments), _empty(output), "strict"), output)
        arguments.has_unbroken = True
    return output


def _infer(arguments, archive: Path, output: Path | None, mode: str) -> list:
    scans = archive / "scans"
    bundle = trial.tiny_bundle(arguments.output)
    more = [word for flag in arguments.more for word in f"--{flag}".split("=", 1)]
    where = ["--output", output] if output else []
    infer = ["infer", "--input", scans, "--model", bundle, "--engine", "torch", f"--{mode}"]
    return [*infer, *where, "--device", "cpu", "--quiet", *more]


def _linked(scans: Path, to: Path, count: int) -> Path:
    """An archive of the first `count` series, whose files are links to those of `scans`."""
    shutil.rmtree(to, ignore_errors=True)
    for folder in sorted(scans.iterdir())[:count]:
        shutil.copytree(folder, to / "scans" / folder.name, copy_function=os.link)
    return to


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
