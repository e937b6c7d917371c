"""A kept index yields what a fresh one would, and reads only what has changed."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scans as make
from test_series_record import odd_archive

from fastmed.errors import FastmedError
from fastmed.readers import index_store
from fastmed.readers.index import index, iter_index, read_series
from fastmed.readers.index_store import open_store
from fastmed.readers.series_json import series_dict


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FASTMED_CACHE", str(folder))
    return folder


def dicts(entries):
    return [series_dict(entry) for entry in entries]


def kept(path, **options):
    """Entries of a kept index, and (read, unchanged, gone)."""
    with open_store(path, modality=options.get("modality", "ct")) as store:
        entries = list(iter_index(path, store=store, **options))
        counts = store.counts
        return entries, (counts.read, counts.unchanged, counts.gone)


def archive(folder):
    """Something of everything: alike names in two places, others, damaged, split in lenient."""
    odd_archive(folder)
    odd_archive(folder / "again")
    for name in ("b__c", "b"):
        (folder / name).mkdir()
    for path in ("b/c.nii.gz", "b__c.nii.gz", "B__C.nii.gz"):
        (folder / path).write_bytes((folder / "plain.nii.gz").read_bytes())
    for k in range(6):
        (folder / f"{k}.txt").write_text("x")
    np.save(folder / "names.npy", np.array(["a", "b"]))
    make.series(folder / "no uid", make.volume(seed=9))
    make.edit_all((folder / "no uid").iterdir(), SeriesInstanceUID=None)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("modality", ["ct", "grey"])
def test_streaming_yields_the_entries_of_an_index_in_their_order(tmp_path, strict, modality):
    archive(tmp_path)
    options = {"strict": strict, "modality": modality}
    expected = dicts(index(tmp_path, **options))
    assert len(expected) > 1
    assert dicts(iter_index(tmp_path, **options)) == expected
    assert dicts(kept(tmp_path, **options)[0]) == expected
    assert dicts(kept(tmp_path, **options)[0]) == expected


def test_roots_that_hold_alike_files_stream_as_they_index(tmp_path):
    odd_archive(tmp_path / "a")
    odd_archive(tmp_path / "b")
    paths = [tmp_path / "b", tmp_path / "a", tmp_path / "a" / "plain.nii.gz"]
    assert dicts(iter_index(paths)) == dicts(index(paths))


def test_what_is_unchanged_is_neither_read_nor_judged_again(tmp_path, monkeypatch):
    archive(tmp_path)
    first, (read, unchanged, gone) = kept(tmp_path)
    assert (unchanged, gone) == (0, 0)
    broken_links = 2
    monkeypatch.setattr("fastmed.readers.dicom_header._header", None)
    monkeypatch.setattr("fastmed.readers.dicom.judge_group", None)
    monkeypatch.setattr("fastmed.readers.nifti.nifti_entry", None)
    again, counts = kept(tmp_path)
    assert dicts(again) == dicts(first)
    assert counts == (broken_links, read - broken_links, 0)


def test_lenient_after_strict_reads_no_file_again_and_keeps_verdicts_apart(tmp_path):
    archive(tmp_path)
    strict, _ = kept(tmp_path)
    lenient, (read, *_) = kept(tmp_path, strict=False)
    assert read == 2  # the broken links
    assert dicts(lenient) == dicts(index(tmp_path, strict=False)) != dicts(strict)
    assert dicts(kept(tmp_path)[0]) == dicts(strict)


def _grow(folder):
    make.series(folder / "new", make.volume(seed=77))


def _touch(folder):
    path = folder / "tilted" / "0003.dcm"
    os.utime(path, ns=(1, 1))


def _move_to_another_series(folder):
    files = sorted((folder / "tilted").iterdir())
    make.edit(files[4], SeriesInstanceUID="1.2.3.4")


def _swap(folder):
    """Another file of the same size and time under the same name."""
    path = folder / "tilted" / "0003.dcm"
    before, content = path.stat(), path.read_bytes()
    other = folder / "tilted" / "other"
    other.write_bytes(content.replace(b"ORIGINAL", b"DERIVED "))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)


CHANGES = {
    "a series was added": (_grow, (9, 0)),
    "a file was touched": (_touch, (1, 0)),
    "a file was swapped": (_swap, (1, 0)),
    "a slice moved to another series": (_move_to_another_series, (1, 0)),
    "a slice is gone": (lambda folder: (folder / "tilted" / "0005.dcm").unlink(), (0, 1)),
    "a folder is gone": (lambda folder: subprocess.run(["rm", "-r", folder / "mixed"]), (0, 9)),
    "a folder has another name": (lambda folder: (folder / "mixed").rename(folder / "m"), (9, 9)),
    "a file became another": (lambda folder: (folder / "plain.nii.gz").write_bytes(b"x"), (1, 0)),
    "an other file is gone": (lambda folder: (folder / "notes.txt").unlink(), (0, 1)),
    "a file became a folder": (
        lambda folder: ((folder / "notes.txt").unlink(), (folder / "notes.txt").mkdir()),
        (0, 1),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("strict", [True, False])
def test_only_what_changed_is_read_and_the_entries_are_those_of_a_fresh_index(
    tmp_path, change, strict
):
    archive(tmp_path)
    kept(tmp_path, strict=True)
    kept(tmp_path, strict=False)
    act, (read, gone) = CHANGES[change]
    act(tmp_path)
    entries, counts = kept(tmp_path, strict=strict)
    assert dicts(entries) == dicts(index(tmp_path, strict=strict))
    images_in_changed_folder = 2 + 2 + 3  # volumes whose text may stand in a file beside them
    assert gone == counts[2]
    assert read <= counts[0] - 2 <= read + images_in_changed_folder


def test_an_array_is_judged_again_when_the_file_beside_it_changes(tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 4, 5), -900, np.int16))
    for spacing in ([3, 2, 1], [4, 2, 1]):
        (tmp_path / "a.json").write_text(json.dumps({"spacing_mm_zyx": spacing}))
        (entry,) = [entry for entry in kept(tmp_path)[0] if entry.verdict == "ok"]
        assert entry.spacing_mm_zyx == tuple(spacing)


def test_entries_of_a_kept_index_are_read_as_fresh_ones(tmp_path):
    archive(tmp_path)
    fresh = {entry.name: entry for entry in index(tmp_path) if entry.verdict == "ok"}
    kept(tmp_path)
    for entry in kept(tmp_path)[0]:
        if entry.verdict == "ok":
            volume, expected = read_series(entry), read_series(fresh.pop(entry.name))
            np.testing.assert_array_equal(volume.voxels, expected.voxels)
    assert not fresh


def test_the_store_is_for_its_owner_alone(tmp_path, cache):
    make.series(tmp_path)
    kept(tmp_path)
    assert list(cache.iterdir())
    for path in cache.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_store_holds_no_text_of_a_patient(tmp_path, cache):
    for file in make.series(tmp_path, patient="DOE^JANE"):
        make.edit(file, PatientBirthDate="19700102", StudyDescription="JANE", PatientID="JANE")
    kept(tmp_path)
    for path in cache.iterdir():
        assert b"JANE" not in path.read_bytes()
        assert b"19700102" not in path.read_bytes()


def test_a_damaged_store_is_made_anew(tmp_path, cache):
    make.series(tmp_path)
    expected = dicts(kept(tmp_path)[0])
    (path,) = cache.glob("*.sqlite")
    for content in (b"hello" * 1000, path.read_bytes()[:5000], b""):
        for old in cache.glob("*.sqlite*"):
            old.unlink()
        path.write_bytes(content)
        entries, counts = kept(tmp_path)
        assert (dicts(entries), counts) == (expected, (9, 0, 0))
        assert kept(tmp_path)[1] == (0, 9, 0)


def test_other_rules_make_nothing_kept_hold(tmp_path, monkeypatch):
    make.series(tmp_path)
    kept(tmp_path)
    monkeypatch.setattr(index_store, "rules", lambda: "others")
    assert kept(tmp_path)[1] == (9, 0, 0)


def test_fresh_forgets_what_was_kept(tmp_path):
    make.series(tmp_path)
    kept(tmp_path)
    with open_store(tmp_path, fresh=True) as store:
        list(iter_index(tmp_path, store=store))
        assert (store.counts.read, store.counts.unchanged) == (9, 0)
    assert kept(tmp_path)[1] == (0, 9, 0)


def test_where_the_cache_cannot_be_written_nothing_is_kept_and_all_is_found(tmp_path, monkeypatch):
    make.series(tmp_path / "scan")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "file" / "below"))
    for _ in range(2):
        entries, counts = kept(tmp_path / "scan")
        assert ([entry.verdict for entry in entries], counts) == (["ok"], (9, 0, 0))


def test_a_second_index_at_the_same_time_reads_a_copy_and_spoils_nothing(tmp_path):
    archive(tmp_path)
    expected, _ = kept(tmp_path)
    with open_store(tmp_path) as first:
        slow = iter_index(tmp_path, store=first)
        begun = [next(slow)]
        with open_store(tmp_path) as second:
            assert (first.kept, second.kept) == (True, False)
            assert dicts(iter_index(tmp_path, store=second)) == dicts(expected)
            assert second.counts.read == 2  # the broken links
        assert dicts([*begun, *slow]) == dicts(expected)


def test_stores_that_nobody_used_for_long_are_removed(tmp_path, cache):
    make.series(tmp_path / "a")
    kept(tmp_path / "a")
    (old,) = cache.glob("*.sqlite")
    os.utime(old, (0, 0))
    kept(tmp_path)
    assert not old.exists()


def test_a_change_that_is_undone_while_no_index_ended_loses_nothing(tmp_path, monkeypatch):
    files = make.series(tmp_path)
    expected, _ = kept(tmp_path)
    before = files[0].stat()
    os.utime(files[0], ns=(1, 1))
    monkeypatch.setattr("fastmed.readers.index_stream._Stream._forget_the_gone", None)
    with pytest.raises(TypeError):
        kept(tmp_path)
    monkeypatch.undo()
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert dicts(kept(tmp_path)[0]) == dicts(expected)


KILLED = """
import sys
from fastmed.readers import index_stream
from fastmed.readers.index import iter_index
from fastmed.readers.index_store import open_store
index_stream._PENDING, index_stream._GROUPS = 8, 2
with open_store(sys.argv[1]) as store:
    print("begun", flush=True)
    list(iter_index(sys.argv[1], store=store))
"""


def test_an_index_killed_at_any_moment_goes_on_where_it_was(tmp_path, cache):
    for k in range(12):
        make.series(tmp_path / f"s{k}", make.volume(seed=k))
    archive(tmp_path / "odd")
    expected = dicts(index(tmp_path))
    reads = []
    for k in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.01 + 0.02 * k)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if k % 4 == 3:
            entries, counts = kept(tmp_path)
            assert dicts(entries) == expected
            reads.append(counts[0])
            make.series(tmp_path / f"s{k}", make.volume(seed=100 + k))
            expected = dicts(index(tmp_path))
    entries, _ = kept(tmp_path)
    assert dicts(entries) == expected
    (path,) = cache.glob("*.sqlite")
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert Path(path).stat().st_size


PEAKS = """
import gc, sys, tracemalloc
from fastmed.readers.index import iter_index
for path in sys.argv[1:]:
    gc.collect()
    tracemalloc.start()
    found = sum(entry.verdict == "ok" for entry in iter_index(path))
    print(found, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_memory_does_not_grow_with_the_archive(tmp_path):
    """In a process of its own, where nothing but the index takes memory."""
    folders = [tmp_path / str(count) for count in (20, 60)]
    for folder in folders:
        for k in range(int(folder.name)):
            make.series(folder / f"{k}", make.volume((40, 4, 4), seed=k))
    warmed = [folders[1], *folders]  # the first time also imports, and remembers some series
    command = [sys.executable, "-c", PEAKS, *map(str, warmed)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, few, peak_of_few, many, peak_of_many = map(int, out.split()[1:])
    assert (few, many) == (20, 60)
    assert peak_of_many < 1.25 * peak_of_few


def test_a_store_that_is_damaged_within_is_named_with_what_to_do(tmp_path, cache):
    for k in range(30):
        make.series(tmp_path / f"{k}", make.volume(seed=k))
    kept(tmp_path)
    (path,) = cache.glob("*.sqlite")
    content = bytearray(path.read_bytes())
    content[3 * 4096 :] = bytes(len(content) - 3 * 4096)
    path.write_bytes(content)
    with pytest.raises(FastmedError, match=rf"{path.name} cannot be used \(.*\); remove it"):
        kept(tmp_path)
    path.unlink()
    assert len(kept(tmp_path)[0]) == 30


def test_a_store_without_room_is_named_with_what_to_do(tmp_path, cache):
    make.series(tmp_path)
    with open_store(tmp_path) as store:
        (pages,) = store.database.execute("PRAGMA page_count").fetchone()
        store.database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(FastmedError, match="no space left on device; free some space"):
            list(iter_index(tmp_path, store=store))
    assert len(kept(tmp_path)[0]) == 1
