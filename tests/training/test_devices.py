"""Two processes train as one would: the same gradients at the same global batch."""

import pytest
import torch
from training_runs import TINY, balls, first_moments

import fastmed
from fastmed.errors import UsageError

ONE_STEP = (
    *TINY, "loop.epochs=1", "loop.batch_size=4", "sampling.samples_per_case=1",
    "optimiser.clip_norm=0", "loop.shares=[0.5,0.25,0.25]",
)  # fmt: skip


def test_two_processes_give_the_gradients_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "cache"))
    data = balls(tmp_path / "data")
    runs = {}
    for devices in (2, 1):
        runs[devices] = fastmed.train(
            "liver-unet3d", data, tmp_path / str(devices), devices=devices, device="cpu",
            settings=ONE_STEP, quiet=True,
        )  # fmt: skip
    one, two = (first_moments(runs[n]) for n in (1, 2))
    assert one.keys() == two.keys()
    largest = max(float(value.abs().max()) for value in one.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5 * largest)
    assert runs[1].test.keys() == runs[2].test.keys()


def test_a_batch_that_cannot_be_shared_is_a_wrong_usage(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "cache"))
    data = balls(tmp_path / "data")
    with pytest.raises(UsageError, match=r"batch_size 2: expected a multiple of --devices 3"):
        fastmed.train(
            "liver-unet3d", data, tmp_path / "run", devices=3, device="cpu", settings=TINY
        )
    with pytest.raises(UsageError, match="--devices 0: expected at least 1"):
        fastmed.train("liver-unet3d", data, tmp_path / "new", devices=0, settings=TINY)
