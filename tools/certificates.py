"""Certifies bundles and puts the tables into docs/engines.md: BUNDLE=SCANS[=CALIBRATION] ...

BUNDLE "demo" is the demo bundle. Each is certified in a copy, with its files in float32 and
float16; in int8 too where CALIBRATION names scans to measure ranges on, which are to be others than
SCANS. What ships with the package has no certificate, which would be another machine's.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import fastmed
from fastmed import bundle as bundles
from fastmed.inference.certificate import table

DOCUMENT = Path(__file__).parent.parent / "docs" / "engines.md"
BEGIN, END = "<!-- certificates -->", "<!-- end of certificates -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", metavar="BUNDLE=SCANS[=CALIBRATION]")
    tables = [_certified(*pair.split("=")) for pair in parser.parse_args().pairs]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    DOCUMENT.write_text("\n\n".join([before, *tables, after]), encoding="utf-8")


def _certified(name: str, scans: str, calibration: str = "") -> str:
    source = bundles.demo_path() if name == "demo" else Path(name)
    print(f"{source} ...", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(source, Path(folder) / source.name)
        for precision in ("fp32", "fp16"):
            fastmed.export(copy, precision=precision)
        if calibration:
            fastmed.export(copy, precision="int8", scans=calibration)
        return table(fastmed.certify(copy, scans)).replace(f"{copy}", source.name).strip()


if __name__ == "__main__":
    main()
