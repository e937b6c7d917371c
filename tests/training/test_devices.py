"""Two processes train as one would: the same gradients at the same global batch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import TINY, balls, first_moments

import fastmed
from fastmed.errors import FastmedError, UsageError

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


def test_an_error_in_one_of_two_processes_is_the_error_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "cache"))
    data, run = balls(tmp_path / "data"), tmp_path / "run"
    arguments = {"device": "cpu", "settings": ONE_STEP, "quiet": True}
    fastmed.train("liver-unet3d", data, run, **arguments)
    (run / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(FastmedError, match="this run's state cannot be read") as raised:
        fastmed.train("liver-unet3d", data, run, devices=2, resume=True, **arguments)
    assert "Traceback" not in str(raised.value)


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from fastmed import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_says_how_it_goes_on_and_leaves_no_process(
    tmp_path, devices, number, status
):
    data, run = balls(tmp_path / "data"), tmp_path / "run"
    settings = (*ONE_STEP, "loop.epochs=10000", "loop.validate_every=10000")
    command = (
        sys.executable, "-c", COMMAND, "train", "liver-unet3d", "--data", str(data),
        "--output", str(run), "--devices", str(devices), "--device", "cpu", "--set", *settings,
    )  # fmt: skip
    process = subprocess.Popen(
        command, env=os.environ | {"FASTMED_CACHE": str(tmp_path / "cache")},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not (run / "state.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    last = said.strip().splitlines()[-1]
    assert f"--output {run}" in last
    assert last.endswith("--resume goes on")
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)  # multiprocessing's tracker notices a moment later
    assert not [child for child in children if is_running(child)]


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
