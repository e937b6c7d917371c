"""Each pipeline from files to test.json, on tiny data: grey images, classes, named values."""

import csv
import json

import nibabel
import numpy as np
import pytest
from data_sets import write_grey
from PIL import Image
from training_runs import TINY, balls

import fastmed
from fastmed.errors import DataError, FastmedError, UsageError
from fastmed.training import loop


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: True)  # it would hold for all tests


SMALL_GREY = (
    "network.base_channels=8", "grid.size_zyx=[1,32,32]", "tiles.size_zyx=[1,32,32]",
    "loop.batch_size=2", "loop.epochs=2",
)  # fmt: skip


def discs(folder, count: int, side: int = 40):
    """image/ and label/ (0/255) of bright discs."""
    rng = np.random.default_rng(1)
    y, x = np.indices((side, side))
    for number in range(count):
        cy, cx, r = *rng.uniform(12, side - 12, 2), rng.uniform(6, 10)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < r * r
        pixels = np.where(inside, 200, 60) + rng.normal(0, 10, inside.shape)
        write_grey(folder / "image" / f"s{number}.png", pixels.clip(0, 255).astype(np.uint8))
        write_grey(folder / "label" / f"s{number}.png", inside.astype(np.uint8) * 255)
    return folder


def test_a_line_without_a_mask_is_predicted_and_not_scored(tmp_path):
    data = discs(tmp_path / "data", 8)
    line = "image/s{0}.png\tlabel/s{0}.png\n"
    (data / "train.txt").write_text("".join(line.format(n) for n in range(4)))
    (data / "val.txt").write_text("".join(line.format(n) for n in (4, 5)))
    (data / "test.txt").write_text(line.format(6) + "image/s7.png\n")
    run = fastmed.train(
        "lung-unet2d-png", data, tmp_path / "run", device="cpu", settings=SMALL_GREY, quiet=True
    )
    test = json.loads((run.path / "test.json").read_text())
    assert [case["name"] for case in test["per_case"]] == ["s6"]
    assert (test["cases"], test["predicted_only"]) == (1, ["s7"])
    (written,) = (run.path / "predictions").iterdir()
    assert written.name == "s7.png"
    picture = np.asarray(Image.open(written))
    assert picture.shape == (40, 40)
    assert set(np.unique(picture)) <= {0, 255}
    done = fastmed.infer(data / "image", tmp_path / "out", model=run.best, quiet=True)
    assert {row.verdict for row in done.rows} == {"done"}
    inferred = np.asarray(Image.open(next((tmp_path / "out").glob("series/s7*/labels.png"))))
    assert np.array_equal(inferred, picture), "the test and infer say the same"


def test_grey_images_have_accuracy_and_iou_for_training_and_validation(tmp_path):
    data = discs(tmp_path / "data", 6)
    run = fastmed.train(
        "lung-unet2d-png", data, tmp_path / "run", device="cpu", settings=SMALL_GREY, quiet=True
    )
    with open(run.path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train_accuracy", "train_iou", "val_accuracy", "val_iou"):
        assert all(0 <= float(row[name]) <= 1 for row in rows), name


def test_grey_images_resume_exactly_with_batch_norms_and_a_moving_average(tmp_path, monkeypatch):
    data = discs(tmp_path / "data", 8)
    settings = (*SMALL_GREY, "loop.ema=0.5", "loop.epochs=3", "augmentation.elastic_p=1.0")
    arguments = {"device": "cpu", "settings": settings, "quiet": True}
    fastmed.train("lung-unet2d-png", data, tmp_path / "whole", **arguments)
    real, done = loop.save_state, []

    def once(*what):
        if done:
            raise KeyboardInterrupt  # after the epoch's bundles, before its state
        done.append(real(*what))

    monkeypatch.setattr(loop, "save_state", once)
    with pytest.raises(KeyboardInterrupt):
        fastmed.train("lung-unet2d-png", data, tmp_path / "cut", **arguments)
    monkeypatch.setattr(loop, "save_state", real)
    fastmed.train("lung-unet2d-png", data, tmp_path / "cut", resume=True, **arguments)
    for which in ("best", "last"):
        one, two = (
            (tmp_path / name / which / "weights.safetensors").read_bytes()
            for name in ("whole", "cut")
        )
        assert one == two, which


def test_two_processes_validate_grey_images_and_draw_them(tmp_path):
    data = discs(tmp_path / "data", 8)
    settings = (*SMALL_GREY, "loop.epochs=1", "loop.shares=[0.5,0.375,0.125]")
    runs = [
        fastmed.train(
            "lung-unet2d-png", data, tmp_path / str(n), devices=n, device="cpu",
            settings=settings, quiet=True,
        )
        for n in (1, 2)
    ]  # fmt: skip
    sizes = [Image.open(run.path / "predictions.png").size for run in runs]
    assert sizes[0] == sizes[1], "as many panels"


def test_named_values_train_an_organ_of_many(tmp_path):
    data, voxels = balls(tmp_path / "data"), 0
    for path in (data / "label").iterdir():  # liver is 5, among others
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj).astype(np.uint8) * 5
        labels[:3, :3, :3], labels[-2:, -2:, -2:] = 1, 17
        voxels += int((labels == 5).sum())
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)
    settings = (*TINY, "values.liver=[5]", "loop.epochs=12", "optimiser.learning_rate=5e-3")
    run = fastmed.train(
        "liver-unet3d", data, tmp_path / "run", device="cpu", settings=settings, quiet=True
    )
    assert f"{voxels:,} voxels" in (run.path / "survey.txt").read_text()
    assert run.test["dice"] > 0.5, "other organs are background"
    test = json.loads((run.path / "test.json").read_text())
    assert test["labels"]["liver"]["dice"] == pytest.approx(run.test["dice"])


def test_one_patient_trains_alone(tmp_path):
    data = balls(tmp_path / "data", count=1)
    settings = (*TINY, "loop.shares=[1,0,0]")
    run = fastmed.train(
        "liver-unet3d", data, tmp_path / "run", device="cpu", settings=settings, quiet=True
    )
    assert run.test == {}
    assert run.best_epoch in (1, 2)
    assert (run.best / "weights.safetensors").is_file()


CLASSES = (
    "grid.size_zyx=[32,32,32]", "grid.region=scan", "loop.batch_size=2", "loop.epochs=1",
    "network.base_channels=8", "augmentation.elastic_p=0.0",
)  # fmt: skip


def chests(folder, targets: dict[str, list[int]]):
    """labels.csv over arrays: a bright block is class 1."""
    rng = np.random.default_rng(2)
    lines = ["path,patient,label,subset"]
    folder.mkdir(parents=True)
    for subset, classes in targets.items():
        for number, target in enumerate(classes):
            voxels = rng.normal(-700, 50, (16, 16, 16)).astype(np.int16)
            voxels[4:10, 4:10, 4:10] += 600 * target
            name = f"{subset}{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])), folder / name)
            lines.append(f"{name},p-{subset}-{number},{target},{subset}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_test_without_positives_has_no_auc_and_valid_json(tmp_path):
    data = chests(tmp_path / "data", {"train": [0, 1, 0, 1], "val": [0, 0], "test": [0, 0]})
    run = fastmed.train(
        "lung-resnet3d", data, tmp_path / "run", device="cpu", settings=CLASSES, quiet=True
    )
    assert run.test["auc"] is None

    def refuse(word):
        raise AssertionError(f"test.json holds {word}, which is no JSON")

    test = json.loads((run.path / "test.json").read_text(), parse_constant=refuse)
    assert test["classification"]["auc"] is None
    assert test["classification"]["auc_band"] == [None, None]
    assert test["classification"]["confusion"][1] == [0, 0]


def test_predictions_csv_is_what_evaluate_reads(tmp_path, capsys):
    data = chests(tmp_path / "data", {"train": [0, 1], "val": [0, 1], "test": [0, 1, 1]})
    run = fastmed.train("lung-resnet3d", data, tmp_path / "run", device="cpu", settings=CLASSES)
    table = capsys.readouterr().out
    for score in ("accuracy", "precision", "recall", "f1", "auc", "calibration", "of positive"):
        assert score in table, score
    found = fastmed.evaluate(
        run.path / "predictions.csv", data / "labels.csv", task="classification", quiet=True
    ).scores
    assert found["scans"] == 3
    assert found["auc"] == pytest.approx(run.test["auc"])
    assert found["classes"] == ["negative", "positive"]


def test_bad_data_leaves_the_output_free_for_the_next_try(tmp_path):
    data = balls(tmp_path / "data")
    lost = data / "label" / "case-03.nii.gz"
    lost.rename(tmp_path / "kept.nii.gz")
    arguments = {"device": "cpu", "settings": (*TINY, "loop.epochs=1"), "quiet": True}
    with pytest.raises(UsageError, match="no such file or folder"):
        fastmed.train("liver-unet3d", tmp_path / "absent", tmp_path / "run", **arguments)
    with pytest.raises(DataError, match="case-03: no mask of this name"):
        fastmed.train("liver-unet3d", data, tmp_path / "run", **arguments)
    (tmp_path / "kept.nii.gz").rename(lost)
    assert fastmed.train("liver-unet3d", data, tmp_path / "run", **arguments).epochs == 1


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    data = balls(tmp_path / "data")
    arguments = {"device": "cpu", "settings": (*TINY, "loop.epochs=1"), "quiet": True}
    fastmed.train("liver-unet3d", data, tmp_path / "run", **arguments)
    balls(tmp_path / "data", seed=9)
    with pytest.raises(DataError, match=r"survey\.txt differs from what the data say now"):
        fastmed.train("liver-unet3d", data, tmp_path / "run", resume=True, **arguments)


def test_a_full_disk_stops_the_run_and_keeps_what_was_done(tmp_path, monkeypatch):
    from fastmed.training import checkpoint

    data = balls(tmp_path / "data")
    arguments = {"device": "cpu", "settings": (*TINY, "loop.epochs=3"), "quiet": True}
    fastmed.train("liver-unet3d", data, tmp_path / "whole", **arguments)
    real, states = checkpoint.write_atomically, []

    def full(path, pieces):
        states.append(path)
        if len(states) == 2:
            raise FastmedError(f"{path}: cannot be written, no space left on device")
        real(path, pieces)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(FastmedError, match="no space left"):
        fastmed.train("liver-unet3d", data, tmp_path / "full", **arguments)
    monkeypatch.setattr(checkpoint, "write_atomically", real)
    fastmed.train("liver-unet3d", data, tmp_path / "full", resume=True, **arguments)
    one, two = (
        (tmp_path / name / "last" / "weights.safetensors").read_bytes()
        for name in ("whole", "full")
    )
    assert one == two
