"""nodule-ssd300 on 16 slices, until it knows them: python tools/overfit_ssd300.py [--output DIR]

Makes DICOM phantoms with VOC files, prepares them as grey images, takes 16 slices whose boxes are
at least 6 pixels wide, trains the recipe on them without augmentation, runs `fastmed infer` over
them and prints the AP at an IoU of 0.5 on the same slices. It shows that the data, the targets,
the loss and the decoding agree, not that anything was learnt. The exit status is 1 below 0.95. A
run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path

import fastmed
from fastmed.phantom_scans import write_phantoms
from fastmed.training.prepare_lung_pet_ct_dx import prepare_lung_pet_ct_dx

SLICES = 16
LEAST_PX = 6.0
LEAST_AP = 0.95
SETTINGS = (
    "grid.modality=grey", "grid.window_hu=[0,255]", "loop.shares=[1,0,0]", "loop.batch_size=2",
    "sampling.foreground=0", "augmentation.flip_zyx=[false,false,false]",
    "augmentation.rotation_degrees=0", "augmentation.zoom=[1,1]", "augmentation.shift_voxels=0",
    "augmentation.noise_p=0", "augmentation.brightness_p=0", "augmentation.contrast_p=0",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/overfit-ssd300"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--step-epochs", type=int, default=45, help="then the rate falls to a tenth"
    )
    arguments = parser.parse_args()
    data = arguments.output / "data"
    if not (data / "boxes.csv").is_file():
        _make(arguments.output, data)
    run = fastmed.train(
        "nodule-ssd300", data, arguments.output / "run", resume=True,
        settings=(
            *SETTINGS, f"loop.epochs={arguments.epochs}",
            f"optimiser.step_epochs={arguments.step_epochs}",
        ),
    )  # fmt: skip
    results = arguments.output / "results"
    fastmed.infer(data / "images", results, model=run.best, write=["json", "csv"], quiet=True)
    scores = fastmed.evaluate(results, data / "boxes.csv", task="detection", quiet=True).scores
    found = scores["ap"]["0.5"]
    print(f"{SLICES} slices: AP50 {found:.4f}, asked {LEAST_AP}; mean IoU {scores['mean_iou']:.4f}")
    return int(found < LEAST_AP)


def _make(output: Path, data: Path) -> None:
    """Writes images/, slices.csv to train on and boxes.csv to be scored by."""
    for folder in ("phantoms", "prepared", "data"):
        shutil.rmtree(output / folder, ignore_errors=True)
    phantoms, prepared = output / "phantoms", output / "prepared"
    write_phantoms("nodules", phantoms, count=6, seed=300_000, form="dicom")
    prepare_lung_pet_ct_dx(
        phantoms / "dicom", phantoms / "annotations", prepared, images="png", quiet=True
    )
    with open(prepared / "slices.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"]]
    boxes: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        corners = tuple(float(row[side]) for side in ("x1", "y1", "x2", "y2"))
        boxes.setdefault(row["sop_instance_uid"], []).append(corners)
    wide = [uid for uid, held in boxes.items() if all(_least_px(box) >= LEAST_PX for box in held)]
    chosen = wide[:: len(wide) // SLICES][:SLICES]
    (data / "images").mkdir(parents=True)
    to_train, to_score = [], []
    for uid in chosen:
        name = f"images/{uid}.png"
        shutil.copy(prepared / name, data / name)
        for x1, y1, x2, y2 in boxes[uid]:
            to_train.append((name, uid, 0, "nodule", x1, y1, x2, y2))
            to_score.append((name, "nodule", x1, y1, -0.5, x2, y2, 0.5))
    _write(data / "slices.csv", "path,patient,slice,label,x1,y1,x2,y2", to_train)
    _write(data / "boxes.csv", "path,label,x1,y1,z1,x2,y2,z2", to_score)


def _least_px(box: tuple[float, ...]) -> float:
    x1, y1, x2, y2 = box
    return min(x2 - x1, y2 - y1)


def _write(path: Path, header: str, rows: list[tuple]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
