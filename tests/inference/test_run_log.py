"""A run's log is one JSON object to the line, says what it may say, and never stops the run."""

import io
import json
import threading
from datetime import datetime

import numpy as np
import pytest
import scans as make

import fastmed
from fastmed.errors import UsageError
from fastmed.inference import pipeline
from fastmed.inference.run_log import EVENTS, RunLog


def _lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_event_is_a_line_with_a_time_and_its_facts(tmp_path):
    path = tmp_path / "new" / "run.jsonl"
    with RunLog(path) as log:
        log.event("run started", output="out", scans=2)
        log.event("scan done", series="1.2.3", seconds=np.float32(1.5), stage_seconds={"read": 0.1})
        assert len(_lines(path)) == 2  # on disk before the run goes on
    first, second = _lines(path)
    assert (first["event"], first["output"], first["scans"]) == ("run started", "out", 2)
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0
    assert second["stage_seconds"] == {"read": 0.1}
    assert second["seconds"] == 1.5


def test_a_second_run_appends(tmp_path):
    for _ in range(2):
        with RunLog(tmp_path / "log") as log:
            log.event("run finished", done=1, status=0)
    assert len(_lines(tmp_path / "log")) == 2


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a\nb\r\0\x1b[31m", "a\nb\r\0\x1b[31m"),
        ("\u2028\u202e", "\u2028\u202e"),
        ("\udcff", "\udcff"),
        ("x" * 5000, "x" * 1000 + "…"),
    ],
)
def test_a_text_stays_within_its_line(text, read, tmp_path):
    with RunLog(tmp_path / "log") as log:
        log.event("scan failed", series="1", reason=text)
    raw = (tmp_path / "log").read_bytes()
    assert raw.count(b"\n") == 1
    assert raw.endswith(b"\n")
    assert raw.isascii()
    assert json.loads(raw)["reason"] == read


def test_figures_that_json_has_not_are_null(tmp_path):
    with RunLog(tmp_path / "log") as log:
        log.event("scan done", series="1", seconds=float("nan"), stage_seconds={"read": np.inf})
    assert _lines(tmp_path / "log")[0]["stage_seconds"] == {"read": None}


def test_what_nobody_looked_at_is_not_logged():
    for log in (RunLog(None), RunLog(io.StringIO())):
        with pytest.raises(ValueError, match="scan done: patient"):
            log.event("scan done", series="1", patient="Doe")
        with pytest.raises(ValueError, match="event greeting"):
            log.event("greeting")
    assert not {fact for facts in EVENTS.values() for fact in facts} & {"patient", "name", "text"}


class _FullDisk(io.StringIO):
    def __init__(self, room):
        super().__init__()
        self.room = room

    def write(self, text):
        if self.room == 0:
            raise OSError(28, "No space left on device")
        self.room -= 1
        return super().write(text)


def test_a_full_disk_is_said_once_and_stops_nothing(capsys):
    stream = _FullDisk(room=1)
    log = RunLog(stream)
    for _ in range(4):
        log.event("scan started", series="1")
    assert stream.getvalue().count("\n") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device; the run goes on" in said


def test_a_full_device_stops_nothing(capsys):
    try:
        log = RunLog("/dev/full")
    except UsageError:
        pytest.skip("no /dev/full here")
    log.event("scan started", series="1")
    log.event("scan started", series="1")
    log.close()
    assert capsys.readouterr().err.count("the run goes on") == 1


def test_a_closed_stream_stops_nothing(capsys):
    stream = io.StringIO()
    log = RunLog(stream)
    stream.close()
    log.event("scan started", series="1")
    assert "the run goes on" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "log", f"{tmp_path}/{'x' * 300}"):
        with pytest.raises(UsageError) as raised:
            RunLog(path)
        assert str(raised.value).startswith(f"--log {path}: cannot be opened, ")


def test_threads_never_mix_their_lines(tmp_path):
    with RunLog(tmp_path / "log") as log:
        work = [
            threading.Thread(
                target=lambda k=k: [
                    log.event("scan done", series=str(k), source="x" * 900) for _ in range(50)
                ]
            )
            for k in range(8)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
    assert len(_lines(tmp_path / "log")) == 400


def test_a_stream_of_others_stays_open():
    stream = io.StringIO()
    with RunLog(stream) as log:
        log.event("scan started", series="1")
    assert not stream.closed
    log.event("scan started", series="2")
    assert stream.getvalue().count("\n") == 1


def test_a_run_says_of_each_scan_what_became_of_it(tiny_bundle, tmp_path, monkeypatch):
    real, tries = pipeline.read_series, []

    def read(entry, **options):
        tries.append(entry.source)
        if entry.source == "never" or (entry.source == "later" and tries.count("later") == 1):
            raise OSError(5, "Input/output error")
        return real(entry, **options)

    monkeypatch.setattr(pipeline, "read_series", read)
    for seed, name in enumerate(("at once", "gap", "later", "never")):
        make.series(tmp_path / "in" / name, make.volume(seed=seed))
    for path in (tmp_path / "in" / "gap").glob("000[45]*"):
        path.unlink()
    (tmp_path / "in" / "notes.txt").write_text("a note")
    settings = {"model": tiny_bundle, "engine": "torch", "device": "cpu", "quiet": True}
    log = tmp_path / "run.jsonl"
    fastmed.infer(tmp_path / "in", tmp_path / "out", attempts=2, log=log, **settings)
    said = {}
    for line in _lines(log):
        said.setdefault(line.get("source"), []).append((line["event"], line.get("attempt")))
    assert said == {
        None: [("run started", None), ("run finished", None)],
        "at once": [("scan started", 1), ("scan done", 1)],
        "later": [("scan started", 1), ("scan retried", 1), ("scan started", 2), ("scan done", 2)],
        "never": [
            *(("scan started", 1), ("scan retried", 1)),
            *(("scan started", 2), ("scan set aside", 2)),
        ],
        "gap": [("scan refused", None)],
        "notes.txt": [("scan skipped", None)],
    }
    last = _lines(log)[-1]
    counts = {name: last[name] for name in ("done", "failed", "refused", "skipped", "status")}
    assert counts == {"done": 2, "failed": 1, "refused": 1, "skipped": 1, "status": "finished"}
