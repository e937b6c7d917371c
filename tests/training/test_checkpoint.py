"""The state of a run comes back as it was, bit by bit, or says what is wrong with it."""

import re

import pytest
import torch
from torch import nn

from fastmed.errors import FastmedError
from fastmed.training.checkpoint import Progress, RandomState, load_state, save_state


def parts(seed: int, *, trained: bool):
    """A small network with its optimiser, schedule and moving average."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, mode="max")
    average = torch.optim.swa_utils.AveragedModel(network, use_buffers=True)
    if trained:
        for step in range(3):
            network(torch.randn(2, 1, 8, 8)).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
            average.update_parameters(network)
            schedule.step(-step)
    return {
        "network": network, "optimiser": optimiser, "schedule": schedule, "average": average,
        "random": RandomState(),
    }  # fmt: skip


def test_a_state_comes_back_bit_by_bit(tmp_path):
    before = parts(1, trained=True)
    progress = Progress(epoch=3, steps=9, score=0.5, history=[{"epoch": 1, "val_dice": None}])
    save_state(tmp_path / "state", progress, before)
    drawn = torch.rand(3)
    after = parts(2, trained=False)
    assert load_state(tmp_path / "state", after) == progress
    assert torch.equal(torch.rand(3), drawn)
    for name in ("network", "average"):
        for key, value in before[name].state_dict().items():
            assert torch.equal(value, after[name].state_dict()[key]), key
    old, new = before["optimiser"].state_dict(), after["optimiser"].state_dict()
    assert old["param_groups"] == new["param_groups"]
    for index, moments in old["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, new["state"][index][key]), key
    assert before["schedule"].state_dict() == after["schedule"].state_dict()


def test_training_goes_on_from_a_state_as_if_it_had_not_stopped(tmp_path):
    unbroken = parts(1, trained=True)
    save_state(tmp_path / "state", Progress(), unbroken)
    resumed = parts(2, trained=False)
    load_state(tmp_path / "state", resumed)
    image = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    for each in (unbroken, resumed):
        each["network"](image).square().mean().backward()
        each["optimiser"].step()
    for one, other in zip(
        unbroken["network"].parameters(), resumed["network"].parameters(), strict=True
    ):
        assert torch.equal(one, other)


DAMAGES = {
    "truncated": lambda content: content[:-40],
    "garbled": lambda content: b"\xff" * len(content),
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_named(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    save_state(path, Progress(), parts(1, trained=True))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FastmedError, match=re.escape(f"{path}: this run's state cannot be read")):
        load_state(path, parts(1, trained=False))


def test_a_state_of_another_network_is_refused(tmp_path):
    save_state(tmp_path / "state", Progress(), parts(1, trained=True))
    other = parts(1, trained=False)
    other["network"] = nn.Conv2d(1, 4, 3)
    with pytest.raises(FastmedError, match="cannot be read"):
        load_state(tmp_path / "state", other)
