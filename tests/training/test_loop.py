"""A run trains, resumes, keeps what it should, and says when something is wrong."""

import json
import math
import re
import threading
from dataclasses import replace

import lightning_fabric
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_runs import TINY, rows, same, weights

import fastmed
from fastmed import bundle, models
from fastmed.errors import FastmedError, UsageError
from fastmed.training import loop
from fastmed.training.recipe import read_recipe
from fastmed.training.run_folder import RunFolder


def test_a_run_learns_and_leaves_all_that_it_promises(train, ball_scans):
    run = train("loop.epochs=12", "optimiser.learning_rate=5e-3")
    table = rows(run)
    assert len(table) == 12
    assert float(table[-1]["train_loss"]) < 0.7 * float(table[0]["train_loss"])
    assert float(table[-1]["val_dice"]) > 0.5
    for name in (
        "train_dice",
        "train_iou",
        "train_accuracy",
        "val_loss",
        "val_iou",
        "val_accuracy",
    ):
        assert 0 <= float(table[-1][name]) < 3, name
    for name in (
        "recipe.toml", "split.json", "survey.txt", "state.safetensors", "curves.png",
        "predictions.png", "tensorboard", "test.json", "best/bundle.toml", "last/bundle.toml",
    ):  # fmt: skip
        assert (run.path / name).exists(), name
    test = json.loads((run.path / "test.json").read_text())
    assert test["mean"] == run.test
    assert test["cases"] == len(test["per_case"]) == 2
    (kept,) = (run.path / "checkpoints").iterdir()
    assert re.fullmatch(r"\d+_train_iou_0\.\d{3}_val_iou_0\.\d{3}", kept.name)
    assert kept.name.startswith(f"{run.best_epoch}_")
    assert load_file(kept / "weights.safetensors").keys() == weights(run, "best").keys()


def test_what_a_run_wrote_goes_straight_into_infer(train, ball_scans, tmp_path):
    run = train()
    done = fastmed.infer(ball_scans / "image", tmp_path / "out", model=run.best, quiet=True)
    assert [row.verdict for row in done.rows] == ["done"] * 8
    assert "recipe liver-unet3d" in bundle.read(run.best).spec.trained_on


def test_two_runs_give_the_same_numbers_and_another_seed_others(train):
    one, two, other = train(name="a"), train(name="b"), train("loop.seed=1", name="c")
    timing = ("seconds", "data_seconds")
    strip = lambda run: [{k: v for k, v in row.items() if k not in timing} for row in rows(run)]  # noqa: E731
    assert strip(one) == strip(two)
    assert same(one, two)
    assert not same(one, other)


def test_a_run_resumed_ends_with_the_weights_of_an_unbroken_one(train, monkeypatch):
    unbroken = train("loop.epochs=4", "loop.ema=0.5", name="unbroken")
    real, seen = loop._train_epoch, []

    def break_off(*arguments):
        seen.append(None)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "_train_epoch", break_off)
    with pytest.raises(KeyboardInterrupt):
        train("loop.epochs=4", "loop.ema=0.5", name="broken")
    monkeypatch.setattr(loop, "_train_epoch", real)
    resumed = train("loop.epochs=4", "loop.ema=0.5", name="broken", resume=True)
    assert same(unbroken, resumed)
    assert same(unbroken, resumed, "best")
    assert [r["epoch"] for r in rows(resumed)] == ["1", "2", "3", "4"]
    again = train("loop.epochs=4", "loop.ema=0.5", name="broken", resume=True)
    assert same(unbroken, again), "a finished run resumed stays as it is"


def test_a_resumed_run_keeps_its_recipe_and_a_new_one_needs_a_new_folder(train):
    train()
    with pytest.raises(UsageError, match="not an empty folder; name a new one; --resume goes on"):
        train()
    with pytest.raises(UsageError, match=r"another recipe \(loop.epochs was 2 and is 3\)"):
        train("loop.epochs=3", resume=True)


KEPT = {"best": 1, "last": 1, "every": 3}


@pytest.mark.parametrize(("kept", "count"), KEPT.items())
def test_checkpoints_are_kept_as_asked(train, kept, count):
    run = train(f"loop.checkpoints={kept}", "loop.epochs=3")
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert len(names) == count
    if kept != "best":
        assert names[-1].startswith("3_train_iou_")


def test_validation_comes_as_often_as_asked_and_at_the_end(train):
    run = train("loop.validate_every=2", "loop.epochs=3")
    assert [bool(r["val_dice"]) for r in rows(run)] == [False, True, True]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_cases(train, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, logits, target):
            return logits.sum() * math.nan

    monkeypatch.setattr(loop, "build_loss", lambda *a, **k: Broken())
    with pytest.raises(FastmedError, match=r"the loss became nan on case-\d\d, case-\d\d"):
        train()


def test_weights_that_are_not_finite_are_never_kept(train, monkeypatch):
    class Steep(torch.nn.Module):  # the loss is finite, its gradient is not
        def forward(self, logits, target):
            return (logits.sum() * 0).sqrt()

    monkeypatch.setattr(loop, "build_loss", lambda *a, **k: Steep())
    with pytest.raises(FastmedError, match=r"the weights became NaN or infinite in epoch 1"):
        train("loop.shares=[1,0,0]", "loop.epochs=1", "sampling.samples_per_case=1",
              "loop.batch_size=8", "optimiser.clip_norm=0")  # fmt: skip


def test_gradients_that_overflow_are_not_the_end_of_a_run_that_clips(train, monkeypatch):
    asked = []
    real = lightning_fabric.Fabric.clip_gradients

    def watched(self, *arguments, **options):
        asked.append(options["error_if_nonfinite"])
        return real(self, *arguments, **options)

    monkeypatch.setattr(lightning_fabric.Fabric, "clip_gradients", watched)
    train("loop.epochs=1")
    assert set(asked) == {False}, "fp16's first steps overflow until its scale has come down"


def test_the_thread_that_reads_ahead_ends_with_the_training(train, monkeypatch):
    def broken(self, *arguments):
        raise FastmedError("broken")

    monkeypatch.setattr(loop.Tally, "add", broken)
    with pytest.raises(FastmedError, match="broken") as held:
        train("loop.epochs=1", "sampling.samples_per_case=8")
    names = [thread.name for thread in threading.enumerate()]
    assert "fastmed-batches" not in names, held  # also while the error is held


def test_epochs_are_compared_by_the_loss_where_no_validation_case_has_a_label(train, monkeypatch):
    real = loop.summarise
    dice = iter((None, 0.0, None))  # it exists only in the epoch that found what is not there
    monkeypatch.setattr(
        loop, "summarise",
        lambda results, spec: real(results, spec) | {"dice": next(dice)},
    )  # fmt: skip
    monkeypatch.setattr(loop, "_guide", emptied(loop._guide))
    run = train("loop.epochs=3", "optimiser.learning_rate=5e-3")
    losses = [float(row["val_loss"]) for row in rows(run)]
    assert run.best_epoch == 1 + losses.index(min(losses))


def emptied(guide):
    """The guide of a run whose validation cases hold no label."""
    return lambda job: guide(
        replace(job, val=tuple(replace(c, points=c.points[:0]) for c in job.val))
    )


def test_what_the_network_is_given_is_drawn_before_the_first_epoch(train, monkeypatch, tmp_path):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert Image.open(tmp_path / "run" / "samples.png").size[0] > 100


def test_an_epoch_that_was_repeated_keeps_one_name(tmp_path):
    network = models.build("unet3d", in_channels=1, num_classes=2, base_channels=8)
    recipe = read_recipe("liver-unet3d", ["loop.checkpoints=every", *TINY])
    folder = RunFolder(tmp_path)
    for epoch, iou in ((1, 0.25), (2, 0.5), (2, 0.625)):
        folder.keep(recipe, network, {"epoch": epoch, "train_iou": iou}, best=True)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["1_train_iou_0.250", "2_train_iou_0.625"]


def test_a_run_killed_while_it_wrote_its_first_file_can_be_resumed(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.toml.0123456789ab.tmp").write_text("half")
    assert train("loop.epochs=1", resume=True).epochs == 1
    assert not list((tmp_path / "run").glob(".*"))


def test_a_folder_that_is_no_run_stays_as_it_is(train, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".mine.tmp", "thesis.txt"):
        (tmp_path / "run" / name).write_text("mine")
    for resume, words in ((False, "not an empty folder"), (True, "holds no recipe.toml")):
        with pytest.raises(UsageError, match=words):
            train(resume=resume)
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_validation_neither_trains_nor_leaves_eval_mode(train, monkeypatch):
    real, modes = loop.run_cases, []

    def watched(network, cases, spec, loss, device, **options):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        assert network.training
        results = real(network, cases, spec, loss, device, **options)
        assert network.training
        assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
        assert not any(p.grad is not None and p.grad.any() for p in network.parameters())
        modes.append(len(results))
        return results

    monkeypatch.setattr(loop, "run_cases", watched)
    train()
    assert modes == [2, 2]


def test_memory_stays_flat_over_epochs(train, monkeypatch):
    resident, real = [], loop._train_epoch

    def watched(*arguments):
        row = real(*arguments)
        with open("/proc/self/statm") as file:
            resident.append(int(file.read().split()[1]) * 4096 / 1e6)
        return row

    monkeypatch.setattr(loop, "_train_epoch", watched)
    train("loop.epochs=6", "loop.validate_every=6")
    assert resident[-1] - resident[1] < 25, resident
