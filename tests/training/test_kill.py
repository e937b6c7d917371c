"""A run that is killed at any moment and resumed ends with the weights of an unbroken one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from detection_runs import TINY_3D, nodules
from safetensors.torch import load_file
from training_runs import TINY, balls

SETTINGS = (*TINY, "loop.epochs=6", "loop.ema=0.9", "loop.checkpoints=every")


# Kills itself where its n-th file of a run would take its place.
COUNTED = """
import os, signal, sys
left = int(sys.argv.pop(1))
real = os.replace
def replace(source, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
from fastmed import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def start(
    data,
    output,
    cache,
    *more: str,
    kill_at_write: int = 0,
    recipe: str = "liver-unet3d",
    settings=SETTINGS,
) -> subprocess.Popen:
    command = (
        sys.executable, "-c", COUNTED, str(kill_at_write), "train", recipe,
        "--data", str(data), "--output", str(output), "--device", "cpu", "--quiet",
        "--set", *settings,
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
    while kills:
        process = start(data, tmp_path / "killed", cache, "--resume")
        time.sleep(moments.uniform(0.3, 0.95) * whole)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills -= 1
        else:  # it came to its end before: another run takes the kills that are left
            finish(process)
            shutil.rmtree(tmp_path / "killed")
            whole *= 0.9
    finish(start(data, tmp_path / "killed", cache, "--resume"))
    compare(tmp_path)


def compare(tmp_path) -> None:
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


def test_a_run_killed_between_any_two_files_resumes_to_the_same_weights(tmp_path):
    data, cache = balls(tmp_path / "data"), tmp_path / "cache"
    finish(start(data, tmp_path / "unbroken", cache))
    # 3 files begin a run, 1 shows samples; an epoch has its bundles' (4 to 6), pictures and state.
    for write in (1, 2, 6, 9, 11, 13, 14, 15):
        process = start(data, tmp_path / "killed", cache, "--resume", kill_at_write=write)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, write
    finish(start(data, tmp_path / "killed", cache, "--resume"))
    compare(tmp_path)
    assert not list((tmp_path / "killed").rglob(".*"))


def test_a_detection_killed_between_two_files_resumes_to_the_same_weights(tmp_path):
    data, cache = nodules(tmp_path / "data", count=6), tmp_path / "cache"
    options = {"recipe": "nodule-ssd3d", "settings": TINY_3D}
    finish(start(data, tmp_path / "unbroken", cache, **options))
    process = start(data, tmp_path / "killed", cache, kill_at_write=17, **options)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "state.safetensors").is_file()
    finish(start(data, tmp_path / "killed", cache, "--resume", **options))
    compare(tmp_path)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    kill_and_compare(tmp_path, kills=3)


@pytest.mark.long
def test_a_run_killed_twenty_times_resumes_to_the_same_weights(tmp_path):
    kill_and_compare(tmp_path, kills=20)
