"""An archive run put to the proof: every verdict is the true one, and kills change nothing.

The short form of tools/archive_trial.py, and tests that its comparisons find what is wrong.
"""

import json
import os
from dataclasses import replace

import pytest

import fastmed
from fastmed.phantom_archive import WAYS, Expected, read_truth, write_archive
from fastmed.readers.index import index
from fastmed.readers.series import Series
from fastmed.testing import archive_trial as trial

KILLS = 6


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Every way of the phantom archive once, in tiny scans."""
    folder = tmp_path_factory.mktemp("archive") / "made"
    write_archive(folder, len(WAYS), 1, "tiny")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return trial.tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_an_index_names_each_thing_for_what_it_is(archive, strict):
    truth = read_truth(archive / "truth.csv")
    entries = index(archive / "scans", strict=strict)
    assert [str(one) for one in trial.compare_index(truth, entries, strict=strict)] == []


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_a_run_does_or_names_each_thing(archive, tiny, tmp_path, strict):
    run = fastmed.infer(
        archive / "scans", tmp_path / "out", model=tiny, engine="torch", device="cpu",
        write=["nifti", "json", "csv"], strict=strict, quiet=True,
    )  # fmt: skip
    assert run.exit_status == 1
    series = json.loads((tmp_path / "out" / "manifest.json").read_bytes())["series"]
    truth = read_truth(archive / "truth.csv")
    assert [str(one) for one in trial.compare_manifest(truth, series, strict=strict)] == []


def _infer(scans, bundle):
    def arguments(output):
        where = ["--input", scans, "--output", output, "--model", bundle]
        return ["infer", *where, "--engine", "torch", "--device", "cpu", "--quiet"]

    return arguments


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A dozen scans, two of them damaged, and a text."""
    ways = ["uniform", "tilted", "jpeg 2000 lossless", "missing slices", "truncated", "text"]
    return write_archive(tmp_path_factory.mktemp("few") / "made", 18, 2, "tiny", ways=ways)[0]


def test_a_run_killed_again_and_again_ends_as_one_left_in_peace(few, tiny, tmp_path):
    found = trial.kill_trial(_infer(few, tiny), tmp_path, kills=KILLS, seed=1)
    assert found.is_clean, found
    assert (found.kills, found.finishes >= 1) == (KILLS, True)


@pytest.fixture(scope="module")
def whole(few, tiny, tmp_path_factory):
    """The results of one run over the few scans."""
    output = tmp_path_factory.mktemp("whole") / "out"
    trial.run(_infer(few, tiny)(output), output)
    return output


def test_parts_are_disjoint_and_together_the_whole(few, tiny, whole, tmp_path):
    found = trial.union_trial(_infer(few, tiny), tmp_path, whole, parts=2)
    assert not found.wrong, found
    assert sum(found.shares) == 9


def test_two_runs_on_one_folder_share_the_work(few, tiny, whole, tmp_path):
    found = trial.together_trial(_infer(few, tiny), tmp_path, whole, runs=2)
    assert not found.wrong, found
    assert found.shares == (9,)


TRUTH = [
    Expected("sound", "a", "ct", "uniform", "ok", "ok"),
    Expected("mixed", "b", "ct", "mixed shapes", "refused", "ok", volumes=2),
    Expected("garbled", "c", "ct", "damaged", "failed", "failed", shows="voxels"),
    Expected("zip", "d.zip", "ct", "uniform", "ok", "ok"),
    Expected("text", "e/notes.txt", "not an image", "not dicom", "skipped", "skipped"),
]


def _entry(source, kind, verdict, *conditions, files=1):
    return Series("1", source, kind, verdict, "why", conditions=conditions, files=files)


ENTRIES = {
    "sound": _entry("a", "ct", "ok", "uniform"),
    "mixed": _entry("b", "ct", "refused", "mixed shapes"),
    "garbled": _entry("c", "ct", "ok", "uniform"),
    "zip": _entry("d.zip/export", "ct", "ok", "uniform"),
    "text": _entry("e/notes.txt", "not an image", "skipped", "not dicom"),
}
WRONG_ENTRIES = {
    "sound": [_entry("a", "ct", "refused", "uneven"), _entry("a", "ct", "ok", "tilted"), None],
    "mixed": [_entry("b", "ct", "ok", "mixed shapes"), _entry("b", "ct", "refused"), None],
    "garbled": [_entry("c", "ct", "skipped"), None],
    "zip": [_entry("d.zip/export", "ct", "failed", "damaged"), None],
    "text": [_entry("other files", "not an image", "skipped", "not dicom", files=2), None],
}


def test_an_index_that_is_right_agrees_with_the_truth():
    assert not trial.compare_index(TRUTH, ENTRIES.values(), strict=True)


@pytest.mark.parametrize(
    ("way", "wrong"), [(way, wrong) for way, wrongs in WRONG_ENTRIES.items() for wrong in wrongs]
)
def test_an_index_that_is_wrong_in_one_thing_is_found_out(way, wrong):
    entries = [entry for entry in (ENTRIES | {way: wrong}).values() if entry is not None]
    assert len(trial.compare_index(TRUTH, entries, strict=True)) == 1
    assert trial.compare_index(TRUTH, [*ENTRIES.values(), ENTRIES["sound"]], strict=True)


def _series(source, verdict, reason="why"):
    return {"source": source, "verdict": verdict, "reason": reason}


RUN = {
    "sound": [_series("a", "done", "")],
    "mixed": [_series("b", "done", ""), _series("b", "done", "")],
    "garbled": [_series("c", "failed")],
    "zip": [_series("d.zip/export", "done", "")],
    "text": [_series("e/notes.txt", "skipped", "1 file that is no scan: e/notes.txt")],
}
WRONG_RUNS = {
    "sound": [[], [_series("a", "failed")], [_series("a", "done"), _series("a", "done")]],
    "mixed": [[_series("b", "done")], [_series("b", "done"), _series("b", "refused")]],
    "garbled": [[_series("c", "done")], [_series("c", "failed", "")]],
    "zip": [[]],
    "text": [[], [_series("other files", "skipped", "2 files that are no scan: e, f")]],
}


def test_a_run_that_is_right_agrees_with_the_truth():
    rows = [series for part in RUN.values() for series in part]
    assert not trial.compare_manifest(TRUTH, rows, strict=False)


@pytest.mark.parametrize(
    ("way", "wrong"), [(way, wrong) for way, wrongs in WRONG_RUNS.items() for wrong in wrongs]
)
def test_a_run_that_is_wrong_in_one_thing_is_found_out(way, wrong):
    rows = [series for part in (RUN | {way: wrong}).values() for series in part]
    (difference,) = trial.compare_manifest(TRUTH, rows, strict=False)
    assert difference.way == ("not an image" if way == "text" else way)
    assert way in trial.table(TRUTH, {"run": [difference]})


@pytest.fixture
def output(tmp_path):
    for name in ("1", "2"):
        folder = tmp_path / "series" / name
        folder.mkdir(parents=True)
        (folder / "labels.nii.gz").write_bytes(name.encode())
    (tmp_path / "findings.csv").write_text("a,b\n")
    return tmp_path


def test_results_differ_where_a_byte_does(output):
    before = trial.digests(output)
    assert sorted(before) == ["findings.csv", "series/1/labels.nii.gz", "series/2/labels.nii.gz"]
    (output / "series" / "1" / "labels.nii.gz").write_bytes(b"3")
    (output / "series" / "2" / "labels.nii.gz").unlink()
    (output / "series" / "2" / "more.json").write_bytes(b"")
    assert trial.differences(before, before) == []
    assert trial.differences(before, trial.digests(output)) == [
        "series/2/labels.nii.gz: absent",
        "series/2/more.json: not expected",
        "series/1/labels.nii.gz: other bytes",
    ]


def test_a_result_that_is_written_again_is_seen_though_its_bytes_are_the_same(output):
    before = trial.stamps(output)
    assert trial.stamps(output) == before
    path = output / "series" / "2" / "labels.nii.gz"
    again = path.with_name("again")
    again.write_bytes(path.read_bytes())
    os.replace(again, path)
    after = trial.stamps(output)
    assert [name for name in before if before[name] != after[name]] == ["2"]


@pytest.mark.parametrize("name", [".x.tmp", "series/.1.partial", "series/.1.old"])
def test_what_a_killed_run_left_is_named(output, name):
    assert trial.left_behind(output) == []
    (output / name).mkdir()
    assert trial.left_behind(output) == [name]


def test_a_run_that_did_not_go_to_its_end_is_an_error_that_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="absent: no such file or folder"):
        trial.run(["index", tmp_path / "absent"], tmp_path / "out")


def test_what_each_further_series_takes_leaves_the_start_out():
    less = trial.Measured(10, 15.0, 10.0, 900.0, 800.0, 7000, 300)
    more = replace(less, series=100, seconds=105.0, calls=25_000, opened=1200)
    further = {"seconds": 1.0, "calls": 200.0, "opened": 10.0}
    assert trial.per_series(less, more) == further
    assert trial.per_series(replace(less, calls=None), more)["calls"] is None


def test_the_tiles_of_a_run_are_those_of_its_scans_that_are_done(tmp_path):
    done = [{"event": "scan done", "source": f"case-{n}", "tiles": n} for n in (2, 3)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in [{"event": "run started"}, *done]))
    assert trial.tiles_in(log) == {"case-2": 2, "case-3": 3}
