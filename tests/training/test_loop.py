"""A run trains, keeps what it should, and each switch of a recipe does what it says."""

import csv
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
from training_runs import TINY, balls, first_moments

import fastmed
from fastmed import bundle, models
from fastmed.errors import FastmedError, UsageError
from fastmed.training import loop, memory, processes
from fastmed.training.recipe import read_recipe
from fastmed.training.run_folder import RunFolder
from fastmed.training.train import TrainingRun


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return balls(tmp_path_factory.mktemp("balls"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: True)  # it would hold for all tests


@pytest.fixture
def train(data, tmp_path):
    """Trains the tiny run with more settings; each call into a folder of its own."""

    def run(*settings: str, name: str = "run", **options) -> TrainingRun:
        return fastmed.train(
            "liver-unet3d", data, tmp_path / name, device="cpu", quiet=True,
            settings=[*TINY, *settings], **options,
        )  # fmt: skip

    return run


def rows(run: TrainingRun) -> list[dict[str, str]]:
    with open(run.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(run: TrainingRun, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run.path / which / "weights.safetensors")


def same(one: TrainingRun, other: TrainingRun, which: str = "last") -> bool:
    a, b = weights(one, which), weights(other, which)
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_and_leaves_all_that_it_promises(train, data):
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


def test_what_a_run_wrote_goes_straight_into_infer(train, data, tmp_path):
    run = train()
    done = fastmed.infer(data / "image", tmp_path / "out", model=run.best, quiet=True)
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


SCHEDULES = {
    "none": (("optimiser.learning_rate=2e-3",), (2e-3, 2e-3, 2e-3)),
    "step": (("optimiser.step_epochs=1", "optimiser.factor=0.1"), (1e-3, 1e-4, 1e-5)),
    "cosine": (("optimiser.final_learning_rate=0.0",), (1e-3, 7.5e-4, 2.5e-4)),
}


@pytest.mark.parametrize(("name", "settings", "rates"), [(n, *v) for n, v in SCHEDULES.items()])
def test_the_learning_rate_follows_its_schedule(train, name, settings, rates):
    run = train(f"optimiser.schedule={name}", "loop.epochs=3", *settings)
    assert [float(r["learning_rate"]) for r in rows(run)] == pytest.approx(rates)


def test_a_plateau_lowers_the_learning_rate_and_then_stops_the_run(train, monkeypatch):
    monkeypatch.setattr(loop, "_validate", lambda *a: [])
    monkeypatch.setattr(
        loop, "summarise", lambda results, spec: {"loss": 1.0, "dice": 0.5, "iou": 0.4}
    )
    run = train(
        "optimiser.schedule=plateau", "optimiser.patience=1", "optimiser.factor=0.1",
        "loop.patience=4", "loop.epochs=9",
    )  # fmt: skip
    assert [float(r["learning_rate"]) for r in rows(run)] == pytest.approx(
        [1e-3, 1e-3, 1e-3, 1e-4, 1e-4]
    )
    assert run.epochs == 5
    assert run.best_epoch == 1


def test_a_loss_that_stands_still_is_a_plateau_too(train, monkeypatch):
    monkeypatch.setattr(loop.Tally, "row", lambda self, fabric: {"train_loss": 0.7})
    run = train(
        "optimiser.schedule=plateau", "optimiser.patience=1", "optimiser.factor=0.1",
        "loop.shares=[1,0,0]", "loop.epochs=4",
    )  # fmt: skip
    assert [float(r["learning_rate"]) for r in rows(run)] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])


def test_without_patience_a_run_never_stops_early(train, monkeypatch):
    monkeypatch.setattr(loop, "_validate", lambda *a: [])
    monkeypatch.setattr(
        loop, "summarise", lambda results, spec: {"loss": 1.0, "dice": 0.5, "iou": 0.4}
    )
    assert train("loop.patience=0", "loop.epochs=4").epochs == 4


def test_warm_up_lets_the_learning_rate_rise_over_the_first_steps(train, monkeypatch):
    used = spy_on_steps(monkeypatch, lambda optimiser: optimiser.param_groups[0]["lr"])
    train("optimiser.warmup_steps=4", "optimiser.schedule=none", "loop.epochs=1")
    assert used == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])


def test_gradients_are_clipped_to_the_norm_asked_for(train, monkeypatch):
    def norm(optimiser):
        grads = [p.grad.norm() for group in optimiser.param_groups for p in group["params"]]
        return float(torch.stack(grads).norm())

    norms = spy_on_steps(monkeypatch, norm)
    train("optimiser.clip_norm=0", "loop.epochs=1", name="free")
    free, norms[:] = list(norms), []
    train("optimiser.clip_norm=0.01", "loop.epochs=1", name="clipped")
    assert min(free) > 0.02
    assert max(norms) <= 0.01 * 1.001


def test_accumulated_gradients_are_those_of_one_larger_batch(train):
    shared = ("sampling.samples_per_case=1", "loop.epochs=1", "optimiser.clip_norm=0")
    small = train("loop.batch_size=2", "optimiser.accumulate=2", *shared, name="small")
    large = train("loop.batch_size=4", *shared, name="large")
    one, other = first_moments(small), first_moments(large)  # each took a single step
    largest = max(float(value.abs().max()) for value in other.values())
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=0, atol=1e-5 * largest)


def test_adamw_decays_weights_and_adam_takes_its_own_way(train):
    adam = train("optimiser.weight_decay=0.5", name="a")
    adamw = train("optimiser.weight_decay=0.5", "optimiser.name=adamw", name="b")
    none = train(name="c")
    assert distance(adam, adamw) > 1e-4 < distance(adamw, none)


def test_a_moving_average_is_what_a_run_keeps(train):
    plain = train("loop.epochs=1", name="plain")
    slow = train("loop.epochs=1", "loop.ema=0.999999", name="slow")
    assert not same(plain, slow)
    torch.manual_seed(0)
    fresh = models.build("unet3d", in_channels=1, num_classes=2, base_channels=8).state_dict()
    drift = max(float((value - fresh[name]).abs().max()) for name, value in weights(slow).items())
    moved = max(float((value - fresh[name]).abs().max()) for name, value in weights(plain).items())
    assert drift < 0.6 * moved  # the average begins at the first step's weights


def test_compile_compiles_the_network(train, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(1) or network)
    train("loop.epochs=1", name="eager")
    assert not compiled
    train("loop.epochs=1", "loop.compile=true", name="compiled")
    assert compiled


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_that_of_the_networks_arithmetic(train, monkeypatch, precision, dtype):
    class Enough(Exception):
        """The first convolution has run: what follows in bfloat16 on a CPU is not reliable."""

    seen, real = [], torch.nn.Conv3d.forward

    def look(self, image):
        seen.append(real(self, image).dtype)
        raise Enough

    monkeypatch.setattr(processes, "_check_precision", lambda kind, precision: None)
    monkeypatch.setattr(loop, "_train_epoch", watching(loop._train_epoch, monkeypatch, look))
    with pytest.raises(Enough):
        train(f"loop.precision={precision}", "loop.epochs=1", "loop.shares=[1,0,0]")
    assert seen == [dtype]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_refused_on_the_cpu(train, precision):
    with pytest.raises(UsageError, match=f"loop.precision {precision}: needs a CUDA device"):
        train(f"loop.precision={precision}")


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

    monkeypatch.setattr(loop.losses, "build", lambda *a, **k: Broken())
    with pytest.raises(FastmedError, match=r"the loss became nan on case-\d\d, case-\d\d"):
        train()


def test_weights_that_are_not_finite_are_never_kept(train, monkeypatch):
    class Steep(torch.nn.Module):  # the loss is finite, its gradient is not
        def forward(self, logits, target):
            return (logits.sum() * 0).sqrt()

    monkeypatch.setattr(loop.losses, "build", lambda *a, **k: Steep())
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


def test_a_compiled_network_trains_and_its_bundle_is_a_plain_one(train):
    run = train("loop.epochs=1", "loop.compile=true", "loop.ema=0.5", "sampling.samples_per_case=1")
    plain = models.build("unet3d", in_channels=1, num_classes=2, base_channels=8).state_dict()
    assert weights(run).keys() == plain.keys()
    assert not any("_orig_mod" in name for name in load_file(run.path / "state.safetensors"))
    again = train(
        "loop.epochs=1", "loop.compile=true", "loop.ema=0.5", "sampling.samples_per_case=1",
        resume=True,
    )  # fmt: skip
    assert same(run, again)


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


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, name, value):
            calls.append((name, value))
            return 1

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Library())
    assert memory.keep_freed_memory()
    assert (-4, 0) in calls
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()


def spy_on_steps(monkeypatch, look) -> list:
    """Collects what `look` sees of the optimiser just before each step."""
    seen, real = [], torch.optim.Adam.__init__

    def build(self, *arguments, **options):
        real(self, *arguments, **options)
        self.register_step_pre_hook(lambda optimiser, args, kwargs: seen.append(look(optimiser)))

    monkeypatch.setattr(torch.optim.Adam, "__init__", build)
    return seen


def watching(train_epoch, monkeypatch, look):
    """An epoch whose convolutions go to `look`."""

    def watched(*arguments):
        monkeypatch.setattr(torch.nn.Conv3d, "forward", look)
        return train_epoch(*arguments)

    return watched


def distance(one: TrainingRun, other: TrainingRun) -> float:
    a, b = weights(one), weights(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a)
