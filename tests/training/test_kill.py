"""A run that is killed at any moment and resumed ends with the weights of an unbroken one."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from training_runs import TINY, balls

SETTINGS = (*TINY, "loop.epochs=6", "loop.ema=0.9", "loop.checkpoints=every")


def start(data, output, cache, *more: str) -> subprocess.Popen:
    command = (
        sys.executable, "-m", "fastmed.cli", "train", "liver-unet3d", "--data", str(data),
        "--output", str(output), "--device", "cpu", "--quiet", "--set", *SETTINGS,
    )  # fmt: skip
    environment = os.environ | {"FASTMED_CACHE": str(cache)}
    return subprocess.Popen([*command, *more], env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def kill_and_compare(tmp_path, kills: int) -> None:
    data, cache = balls(tmp_path / "data"), tmp_path / "cache"
    finish(start(data, tmp_path / "warm", cache))  # fills the cache, so that both take as long
    began = time.monotonic()
    finish(start(data, tmp_path / "unbroken", cache))
    whole = time.monotonic() - began
    moments = random.Random(5)
    landed = 0
    for _ in range(kills):
        process = start(data, tmp_path / "killed", cache, "--resume")
        time.sleep(moments.uniform(0.3, 0.95) * whole)
        landed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert landed >= kills / 2
    finish(start(data, tmp_path / "killed", cache, "--resume"))
    for which in ("best", "last"):
        one, other = (
            load_file(tmp_path / run / which / "weights.safetensors")
            for run in ("unbroken", "killed")
        )
        assert all(torch.equal(one[name], other[name]) for name in one), which
    unbroken, killed = (
        sorted(p.name for p in (tmp_path / run / "checkpoints").iterdir())
        for run in ("unbroken", "killed")
    )
    assert unbroken == killed


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    kill_and_compare(tmp_path, kills=3)


@pytest.mark.long
def test_a_run_killed_twenty_times_resumes_to_the_same_weights(tmp_path):
    kill_and_compare(tmp_path, kills=20)
