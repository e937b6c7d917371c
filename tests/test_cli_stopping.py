"""The command when it is stopped: its status, its last words, and nothing half-written."""

import signal
import subprocess
import sys
import time

import pytest
import scans as make

from fastmed.cli import main

SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from fastmed import cli
from fastmed.inference import case
real, seen = case.Model.look, []
def slow(self, *arguments, **options):
    seen.append(0)
    if len(seen) == 2:
        print("ready", flush=True)
        time.sleep(60)
    return real(self, *arguments, **options)
case.Model.look = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stopped_run_finishes_cleanly(tiny_bundle, tmp_path, number, status):
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        make.series(tmp_path / "in" / name, make.volume(seed=seed))
    words = ["infer", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    words += ["--model", tiny_bundle, "--engine", "torch", "--device", "cpu", "--workers", "0"]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "ready\n"
    time.sleep(0.1)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == status
    assert err.splitlines()[-1].startswith("fastmed: stopped by ")
    assert "Traceback" not in err
    (done,) = (tmp_path / "out" / "series").iterdir()
    assert (done / "labels.nii.gz").is_file()
    assert not list((tmp_path / "out").rglob(".*"))
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert manifest.count("the run was stopped before this scan was done") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "out"], "1 done and kept, 2 left; those in hand were dropped whole"),
        (["--output", "new"], "nothing was done yet"),
        (["--output", "out", "--dry-run"], "nothing was changed"),
    ],
    ids=["some done", "not begun", "a dry run"],
)
def test_a_stopped_run_says_how_many_scans_are_done_and_left(
    words, said, tmp_path, monkeypatch, capsys
):
    from fastmed.inference.journal import Journal
    from fastmed.inference.journal_units import Planned

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with Journal(tmp_path / "out") as journal:
        names = [Planned(n, n, "ok", "", (), {}, "r", "key", "stamp") for n in ("a", "b", "c")]
        journal.plan(names, fresh=False, is_there=lambda unit: True)
        journal.claim("somebody", "r", alone=True)
        journal.done("a", "somebody")
        journal.claim("somebody", "r", alone=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastmed.infer", stopped)
    assert main(["infer", "--input", "scans", *words]) == 130
    assert said in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    make.series(tmp_path / "in")
    program = subprocess.Popen(
        [sys.executable, "-m", "fastmed.cli", "index", str(tmp_path / "in")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    program.stdout.close()
    assert "Traceback" not in program.stderr.read()
    program.wait()
