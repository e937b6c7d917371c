"""Scans in processes of their own: who crashes or hangs costs itself, and no one else."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scans as make

import fastmed
from fastmed.errors import UsageError
from fastmed.inference import workers as workers_module
from fastmed.inference.journal import Journal

FAULTY = Path(__file__).with_name("faulty_worker.py")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    for number in range(5):
        make.series(folder / f"s{number}", make.volume(seed=number))
    return folder


@pytest.fixture
def run(tiny_bundle, archive, tmp_path):
    def run(output="out", **options):
        settings = {"model": tiny_bundle, "engine": "torch", "device": "cpu", "quiet": True}
        return fastmed.infer(archive, tmp_path / output, **(settings | options))

    return run


def results(output):
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and (path.name == "findings.csv" or "series" in path.parts)
    }


@pytest.mark.parametrize(
    ("fault", "stage", "words"),
    [
        ("SIGSEGV", "read", "its process was ended by SIGSEGV (while it was read)"),
        ("SIGABRT", "network", "its process was ended by SIGABRT (while the network saw it)"),
        ("SIGKILL", "finish", "its process was ended by SIGKILL (while its results were made)"),
        ("hang", "network", "nothing moved for 3 s (while the network saw it)"),
    ],
)
def test_a_scan_that_brings_its_process_down_costs_only_itself(
    run, monkeypatch, fault, stage, words
):
    command = [sys.executable, str(FAULTY), fault, stage, "s2"]
    monkeypatch.setattr(workers_module, "COMMAND", command)
    faulty = run("faulty", workers=1, attempts=1, hang_seconds=3)
    assert {row.source: row.verdict for row in faulty.rows} == {
        "s0": "done", "s1": "done", "s2": "failed", "s3": "done", "s4": "done",
    }  # fmt: skip
    (failed,) = [row for row in faulty.rows if row.verdict == "failed"]
    assert failed.reason == words
    assert not list(faulty.output.rglob(".*"))
    monkeypatch.undo()
    whole = results(run("whole").output)
    name = failed.name
    assert results(faulty.output).keys() == {file for file in whole if name not in file}
    again = run("faulty", workers=1)
    assert again.exit_status == 0
    assert results(again.output) == whole


def test_many_scans_that_bring_their_process_down_do_not_end_the_run(run, archive, monkeypatch):
    command = [sys.executable, str(FAULTY), "SIGSEGV", "read", "s0,s1,s2,s3"]
    monkeypatch.setattr(workers_module, "COMMAND", command)
    done = run(workers=1, attempts=2)
    assert [row.verdict for row in done.rows] == ["failed"] * 4 + ["done"]


def test_a_bundle_that_changes_amid_a_run_ends_it(run, tiny_bundle, monkeypatch, tmp_path):
    import shutil

    model = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    command = [sys.executable, str(FAULTY), "change:" + str(model), "read", "s2"]
    monkeypatch.setattr(workers_module, "COMMAND", command)
    with pytest.raises(fastmed.errors.FastmedError, match="has changed since the run began"):
        run(model=model, workers=1)


def test_two_workers_write_the_same_bytes_as_none(run):
    assert results(run("two", workers=2).output) == results(run("none").output)


def test_a_wrong_engine_is_an_error_of_the_caller(run, tmp_path):
    with pytest.raises(UsageError, match="--engine tpu: expected one of auto"):
        run(engine="tpu", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_dies_while_it_loads_is_named(run, monkeypatch):
    program = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(workers_module, "COMMAND", [sys.executable, "-c", program])
    with pytest.raises(
        fastmed.errors.FastmedError, match="that loads the model was ended by SIGSEGV"
    ):
        run(workers=1)


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from fastmed import cli
from fastmed.inference import workers
workers.COMMAND = [sys.executable, *sys.argv[1:5]]
workers._STOP_SECONDS = 2.0
sys.exit(cli.main(sys.argv[5:]))
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stopped_run_drops_what_is_in_hand_and_ends_its_processes(
    archive, tiny_bundle, tmp_path, number, status
):
    words = ["infer", "--input", archive, "--output", tmp_path / "out", "--model", tiny_bundle]
    words += ["--engine", "torch", "--device", "cpu"]
    command = [sys.executable, "-c", STOPPED, FAULTY, "hang", "network", "s3", *words]
    run = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("out/series/[0-9]*"))) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == status
    assert err.splitlines()[-1].startswith("fastmed: stopped by ")
    assert "Traceback" not in err
    assert not list((tmp_path / "out").rglob(".*"))
    assert not [path for path in _command_lines() if str(tiny_bundle).encode() in path]
    with Journal(tmp_path / "out") as journal:
        assert {unit.source: unit.state for unit in journal.listed()} == {
            "s0": "done", "s1": "done", "s2": "done", "s3": "waiting", "s4": "waiting",
        }  # fmt: skip
        assert not journal.owners()


def _command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def test_times_and_attempts_stand_in_journal_and_manifest_alone(run):
    done = run(workers=1)
    facts = json.loads((done.output / "manifest.json").read_text())
    assert all(series["seconds"]["network"] > 0 for series in facts["series"])
    with Journal(done.output) as journal:
        assert {unit.state for unit in journal.listed()} == {"done"}
        assert not journal.owners()
