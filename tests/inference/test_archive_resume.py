"""A run goes on where it was stopped: nothing lost, nothing done twice, only what changed anew."""

import json
import os
import shutil
import time

import pytest
import scans as make

import fastmed
from fastmed.errors import FastmedError, UsageError
from fastmed.inference import pipeline
from fastmed.inference.journal import Journal
from fastmed.inference.journal_units import Planned
from fastmed.inference.outcome import NOT_ASKED_FOR
from fastmed.inference.owners import Owner
from fastmed.inference.recovery import recover, remove_temporary_files
from fastmed.inference.series_folder import SeriesFolder


@pytest.fixture
def scans(tmp_path):
    for number in range(3):
        make.series(tmp_path / "in" / f"s{number}", make.volume(seed=number))
    return tmp_path / "in"


@pytest.fixture
def run(tiny_bundle, scans, tmp_path, monkeypatch):
    """Runs the tiny bundle; `run.read` lists the scans that were read for it."""
    real = pipeline.read_series

    def run(output="out", input=scans, **options):
        run.read = []
        settings = {"model": tiny_bundle, "engine": "torch", "device": "cpu", "quiet": True}
        return fastmed.infer(input, tmp_path / output, **(settings | options))

    def reading(entry, **options):
        run.read.append(entry.source)
        return real(entry, **options)

    monkeypatch.setattr(pipeline, "read_series", reading)
    return run


def written(output):
    """Each result file with what tells whether it was written again."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (output / "series").rglob("*")
    }


def verdicts(done):
    return {row.source: row.verdict for row in done.rows}


ALL = {"s0": "done", "s1": "done", "s2": "done"}


def test_a_second_run_does_nothing_again_and_tells_the_same(run):
    first = run()
    before, table = written(first.output), (first.output / "findings.csv").read_bytes()
    again = run()
    assert (run.read, verdicts(again)) == ([], ALL)
    assert written(again.output) == before
    assert (again.output / "findings.csv").read_bytes() == table


def test_a_changed_scan_alone_is_done_again(run, scans):
    run()
    shutil.rmtree(scans / "s1")
    make.series(scans / "s1", make.volume(seed=1, intercept=-1000.0))
    assert verdicts(run()) == ALL
    assert run.read == ["s1"]


def test_a_file_that_was_only_touched_is_compared_and_not_done_again(run, scans):
    before = written(run().output)
    for path in (scans / "s1").iterdir():
        os.utime(path, (1e9, 1e9))
    after = run()
    assert (run.read, verdicts(after)) == ([], ALL)
    assert written(after.output) == before


def test_other_settings_do_it_all_again_and_tables_alone_do_not(run, scans):
    run(write=["nifti", "json", "csv"])
    done = run(write=["nifti", "json"])
    assert run.read == []
    assert sorted(p.name for p in (done.output / "series").iterdir()) == sorted(
        row.name for row in done.rows
    )
    run(write=["nifti", "json", "png"])
    assert sorted(run.read) == ["s0", "s1", "s2"]


def test_another_model_does_it_all_again(run, tiny_bundle, tmp_path):
    model = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    run(model=model)
    run(model=model)
    assert run.read == []
    with open(model / "bundle.toml", "a") as file:
        file.write("\n# changed")
    assert verdicts(run(model=model)) == ALL
    assert sorted(run.read) == ["s0", "s1", "s2"]


def test_lenient_does_only_what_strict_refused(run, scans):
    for path in make.series(scans / "gap", make.volume(seed=9))[4:6]:
        path.unlink()
    assert verdicts(run()) == ALL | {"gap": "refused"}
    assert verdicts(run(strict=False)) == ALL | {"gap": "done"}
    assert run.read == ["gap"]


def test_a_result_that_was_removed_or_changed_is_made_again(run):
    done = run()
    one, two, _ = sorted((done.output / "series").iterdir())
    shutil.rmtree(one)
    (two / "findings.json").write_text("{}")
    again = run()
    assert len(run.read) == 2
    assert json.loads((two / "findings.json").read_text())["series"] == two.name
    assert verdicts(again) == ALL


def test_fresh_keeps_each_result_until_the_new_one_is_there(run, monkeypatch):
    done = run()
    before = written(done.output)

    def fail(*_, **__):
        raise FastmedError("no more")

    monkeypatch.setattr(pipeline, "read_series", fail)
    assert set(verdicts(run(fresh=True)).values()) == {"failed"}
    assert written(done.output) == before


def test_a_failing_scan_is_tried_as_often_as_stated_then_set_aside(run, monkeypatch):
    real, tries = pipeline.read_series, []

    def fail(entry, **options):
        if entry.source == "s1":
            tries.append(entry.source)
            if len(tries) < times:
                raise OSError(5, "Input/output error")
        return real(entry, **options)

    monkeypatch.setattr(pipeline, "read_series", fail)
    times = 3
    assert verdicts(run(attempts=3)) == ALL
    assert len(tries) == 3
    tries, times = [], 9
    done = run("other", attempts=2)
    assert verdicts(done) == ALL | {"s1": "failed"}
    (row,) = [row for row in done.rows if row.verdict == "failed"]
    assert row.reason.endswith("(tried 2 times)")
    assert len(tries) == 2


def test_what_is_to_run_alone_runs_with_nothing_beside_it(run, monkeypatch, tmp_path):
    read, place, order = pipeline.read_series, SeriesFolder.put_in_place, []

    def reading(entry, **options):
        order.append(f"read {entry.source}")
        if entry.source == "s0" and order.count("read s0") == 1:
            raise MemoryError("no room beside others")
        if entry.source == "s0":  # another process dies, and its scan waits again
            with Journal(tmp_path / "out") as journal:
                journal._do("UPDATE units SET state = 'waiting', made_key = '' WHERE source = 's2'")
        return read(entry, **options)

    def placed(folder):
        place(folder)
        order.append("placed")

    monkeypatch.setattr(pipeline, "read_series", reading)
    monkeypatch.setattr(SeriesFolder, "put_in_place", placed)
    assert verdicts(run()) == ALL
    assert order[:2] == ["read s0", "read s1"]
    assert sorted(order[2:5]) == ["placed", "placed", "read s2"]
    assert order[5:] == ["read s0", "placed", "read s2", "placed"]


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(run, monkeypatch):
    from fastmed.inference import series_folder

    real, calls = series_folder.write_labels, []

    def full(*arguments):
        calls.append(0)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(series_folder, "write_labels", full)
    with pytest.raises(FastmedError, match=r"2 scans are left, with which the same command goes"):
        run()
    done = run()
    assert len(run.read) == 2
    assert verdicts(done) == ALL
    with Journal(done.output) as journal:
        assert {unit.attempts for unit in journal.listed()} == {0}


def test_shares_are_disjoint_and_together_all(run):
    whole = run("whole")
    shares = [run(f"part{k}", part=f"{k}/3") for k in (1, 2, 3)]
    names = [row.name for share in shares for row in share.rows]
    assert sorted(names) == sorted(row.name for row in whole.rows)
    for share in shares:
        for row in share.rows:
            for path in (share.output / "series" / row.name).iterdir():
                same = whole.output / "series" / row.name / path.name
                assert path.read_bytes() == same.read_bytes()


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "1/0", "a/b", "-1/2"])
def test_a_share_that_is_none_is_a_wrong_usage(run, part):
    with pytest.raises(UsageError, match=f"--part {part}: expected i/n"):
        run(part=part)


def test_what_the_dead_had_in_hand_is_taken_over(run, tmp_path):
    done = run()
    with Journal(done.output) as journal:
        names = [unit.name for unit in journal.listed()]
        journal._do("UPDATE units SET claimed_key = key, claimed_stamp = stamp")
        journal._set(names[0], state="running", owner="0123456789ab")
        journal._set(names[1], state="written", owner="0123456789ab")
        journal._set(names[2], state="written", owner="0123456789ab")
    series = done.output / "series"
    os.rename(series / names[1], series / f".{names[1]}.0123456789ab.partial")
    os.rename(series / names[0], series / f".{names[0]}.0123456789ab.partial")
    (series / names[2] / "findings.json").unlink()
    assert verdicts(run()) == ALL
    assert sorted(run.read) == ["s0", "s2"]
    assert sorted(p.name for p in series.iterdir()) == sorted(names)


@pytest.mark.parametrize("place", [".{}.0123456789ab.partial", "{}"], ids=["beside", "in place"])
def test_a_result_of_the_dead_whose_bytes_changed_is_made_again(run, place):
    done = run()
    name = done.rows[0].name
    with Journal(done.output) as journal:
        journal._set(name, state="written", owner="0123456789ab", made_key="")
        journal._do("UPDATE units SET claimed_key = key, claimed_stamp = stamp")
    series = done.output / "series"
    os.rename(series / name, series / place.format(name))
    labels = series / place.format(name) / "labels.nii.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # as where a disk lost what it had
    assert verdicts(run()) == ALL
    assert run.read == ["s0"]
    assert (series / name / "labels.nii.gz").read_bytes() == whole


def test_what_the_living_are_writing_stays(tmp_path):
    with Journal(tmp_path) as journal, Owner(tmp_path) as me, Owner(tmp_path) as other:
        for unit in ("1.2", "3.4"):
            journal.plan([Planned(unit, unit, "ok", "", (), {}, "r", "k", "s")],
                         fresh=False, is_there=lambda _: True)  # fmt: skip
        left = [f".1.2.{other.token}.partial", f".1.2.{other.token}.old"]
        for name in left:
            (tmp_path / "series" / name).mkdir(parents=True)
        (tmp_path / ".findings.csv.0123456789ab.tmp").write_text("half")
        taken = journal.claim(other.token, "r", alone=False)
        recover(journal)
        remove_temporary_files(journal, me.token)
        assert journal.unit(taken.name).owner == other.token
        assert sorted(path.name for path in (tmp_path / "series").iterdir()) == sorted(left)
        assert (tmp_path / ".findings.csv.0123456789ab.tmp").exists()


def test_what_the_living_have_in_hand_is_left_to_them(run):
    done = run()
    words = pytest.raises(UsageError, match="another process is at work there")
    with Owner(done.output, "asked for something else"), words:
        run(engine="ort")
    assert verdicts(run()) == ALL


def test_a_journal_that_is_damaged_is_a_clear_error(run):
    done = run()
    (done.output / "journal.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(FastmedError, match=r"journal.sqlite: damaged .*remove it"):
        run()
    (done.output / "journal.sqlite").unlink()
    assert verdicts(run()) == ALL


def test_a_scan_that_changes_while_another_was_asked_for_is_noticed_later(run, scans):
    done = run()
    (name,) = [row.name for row in done.rows if row.source == "s0"]
    path = scans / "s1" / "0003.dcm"
    path.write_bytes(path.read_bytes()[:-2] + b"ab")
    run(series=[name])
    assert run.read == []
    run()
    assert run.read == ["s1"]


def test_a_scan_that_changes_while_it_is_in_hand_is_done_again(run, scans, tmp_path):
    done = run()
    with Journal(done.output) as journal:
        (unit, *_) = journal.listed()
        journal._set(unit.name, state="waiting")
        owner = "0123456789ab"
        claimed = journal.claim(owner, run_results(journal), alone=False)
        journal._set(unit.name, stamp="another")  # as a plan meanwhile does
        assert journal.done(claimed.name, owner)
        assert journal.unit(unit.name).state == "waiting"
        assert not journal.done(claimed.name, owner)  # it is nobody's any more


def run_results(journal):
    return journal._one("SELECT results FROM units")[0]


def test_tables_alone_after_a_whole_run_do_nothing_again(run):
    done = run()
    before = written(done.output)
    run(write=["csv"])
    assert run.read == ["s0", "s1", "s2"]
    run(write=["csv"])
    assert run.read == []
    assert written(done.output) == before


def test_an_owner_whose_file_was_removed_before_its_lock_takes_another(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from fastmed.inference import owners

    def probe(_):
        for token in owners.tokens_of(tmp_path):
            owners.is_alive(tmp_path, token)

    with ThreadPoolExecutor(2) as pool:
        probing = [pool.submit(lambda: [probe(None) for _ in range(2000)]) for _ in range(2)]
        while not all(future.done() for future in probing):
            with Owner(tmp_path, "note") as owner:
                assert owners.living(tmp_path) == {owner.token: "note"}


def test_an_owner_lives_as_long_as_its_process(tmp_path):
    from fastmed.inference.owners import is_alive

    with Owner(tmp_path) as owner:
        assert is_alive(tmp_path, owner.token)
    assert not is_alive(tmp_path, owner.token)
    assert not list(tmp_path.iterdir())


def test_the_time_of_a_result_stands_in_the_journal(run):
    before = time.time()
    done = run()
    with Journal(done.output) as journal:
        times = journal._column("SELECT finished FROM units")
    assert all(before <= at <= time.time() for at in times)


def test_only_what_a_run_was_asked_for_counts_for_its_status(run, scans):
    first = run()
    names = {row.source: row.name for row in first.rows}
    (scans / "s0" / "0004.dcm").unlink()  # refused, when it is asked for
    make.edit_all(sorted((scans / "s1").iterdir()), StudyDescription="another")
    assert run(series=[names["s2"]]).exit_status == 0
    everything = run()
    assert verdicts(everything) == {"s0": "refused", "s1": "done", "s2": "done"}
    assert everything.exit_status == 1
    done = run(series=[names["s2"]])
    assert (done.exit_status, done.rows[0].verdict) == (0, "refused")


def test_what_was_left_waiting_and_is_not_asked_for_is_skipped(run, monkeypatch):
    names = {row.source: row.name for row in run().rows}

    def stopped(entry, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "read_series", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(fresh=True)
    done = run(series=[names["s1"]])
    assert verdicts(done) == {"s0": "skipped", "s1": "done", "s2": "skipped"}
    assert {row.reason for row in done.rows if row.verdict == "skipped"} == {NOT_ASKED_FOR}
    assert done.exit_status == 0
    counted = (done.output / "manifest.json").read_text().count(NOT_ASKED_FOR)
    assert counted == 2
