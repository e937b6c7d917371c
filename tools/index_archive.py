"""Times a first and a second index of many files: python tools/index_archive.py [--series 1000]

Writes series of small slices (8 x 8 voxels: headers, and next to nothing else), indexes them with
an empty store, again with what it kept, and again after one series has changed. Each index is a
process of its own. Prints seconds, microseconds for each file, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fastmed.geometry import Geometry
from fastmed.volume import Volume
from fastmed.writers.dicom_ct import write_dicom_ct

_UID = re.compile(rb"2\.25\.\d{20,}")


def write_archive(folder: Path, series: int, files: int) -> None:
    """Writes folders of slices; series differ in their UIDs alone."""
    geometry = Geometry.from_spacing((files, 8, 8), (2.0, 0.75, 0.75))
    volume = Volume(np.full((files, 8, 8), -900, np.int16), geometry, name="index")
    pattern = [path.read_bytes() for path in write_dicom_ct(volume, folder / "pattern")]
    for k in range(series):
        home = folder / f"{k // 100:03d}" / f"{k:06d}"
        home.mkdir(parents=True)
        for j, content in enumerate(pattern):
            mine = _UID.sub(lambda uid, k=k: uid[0][:-6] + b"%06d" % k, content)
            (home / f"{j:05d}.dcm").write_bytes(mine)
    for path in (folder / "pattern").iterdir():
        path.unlink()
    (folder / "pattern").rmdir()


def index_once(folder: Path) -> None:
    """Prints what one index took, as JSON."""
    from fastmed.readers.index import iter_index
    from fastmed.readers.index_store import open_store

    start = time.perf_counter()
    with open_store(folder) as store:
        entries = sum(entry.verdict == "ok" for entry in iter_index(folder, store=store))
    seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counts = vars(store.counts)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "ok": entries, **counts}))


def measured(name: str, folder: Path, cache: str, files: int) -> dict:
    """Indexes in another process and prints a line."""
    environment = {**os.environ, "FASTMED_CACHE": cache}
    command = [sys.executable, __file__, "--index", str(folder)]
    made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    row = json.loads(made.stdout)
    print(
        f"{name:24} {row['seconds']:8.2f} s  {row['seconds'] / files * 1e6:7.1f} us a file  "
        f"peak {row['peak_mb']:5.0f} MB  {row['ok']} series ok; files read {row['read']}, "
        f"unchanged {row['unchanged']}, gone {row['gone']}"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=1000, help="default: 1000")
    parser.add_argument("--files", type=int, default=100, help="of each series (default: 100)")
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.index:
        index_once(arguments.index)
        return
    with tempfile.TemporaryDirectory() as room:
        folder, cache = Path(room, "archive"), str(Path(room, "cache"))
        write_archive(folder, arguments.series, arguments.files)
        files = arguments.series * arguments.files
        first = measured("first index", folder, cache, files)
        second = measured("second index", folder, cache, files)
        for path in (folder / "000" / "000000").iterdir():
            os.utime(path)
        measured("one series changed", folder, cache, files)
        print(f"the second index is {first['seconds'] / second['seconds']:.1f} times faster")


if __name__ == "__main__":
    main()
