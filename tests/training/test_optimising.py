"""Each switch of a recipe's optimiser and of its arithmetic does what it says."""

import pytest
import torch
from safetensors.torch import load_file
from training_runs import distance, first_moments, rows, same, weights

from fastmed import models
from fastmed.errors import UsageError
from fastmed.training import loop, processes

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
