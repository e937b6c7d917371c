"""fastmed.read beside SimpleITK, pydicom and a plain read of the bytes, and the gates on it.

python benches/bench_read.py [--rounds N]

Each round runs every side once on the same two cores; what is compared are medians. A side goes
from the name of a folder to one array of voxels in slice order. The scans are written to a folder
that ends with the run, and lie in memory when they are read. All sides must give the same voxels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from infer_table import below

HERE = Path(__file__).parent
CORES = 2
PLAIN_SLICES, COMPRESSED_SLICES = 140, 40
INTERCEPT = -1024  # what scanners write
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="runs of each side (default 9)")
    rounds = parser.parse_args().rounds
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fastmed-bench-read-") as place:
        plain, compressed = Path(place, "plain"), Path(place, "compressed")
        write_scan(plain, PLAIN_SLICES)
        write_scan(compressed, COMPRESSED_SLICES, JPEG_2000_LOSSLESS)
        sides = {
            "fastmed": by_fastmed,
            "SimpleITK": by_simpleitk,
            "pydicom": by_pydicom,
            "plain read": plain_read,
        }
        seconds = compare(f"{PLAIN_SLICES} slices of 512 x 512, uncompressed", plain, sides, rounds)
        found["simpleitk_uncompressed"] = seconds["SimpleITK"] / seconds["fastmed"]
        found["pydicom_uncompressed"] = seconds["pydicom"] / seconds["fastmed"]
        sides = {"fastmed": by_fastmed, "SimpleITK": by_simpleitk, "OpenJPEG alone": openjpeg_alone}
        title = f"{COMPRESSED_SLICES} slices of 512 x 512, JPEG 2000 lossless"
        seconds = compare(title, compressed, sides, rounds)
        found["simpleitk_jpeg2000"] = seconds["SimpleITK"] / seconds["fastmed"]
        found["openjpeg_alone_jpeg2000"] = seconds["OpenJPEG alone"] / seconds["fastmed"]
    for name, ratio in found.items():
        print(f"{name}: {ratio:.2f}x")
    gates = tomllib.loads((HERE / "read_gates.toml").read_text(encoding="utf-8"))
    fallen = below(gates, found)
    for sentence in fallen:
        print(f"bench_read: {sentence}", file=sys.stderr)
    return int(bool(fallen))


def write_scan(folder: Path, slices: int, transfer_syntax: str | None = None) -> None:
    """Writes an abdomen phantom with noise, of `slices` slices, 512 x 512 x 2 mm."""
    import pydicom

    from fastmed.geometry import Geometry
    from fastmed.volume import Volume
    from fastmed.writers.dicom_ct import write_dicom_ct

    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(x**2 + (1.4 * y) ** 2 < 0.8, 40, -1000)
    organ = np.where((x + 0.3) ** 2 + y**2 < 0.1, 60, 0)
    noise = np.where(body > 0, 12, 3) * random.standard_normal((slices, 512, 512))
    voxels = np.rint(body + organ + noise - INTERCEPT).astype(np.int16)
    geometry = Geometry.from_axes(voxels.shape, [0, 0, 0], [[0, 0, 2], [0, 0.7, 0], [0.7, 0, 0]])
    files = write_dicom_ct(Volume(voxels, geometry, intercept=INTERCEPT), folder)
    for file in files if transfer_syntax else []:
        dataset = pydicom.dcmread(file)
        dataset.compress(transfer_syntax, generate_instance_uid=False)
        dataset.save_as(file)


def compare(title: str, folder: Path, sides: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Runs the sides in turns; returns the median seconds of each and prints them."""
    expected = by_pydicom(folder)
    for name, side in sides.items():  # also what warms them up
        if not np.array_equal(_array(side(folder)), expected):
            sys.exit(f"bench_read: {name} reads other voxels than pydicom: {title}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side(folder)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    print(f"{title}; medians of {rounds} rounds; load {os.getloadavg()[0]:.1f} at the end")
    for name, median in medians.items():
        print(f"  {name:<14} {median * 1e3:7.1f} ms, fastest {min(seconds[name]) * 1e3:7.1f}")
    return medians


def _array(voxels) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(voxels) - INTERCEPT if isinstance(voxels, sitk.Image) else voxels


def by_fastmed(folder: Path) -> np.ndarray:
    """The voxels of the one volume in a folder."""
    import fastmed

    (volume,) = fastmed.read(folder)
    return volume.voxels


def by_simpleitk(folder: Path):
    """The same in HU by ImageSeriesReader, as its image: a copy to NumPy is not counted."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(CORES)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def by_pydicom(folder: Path) -> np.ndarray:
    """The same by pydicom: every file read, sorted by position, stacked."""
    import pydicom

    slices = [pydicom.dcmread(file) for file in folder.iterdir()]
    slices.sort(key=lambda each: each.ImagePositionPatient[2])
    return np.stack([each.pixel_array for each in slices])


def plain_read(folder: Path) -> np.ndarray:
    """The last bytes of each file into one array: no header is looked at."""
    files = sorted(folder.iterdir())
    voxels = np.empty((len(files), 512, 512), np.int16)
    for target, path in zip(voxels, files, strict=True):
        with open(path, "rb", buffering=0) as file:
            file.seek(-target.nbytes, os.SEEK_END)
            file.readinto(memoryview(target).cast("B"))
    return voxels


def openjpeg_alone(folder: Path) -> np.ndarray:
    """The limit with this decoder: JPEG 2000 codestreams in a thread per core, no header looked at.

    SimpleITK's reader holds OpenJPEG too, and lets it work on one slice with all cores.
    """
    import imagecodecs

    files = sorted(folder.iterdir())
    voxels = np.empty((len(files), 512, 512), np.int16)

    def decode(target: np.ndarray, path: Path) -> None:
        data = path.read_bytes()
        target[...] = imagecodecs.jpeg2k_decode(data[data.index(JPEG_2000_START) :])

    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(decode, voxels, files))
    return voxels


if __name__ == "__main__":
    sys.exit(main())
