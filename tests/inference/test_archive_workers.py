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
from fastmed.inference.journal import DiskFull, Journal
from fastmed.inference.journal_units import Planned
from fastmed.inference.run_settings import RunSettings
from fastmed.inference.workers import Workers

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
        ("lost", "network", "its process ended with status 70 (while the network saw it)"),
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


def test_a_signal_to_the_whole_group_is_for_the_process_that_looks_after_the_worker(
    run, monkeypatch
):
    command = [sys.executable, str(FAULTY), "signalled", "read", "s2"]
    monkeypatch.setattr(workers_module, "COMMAND", command)
    done = run(workers=1)
    assert {row.verdict for row in done.rows} == {"done"}
    facts = json.loads((done.output / "manifest.json").read_text())
    assert {series["attempts"] for series in facts["series"]} == {1}


def test_a_full_disk_in_a_worker_stops_the_run_and_the_next_one_goes_on(run, monkeypatch, tmp_path):
    command = [sys.executable, str(FAULTY), "full", "finish", "s2"]
    monkeypatch.setattr(workers_module, "COMMAND", command)
    with pytest.raises(DiskFull, match=r"No space left on device; [1-5] scans? (is|are) left"):
        run(workers=1)
    monkeypatch.undo()
    with Journal(tmp_path / "out") as journal:
        left = [unit for unit in journal.listed() if unit.state != "done"]
        assert "s2" in {unit.source for unit in left}
        assert {(unit.state, unit.attempts) for unit in left} == {("waiting", 0)}
    assert run(workers=1).exit_status == 0


def test_a_worker_that_dies_without_a_scan_again_and_again_ends_the_run(run, monkeypatch):
    command = [sys.executable, str(FAULTY), "SIGSEGV", "start", ""]
    monkeypatch.setattr(workers_module, "COMMAND", command)
    monkeypatch.setattr(workers_module, "_CRASHES_IN_A_ROW", 2)
    words = "ended by SIGSEGV, 2 times in a row with no scan in hand; the run goes on when"
    with pytest.raises(fastmed.errors.FastmedError, match=words):
        run(workers=1)


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


@pytest.fixture
def idle(tmp_path, monkeypatch):
    """Returns workers of which one does nothing, the process itself, and a journal with a scan in
    its hands."""
    program = "import sys; sys.stdin.read()"
    monkeypatch.setattr(workers_module, "COMMAND", [sys.executable, "-c", program])
    settings = RunSettings(
        bundle="", output=str(tmp_path), engine="torch", device="cpu", precision="fp32",
        strict=True, formats=("json",), attempts=2, memory_bytes=1, tune_malloc=False,
        asked_for=(),
    )  # fmt: skip
    with Journal(tmp_path) as journal, Workers(settings, None, 1, print, 50.0) as workers:
        scan = Planned("a", "a", "ok", "", (), {}, "results", "key", "stamp")
        journal.plan([scan], fresh=False, is_there=lambda unit: True)
        journal.claim("worker", "results", alone=True)
        (worker,) = workers._workers
        worker.owner = "worker"
        yield workers, worker, journal


@pytest.mark.parametrize(
    ("stage", "silent", "looked", "is_ended"),
    [
        *(("read", 51, 1, True), ("network", 51, 1, True), ("finish", 51, 1, True)),
        ("network", 49, 1, False),
        ("wait", 51, 1, False),  # for another scan, which may be slow
        ("network", 51, 40, False),  # the machine slept
    ],
)
def test_what_is_at_work_and_silent_for_too_long_is_ended(idle, stage, silent, looked, is_ended):
    workers, worker, journal = idle
    now, said = time.monotonic(), []
    worker.stages = {"a": (stage, now - silent)}
    workers._looked = now - looked
    workers._end_what_hangs(journal, said.append)
    assert (worker.process.poll() is not None) == is_ended
    assert [event["again"] for event in said] == [True] * is_ended
    assert journal.unit("a").state == ("waiting" if is_ended else "running")


@pytest.mark.parametrize(
    "event",
    [{"event": "tiles", "name": "a", "done": 1, "total": 2}, {"event": "say", "sentence": "slow"}],
    ids=["tiles", "a sentence"],
)
def test_tiles_and_sentences_are_signs_of_life(idle, event):
    workers, worker, _ = idle
    worker.stages = {"a": ("network", time.monotonic() - 51)}
    workers._follow(worker, event)
    stage, heard = worker.stages["a"]
    assert (stage, time.monotonic() - heard < 40) == ("network", True)


STAGES = ("finish", "network", "wait")


def test_of_several_scans_in_hand_at_a_crash_none_is_blamed_and_each_runs_alone(idle):
    workers, worker, journal = idle
    scans = [Planned(n, n, "ok", "", (), {}, "results", "key", "stamp") for n in ("a", "b", "c")]
    journal.plan(scans, fresh=False, is_there=lambda unit: True)
    for _ in range(2):
        journal.claim("worker", "results", alone=False)
    worker.stages = {n: (stage, 0.0) for n, stage in zip("abc", STAGES, strict=True)}
    worker.process.kill()
    assert workers._blame(worker, journal, print)
    units = {unit.name: unit for unit in journal.listed()}
    assert {unit.state for unit in units.values()} == {"waiting"}
    assert {name: unit.alone for name, unit in units.items()} == {"a": True, "b": True, "c": False}
    assert {unit.attempts for unit in units.values()} == {0}


def test_times_and_attempts_stand_in_journal_and_manifest_alone(run):
    done = run(workers=1)
    facts = json.loads((done.output / "manifest.json").read_text())
    assert all(series["seconds"]["network"] > 0 for series in facts["series"])
    with Journal(done.output) as journal:
        assert {unit.state for unit in journal.listed()} == {"done"}
        assert not journal.owners()
