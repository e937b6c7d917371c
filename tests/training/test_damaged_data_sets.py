"""Damaged annotations and slices: no crash, and nothing is lost without a word."""

import csv
import time

import damage
import numpy as np
import pydicom
import pytest
import scans as make
from annotated_slices import BOX, annotate, patient, xml

import fastmed
from fastmed.readers.dicom_header import read_header
from fastmed.readers.voc import parse_voc
from fastmed.training.class_map import class_map
from fastmed.training.prepare_lung_pet_ct_dx import CLASSES, prepare_lung_pet_ct_dx

SOUND = xml(BOX, (100, 200, 140, 260), (300, 11, 311, 22), size=(512, 512))
CLASS_MAP = class_map("nodule=all", CLASSES)
FILES = 10_000


def prepare(root):
    return prepare_lung_pet_ct_dx(
        root / "dicom", root / "annotations", root / "out", quiet=True, copy=True
    )


def named(root):
    with open(root / "out" / "problems.csv", newline="") as file:
        return {row["file"]: row["problem"] for row in csv.DictReader(file)}


def test_ten_thousand_damaged_xml_files_are_parsed_right_or_refused_with_a_reason():
    accepted = dict.fromkeys(damage.XML, 0)
    reasons = []
    start = time.perf_counter()
    for seed in range(FILES):
        kind, content = damage.damaged_xml(seed, SOUND)
        try:
            found = parse_voc(content, classes=CLASS_MAP)
        except ValueError as error:
            reasons.append(str(error))
            continue
        accepted[kind] += 1
        assert damage.XML[kind][1], f"{kind} (seed {seed}) was taken for sound"
        assert len(found.boxes) == 3, f"{kind} (seed {seed}): boxes are lost without a word"
        boxes = np.array([box.box_px for box in found.boxes])
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= -0.5
        assert (boxes.max(axis=0)[2:] <= (found.width - 0.5, found.height - 0.5)).all()
        assert {box.label for box in found.boxes} == {"nodule"}
    assert sum(accepted.values()) + len(reasons) == FILES
    assert all(reason and reason.isprintable() for reason in reasons)
    print(f"{FILES} files in {time.perf_counter() - start:.1f} s; accepted {accepted}")


def test_ten_thousand_damaged_xml_files_in_an_archive_are_each_named_or_used(tmp_path):
    uids = patient(tmp_path, "A0001", shape=(48, 8, 8))
    folder = tmp_path / "annotations" / "A0001"
    folder.mkdir(parents=True)
    sound = xml((1, 2, 4, 6), size=(8, 8))
    paired = xml((1, 2, 4, 6), (0, 0, 3, 3), size=(8, 8))
    for number in range(FILES):
        uid, content = (uids[number], paired) if number < 48 else (f"1.2.{number}", sound + b" ")
        if number != 0:
            _, content = damage.damaged_xml(number, content)
        (folder / f"{uid}.xml").write_bytes(content)
    report = prepare(tmp_path)
    problems = named(tmp_path)
    used = {path.name for path in (tmp_path / "out" / "annotations").iterdir()}
    refused = {name.removeprefix("A0001/") for name in problems if name.endswith(".xml")}
    assert len(used) + len(refused) == FILES == report.figures["annotation files"]
    assert not used & refused
    assert report.figures["annotation files used"] == len(used) >= 1
    assert report.figures["annotation files refused"] == len(refused)
    assert report.exit_status == 1
    (volume,) = fastmed.read(tmp_path / "out" / "scans")
    assert len(volume.slices) == 48


def damage_slice(path, seed):
    rng = np.random.default_rng(seed)
    kinds = [*damage.DICOM, *damage.TAGS, *damage.OTHER_VALUES]
    kind = kinds[seed % len(kinds)]
    if kind in damage.DICOM and seed % len(kinds) < len(damage.DICOM):
        path.write_bytes(damage.DICOM[kind](rng, path.read_bytes()))
    elif seed % len(kinds) < len(damage.DICOM) + len(damage.TAGS):
        make.edit(path, **{kind: None})
    else:
        with pydicom.config.disable_value_validation():
            make.edit(path, **{kind: damage.OTHER_VALUES[kind]})


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # positions of 1e300 mm
def test_two_hundred_damaged_dicom_files_are_each_named_or_read_as_whole_scans(tmp_path):
    count, slices = 200, 5
    uids = {}
    for number in range(count):
        name, position = f"D{number:04d}", (-20.0, -30.0, -110.0 - number)
        scan = make.volume((slices, 8, 8), origin_lps_mm=position, seed=number)
        paths = make.series(tmp_path / "dicom" / name, scan)
        uids[name] = [read_header(str(path), "", 0).sop_instance_uid for path in paths]
        annotate(tmp_path, "", uids[name][1], xml((1, 2, 4, 6), size=(8, 8)))
        annotate(tmp_path, "", uids[name][3], xml(size=(8, 8)))
        damage_slice(paths[np.random.default_rng(number).integers(slices)], number)
    report = prepare(tmp_path)
    problems = named(tmp_path)
    used = {path.stem for path in (tmp_path / "out" / "annotations").iterdir()}
    whole = 0
    for name, own in uids.items():
        for uid in (own[1], own[3]):
            assert (uid in used) != (f"{uid}.xml" in problems)
        if not any(file.split("/")[0] == name for file in problems):
            volume = written(tmp_path, own)
            assert volume is not None, f"{name} is lost without a word"
            assert [s.sop_instance_uid for s in volume.slices] == own
            whole += 1
    assert report.figures["annotation files used"] == len(used)
    assert report.exit_status == 1
    assert 0 < whole < count / 5
    print(f"{count} series, one damaged slice in each: {whole} whole, {count - whole} named")


def written(root, uids):
    """The written scan that holds a given slice; None without one."""
    for uid in uids:
        for path in (root / "out" / "scans").glob(f"*/{uid}.dcm"):
            (volume,) = fastmed.read(path.parent)
            return volume
    return None
