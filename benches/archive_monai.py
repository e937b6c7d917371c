"""Scans one after the other with MONAI, the model loaded once: archive_monai.py SCANS BUNDLE OUTPUT

SCANS is a folder with one DICOM series in each of its folders. The transforms are those of
infer_monai.py, as MONAI's bundles run them. Prints one line of JSON: the seconds of each stage.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import torch
from infer_monai import Scan, network_xyz

from fastmed import bundle as bundles


def main() -> None:
    warnings.simplefilter("ignore")
    scans, folder, output = sys.argv[1:]
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    bundle = bundles.read(folder)
    network = network_xyz(bundle)
    seconds["load"] = time.perf_counter() - started
    with torch.inference_mode():
        for path in sorted(Path(scans).iterdir()):
            Scan(bundle.spec, network, f"{output}/{path.name}", "float64", seconds).run(str(path))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
