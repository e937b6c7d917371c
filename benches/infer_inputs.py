"""What bench_infer.py measures on: a phantom as a DICOM series, the demo model on a 1.5 mm grid.

python benches/infer_inputs.py FOLDER [BUNDLE] makes FOLDER/phantom-512x512x300 (kept when it is
there) and FOLDER/bundle (made anew from BUNDLE, else from the demo: the same weights).
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

PHANTOM = "phantom-512x512x300"
BUNDLE = "bundle"
SHAPE_ZYX = (300, 512, 512)
SPACING_MM_ZYX = (1.0, 0.8, 0.8)
GRID_MM = 1.5
TILE = 96


def write_phantom(folder: Path) -> None:
    """Writes the abdomen phantom as one DICOM series; the folder appears when it is complete."""
    from fastmed.geometry import Geometry
    from fastmed.phantom import abdomen
    from fastmed.writers.dicom_ct import write_dicom_ct

    _, height, width = SHAPE_ZYX
    _, step_y, step_x = SPACING_MM_ZYX
    origin = (-0.5 * step_x * (width - 1), -0.5 * step_y * (height - 1), -240.0)
    volume, _ = abdomen(Geometry.from_spacing(SHAPE_ZYX, SPACING_MM_ZYX, origin), seed=7)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_dicom_ct(volume, partial, description="phantom of bench_infer")
    os.replace(partial, folder)


def write_bundle(source: Path, folder: Path) -> None:
    """Copies a bundle and changes its grid and tile; weights and ONNX stay byte for byte."""
    from fastmed import bundle

    read = bundle.read(source)
    spec = replace(read.spec, spacing_mm_zyx=(GRID_MM,) * 3, tile_zyx=(TILE,) * 3)
    copy = bundle.write(folder, spec, read.network())
    shutil.copyfile(read.weights_path, copy.weights_path)
    if read.onnx_path().is_file():
        shutil.copyfile(read.onnx_path(), copy.onnx_path())


def main() -> None:
    from fastmed import bundle

    folder = Path(sys.argv[1])
    source = Path(sys.argv[2]) if len(sys.argv) > 2 else bundle.demo_path()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PHANTOM).is_dir():
        print(f"Writing {folder / PHANTOM} ...", file=sys.stderr)
        write_phantom(folder / PHANTOM)
    write_bundle(source, folder / BUNDLE)


if __name__ == "__main__":
    main()
