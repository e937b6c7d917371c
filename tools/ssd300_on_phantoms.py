"""nodule-ssd300 on phantoms: python tools/ssd300_on_phantoms.py overfit|train [--output DIR]

overfit: 16 slices whose boxes are at least 6 pixels wide, without augmentation, scored on the same
    slices, until it knows them. It shows that the data, the targets, the loss and the decoding
    agree, not that anything was learnt. The exit status is 1 where AP50 is below 0.95.
train: from scratch on the annotated slices of 40 scans, scored on those of 10 scans it never saw.
    Nothing is asked of it: a VGG16 without pretrained weights learns little in CPU hours.

Both make DICOM phantoms with VOC files, prepare them as grey images, train the recipe, run
`fastmed infer` over the images and print the AP at an IoU of 0.5 and the CPU time of the training.
A run that was stopped goes on; what is printed is then the time of its last part.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import time
from pathlib import Path

import fastmed
from fastmed.phantom_scans import write_phantoms
from fastmed.training.prepare_lung_pet_ct_dx import prepare_lung_pet_ct_dx

SLICES = 16
LEAST_PX = 6.0
LEAST_AP = 0.95
GREY = ("grid.modality=grey", "grid.window_hu=[0,255]", "loop.shares=[1,0,0]")
PLAIN = (
    "loop.batch_size=2", "loop.epochs=60", "optimiser.step_epochs=45",
    "sampling.foreground=0", "augmentation.flip_zyx=[false,false,false]",
    "augmentation.rotation_degrees=0", "augmentation.zoom=[1,1]", "augmentation.shift_voxels=0",
    "augmentation.noise_p=0", "augmentation.brightness_p=0", "augmentation.contrast_p=0",
)  # fmt: skip
SHORT = ("loop.batch_size=4", "loop.epochs=6", "optimiser.step_epochs=4")

Boxes = dict[str, list[tuple[float, ...]]]  # x1, y1, x2, y2 in pixels, by the slice's UID


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("overfit", "train"))
    parser.add_argument("--output", type=Path, default=Path("build/ssd300"))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    folder, settings = arguments.output / arguments.what, arguments.set
    if arguments.what == "overfit":
        known = _slices(folder / "slices", 6, 300_000, wide=SLICES)
        found = _run(folder, known, known, (*GREY, *PLAIN, *settings))
        print(f"asked: AP50 {LEAST_AP}")
        return int(found < LEAST_AP)
    train, test = _slices(folder / "train", 40, 0), _slices(folder / "test", 10, 100_000)
    _run(folder, train, test, (*GREY, *SHORT, *settings))
    return 0


def _run(folder: Path, train: Path, test: Path, settings: tuple[str, ...]) -> float:
    """Trains, infers, scores; returns the AP at an IoU of 0.5."""
    started = time.process_time()
    run = fastmed.train("nodule-ssd300", train, folder / "run", resume=True, settings=settings)
    minutes = (time.process_time() - started) / 60
    results = folder / "results"
    fastmed.infer(test / "images", results, model=run.last, write=["json", "csv"], quiet=True)
    scores = fastmed.evaluate(results, test / "boxes.csv", task="detection", quiet=True).scores
    found = scores["ap"]["0.5"]
    trained, tested = (len(list((data / "images").iterdir())) for data in (train, test))
    print(f"{trained} slices to train, {minutes:.0f} CPU minutes; on {tested} slices: ", end="")
    print(f"AP50 {found:.4f}, AP10 {scores['ap']['0.1']:.4f}, mean IoU {scores['mean_iou']:.4f}")
    return found


def _slices(folder: Path, count: int, seed: int, wide: int | None = None) -> Path:
    """Makes images/, slices.csv to train on and boxes.csv to be scored by; takes what is there.

    count, seed: of the phantoms. wide: how many slices with wide boxes alone are taken; None takes
    every annotated slice.
    """
    if (folder / "boxes.csv").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    phantoms, prepared = folder / "phantoms", folder / "prepared"
    write_phantoms("nodules", phantoms, count=count, seed=seed, form="dicom")
    prepare_lung_pet_ct_dx(
        phantoms / "dicom", phantoms / "annotations", prepared, images="png", quiet=True
    )
    patients, boxes = _annotated(prepared / "slices.csv")
    chosen = list(boxes)
    if wide is not None:
        chosen = [uid for uid in boxes if all(_least_px(box) >= LEAST_PX for box in boxes[uid])]
        chosen = chosen[:: len(chosen) // wide][:wide]
    (folder / "images").mkdir()
    to_train, to_score = [], []
    for uid in chosen:
        name = f"images/{uid}.png"
        shutil.copy(prepared / name, folder / name)
        for x1, y1, x2, y2 in boxes[uid]:
            to_train.append((name, patients[uid], 0, "nodule", x1, y1, x2, y2))
            to_score.append((name, "nodule", x1, y1, -0.5, x2, y2, 0.5))
    _write(folder / "slices.csv", "path,patient,slice,label,x1,y1,x2,y2", to_train)
    _write(folder / "boxes.csv", "path,label,x1,y1,z1,x2,y2,z2", to_score)
    return folder


def _annotated(slices: Path) -> tuple[dict[str, str], Boxes]:
    """The patients and the boxes of the slices that have any, by the slice's UID."""
    patients: dict[str, str] = {}
    boxes: Boxes = {}
    with open(slices, newline="") as file:
        for row in csv.DictReader(file):
            if row["label"]:
                corners = tuple(float(row[side]) for side in ("x1", "y1", "x2", "y2"))
                boxes.setdefault(row["sop_instance_uid"], []).append(corners)
                patients[row["sop_instance_uid"]] = row["patient"]
    return patients, boxes


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
