"""The demonstration behind `make demo`: an archive goes in, labels, figures and a report come out.

Without --scans it makes its own archive of phantoms. Refused and damaged scans belong to an
archive: the demonstration ends well when each of them is named and every sound scan is done.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import fastmed
from fastmed.phantom_scans import write_phantoms

# What the phantom archive holds, by folder or file, and what must become of it.
EXPECTED = {
    "README.txt": "skipped", "abdomen-001": "done", "abdomen-001/localizer.dcm": "skipped",
    "abdomen-002": "done", "missing-slices": "refused", "tilted": "done", "truncated": "failed",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=Path, help="a folder of real scans; it stays untouched")
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    arguments = parser.parse_args()
    if arguments.scans:
        run = fastmed.infer(arguments.scans, arguments.output / "results-of-scans")
        surprises = [row for row in run.rows if row.verdict == "failed"]
        if not any(row.verdict == "done" for row in run.rows):
            print("demo: no scan was done", file=sys.stderr)
            return 1
    else:
        archive = arguments.output / "phantoms"
        shutil.rmtree(archive, ignore_errors=True)
        print(f"Making an archive of phantoms in {archive} ...", file=sys.stderr)
        scans, _ = write_phantoms("archive", archive, count=2, seed=1)
        run = fastmed.infer(scans, arguments.output / "results-of-phantoms")
        surprises = [row for row in run.rows if EXPECTED.get(row.source) != row.verdict]
        missing = EXPECTED.keys() - {row.source for row in run.rows}
        if missing:
            print(f"demo: not found in the archive: {', '.join(sorted(missing))}", file=sys.stderr)
            return 1
    for row in surprises:
        print(f"demo: {row.source} was not expected to be {row.verdict}", file=sys.stderr)
    print(f"Open {run.output / 'report.html'} in a browser.")
    return int(bool(surprises))


if __name__ == "__main__":
    sys.exit(main())
