"""The demonstration ends well when each flawed scan is named and every sound one is done."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import scans as make


@pytest.fixture
def demo(phantom_archive, tiny_bundle, tmp_path, monkeypatch):
    """Returns a function that runs tools/demo.py on small phantoms with a small model."""
    path = Path(__file__).parent.parent / "tools" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def copied(kind, output, **options):
        assert kind == "archive"
        shutil.copytree(phantom_archive[0].parent, output)
        return [output / "scans", output / "truth"]

    monkeypatch.setattr(module, "write_phantoms", copied)
    monkeypatch.setattr("fastmed.bundle.demo_path", lambda: tiny_bundle)

    def run(*words):
        command = ["demo.py", "--output", str(tmp_path / "demo-out"), *map(str, words)]
        monkeypatch.setattr("sys.argv", command)
        return module.main()

    run.module = module
    return run


def test_the_demonstration_on_phantoms_ends_well(demo, tmp_path, capsys):
    left_by_an_earlier_one = tmp_path / "demo-out" / "phantoms" / "scans"
    left_by_an_earlier_one.mkdir(parents=True)
    assert demo() == 0
    results = tmp_path / "demo-out" / "results-of-phantoms"
    assert str(results / "report.html") in capsys.readouterr().out
    assert (results / "report.html").is_file()
    assert len(list((results / "series").iterdir())) == 3


def test_the_demonstration_says_which_verdict_surprised(demo, monkeypatch, capsys):
    monkeypatch.setitem(demo.module.EXPECTED, "tilted", "refused")
    assert demo() == 1
    assert "demo: tilted was not expected to be done" in capsys.readouterr().err


def test_the_demonstration_on_scans_takes_refusals_and_names_failures(demo, tmp_path, capsys):
    make.series(tmp_path / "in" / "good", make.volume(seed=1))
    for path in make.series(tmp_path / "in" / "gap", make.volume(seed=2))[3:5]:
        path.unlink()
    assert demo("--scans", tmp_path / "in") == 0
    make.truncate(make.series(tmp_path / "in" / "short", make.volume(seed=3))[3], lose_bytes=50)
    assert demo("--scans", tmp_path / "in") == 1
    assert "demo: short was not expected to be failed" in capsys.readouterr().err


def test_the_demonstration_without_a_scan_done_is_no_success(demo, tmp_path, capsys):
    for path in make.series(tmp_path / "in" / "gap", make.volume(seed=2))[3:5]:
        path.unlink()
    assert demo("--scans", tmp_path / "in") == 1
    assert "demo: no scan was done" in capsys.readouterr().err
