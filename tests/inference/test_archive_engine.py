"""A run's engine stands in its folder from the start, and another run there keeps it."""

import json
import shutil

import pytest
import scans as make

import fastmed
from fastmed.errors import UsageError
from fastmed.inference import pipeline, run_model
from fastmed.inference.engines import kinds
from fastmed.inference.journal import Journal

pytest.importorskip("onnxruntime")


@pytest.fixture
def scan(tmp_path):
    make.series(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def run(tiny_bundle, tmp_path, scan):
    """Runs a copy of the tiny bundle into one folder; returns its manifest."""
    model = shutil.copytree(tiny_bundle, tmp_path / "bundle")

    def run(**options):
        options = {"model": model, "device": "cpu", "quiet": True} | options
        done = fastmed.infer(scan, tmp_path / "out", **options)
        return json.loads((done.output / "manifest.json").read_text())

    run.model = model
    return run


def test_auto_keeps_the_engine_of_the_run_before(run, tmp_path):
    assert run(engine="ort")["engine"] == "ort"
    again = run()
    assert again["engine"] == "ort"
    assert again["engine_choice"] == f"engine ort on cpu, as the run before in {tmp_path / 'out'}"
    assert run(engine="torch")["engine"] == "torch"
    assert run()["engine"] == "torch"


def test_another_model_or_precision_is_another_choice(run, tmp_path):
    run(engine="torch")
    text = (run.model / "bundle.toml").read_text()
    (run.model / "bundle.toml").write_text(text + "\n# changed")
    assert "as the run before" not in run()["engine_choice"]
    with Journal(tmp_path / "out") as journal:
        journal.set_fact("model", journal.fact("model") | {"precision": "bf16"})
    assert "as the run before" not in run()["engine_choice"]
    (tmp_path / "out" / "journal.sqlite").unlink()
    assert "as the run before" not in run()["engine_choice"]


def test_an_engine_that_a_certificate_has_refused_since_is_not_kept(run, monkeypatch):
    from fastmed.inference.certificate import Verdicts

    run(engine="ort")
    refused = Verdicts(refused={("ort", "fp32"): "labels differ"})
    monkeypatch.setattr(run_model, "verdicts", lambda *_: refused)
    assert "as the run before" not in run()["engine_choice"]


def test_an_engine_that_has_gone_since_is_an_error(run, tmp_path, monkeypatch):
    run(engine="ort")
    monkeypatch.setattr(kinds.Kind, "module", "")
    words = r"--engine ort: not installed .*; the run in .*out was begun with it: name an engine"
    with pytest.raises(UsageError, match=words):
        run()


def test_the_choice_is_there_before_the_first_scan(run, tmp_path, monkeypatch):
    seen = []

    def look(*_, **__):
        seen.append(json.loads((tmp_path / "out" / "manifest.json").read_text()))
        raise MemoryError("short")

    monkeypatch.setattr(pipeline, "read_series", look)
    last = run(engine="torch")
    first = seen[0]
    assert (first["engine"], first["finished"]) == ("torch", None)
    assert last["finished"]
    assert [row["verdict"] for row in last["series"]] == ["failed"]
