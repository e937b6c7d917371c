"""Cache: shared between processes, bounded, never half-written, never stale."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_sets import LIVER, organ, scan, write_pair

import fastmed.training.cache as cache_module
from fastmed.training.cache import Cache, CacheWarning
from fastmed.training.layouts import discover

BIG = 1 << 30


@pytest.fixture
def data(tmp_path) -> Path:
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        write_pair(tmp_path / "data", name, seed)
    return tmp_path / "data"


@pytest.fixture
def cases(data):
    return discover(data, LIVER)


def entries(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/entry.json")}


def forbid_reading(monkeypatch):
    def fail(*_):
        raise AssertionError("the case was decoded again")

    monkeypatch.setattr(cache_module, "prepare", fail)


def test_cases_are_mapped_and_keep_no_file_open(tmp_path, cases):
    folder = tmp_path / "cache"
    Cache(folder, limit_bytes=BIG).stored(cases[0], LIVER, {})
    before = len(os.listdir("/proc/self/fd"))
    kept = [Cache(folder, limit_bytes=BIG).stored(cases[0], LIVER, {}) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    maps = Path("/proc/self/maps").read_text()
    assert maps.count("voxels.npy") == len(kept)
    kept[0].voxels[:] = 0  # a copy of this process alone
    assert (kept[1].voxels == scan().voxels).all()


def test_a_case_is_decoded_once(tmp_path, cases, monkeypatch):
    first = Cache(tmp_path / "cache", limit_bytes=BIG).stored(cases[0], LIVER, {})
    forbid_reading(monkeypatch)
    again = Cache(tmp_path / "cache", limit_bytes=BIG).stored(cases[0], LIVER, {})
    assert (again.voxels == scan().voxels).all()
    assert (again.labels == organ()).all()
    assert again.voxels.dtype == np.int16
    assert again.geometry == first.geometry
    assert again.grid == first.grid
    assert (again.matrix == first.matrix).all()
    assert (again.points == first.points).all()
    assert (again.slope, again.fill, again.region) == (first.slope, first.fill, first.region)


def test_a_copy_of_the_data_meets_the_same_entry(tmp_path, data, cases):
    cache = Cache(tmp_path / "cache", limit_bytes=BIG)
    cache.stored(cases[0], LIVER, {})
    moved = data.rename(tmp_path / "elsewhere")
    cache.stored(discover(moved, LIVER)[0], LIVER, {})
    assert len(entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"spec": replace(LIVER, spacing_mm_zyx=(2.0, 2.0, 2.0))},
        lambda: {"spec": replace(LIVER, tile_zyx=(8, 8, 8))},
        lambda: {"values": {"liver": (2,)}},
        lambda: {"crop": "label"},
        lambda: {"crop": (2, 9)},
    ],
)
def test_what_the_entry_depends_on_makes_another(change, tmp_path, cases):
    cache = Cache(tmp_path / "cache", limit_bytes=BIG)
    cache.stored(cases[0], LIVER, {})
    cache.stored(cases[0], **{"spec": LIVER, "values": {}, **change()})
    assert len(entries(tmp_path / "cache")) == 2


def test_what_the_entry_does_not_depend_on_makes_no_other(tmp_path, cases):
    cache = Cache(tmp_path / "cache", limit_bytes=BIG)
    cache.stored(cases[0], LIVER, {})
    cache.stored(cases[0], replace(LIVER, window_hu=(-1000.0, 0.0), overlap=0.5, name="x"), {})
    assert len(entries(tmp_path / "cache")) == 1


def test_a_file_that_changes_is_read_again(tmp_path, data, cases):
    cache = Cache(tmp_path / "cache", limit_bytes=BIG)
    cache.stored(cases[0], LIVER, {})
    write_pair(data, "a", seed=9)
    assert (cache.stored(cases[0], LIVER, {}).voxels == scan(9).voxels).all()
    write_pair(data, "a", seed=9, labels=organ(end=(8, 9, 10)))
    assert cache.stored(cases[0], LIVER, {}).labels.sum() == 2 * 1 * 2


def test_voxels_beside_their_header_count_as_content(tmp_path, cases):
    import SimpleITK as sitk

    def write(seed: int) -> None:
        image = sitk.GetImageFromArray(scan(seed).voxels)
        image.SetSpacing((1.5, 1.5, 2.5))
        sitk.WriteImage(image, tmp_path / "a [1].mhd")

    write(0)
    case = replace(cases[0], image=tmp_path / "a [1].mhd", label=None)
    cache = Cache(tmp_path / "cache", limit_bytes=BIG)
    cache.stored(case, LIVER, {})
    write(5)
    assert (cache.stored(case, LIVER, {}).voxels == scan(5).voxels).all()
    header = (tmp_path / "a [1].mhd").read_text().replace("a [1].raw", "other.raw")
    (tmp_path / "a [1].raw").rename(tmp_path / "other.raw")
    (tmp_path / "a [1].mhd").write_text(header)
    (tmp_path / "other.raw").write_bytes(scan(6).voxels.tobytes())
    cache.stored(case, LIVER, {})
    (tmp_path / "other.raw").write_bytes(scan(7).voxels.tobytes())
    assert (cache.stored(case, LIVER, {}).voxels == scan(7).voxels).all()


def damage_voxels(entry: Path):
    (entry / "voxels.npy").write_bytes((entry / "voxels.npy").read_bytes()[:-100])


def damage_json(entry: Path):
    text = (entry / "entry.json").read_text()
    (entry / "entry.json").write_text(text.replace('"intercept": 0.0', '"intercept": 9.0'))


def cut_json(entry: Path):
    (entry / "entry.json").write_text((entry / "entry.json").read_text()[:50])


def lose_labels(entry: Path):
    (entry / "labels.npy").unlink()


def lose_json(entry: Path):
    (entry / "entry.json").unlink()


@pytest.mark.parametrize("damage", [damage_voxels, damage_json, cut_json, lose_labels, lose_json])
def test_a_damaged_entry_is_made_again(damage, tmp_path, cases):
    cache = Cache(tmp_path / "cache", limit_bytes=BIG)
    cache.stored(cases[0], LIVER, {})
    (name,) = entries(tmp_path / "cache")
    damage(tmp_path / "cache" / name)
    found = cache.stored(cases[0], LIVER, {})
    assert found.intercept == 0.0
    assert (found.voxels == scan().voxels).all()
    assert (found.labels == organ()).all()
    assert entries(tmp_path / "cache") == {name}


def entry_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.npy"))


def test_entries_used_least_recently_go_and_stay_usable_where_they_are_mapped(tmp_path, cases):
    folder = tmp_path / "cache"
    Cache(folder, limit_bytes=BIG).stored(cases[0], LIVER, {})
    one = entry_bytes(folder) + 4096
    older = Cache(folder, limit_bytes=2 * one)
    a = older.stored(cases[0], LIVER, {})
    os.utime(a.folder / "entry.json", (1, 1))
    b = older.stored(cases[1], LIVER, {})
    os.utime(b.folder / "entry.json", (2, 2))
    Cache(folder, limit_bytes=2 * one).stored(cases[2], LIVER, {})
    assert not a.folder.exists()
    assert b.folder.exists()
    assert (a.voxels == scan(0).voxels).all()
    assert (a.labels == organ()).all()
    assert entry_bytes(folder) <= 2 * one


def test_a_run_larger_than_the_limit_goes_on_in_memory_with_a_warning(tmp_path, cases):
    folder = tmp_path / "cache"
    Cache(folder, limit_bytes=BIG).stored(cases[0], LIVER, {})
    cache = Cache(folder, limit_bytes=entry_bytes(folder) + 4096)
    with pytest.warns(CacheWarning, match=r"does not hold.*Raise loop.cache_gb"):
        found = [cache.stored(case, LIVER, {}) for case in cases]
    assert [each.folder is None for each in found] == [False, True, True]
    for seed, each in enumerate(found):
        assert (each.voxels == scan(seed).voxels).all()
    assert len(entries(folder)) == 1


def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path, cases, monkeypatch):
    write = np.lib.format.write_array
    full = []

    def refuse(file, array, **options):
        if full:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, array, **options)

    monkeypatch.setattr(np.lib.format, "write_array", refuse)
    cache = Cache(tmp_path / "cache", limit_bytes=BIG)
    cache.stored(cases[0], LIVER, {})
    full.append(True)
    with pytest.warns(CacheWarning, match="no space left on device; the run goes on") as caught:
        found = [cache.stored(case, LIVER, {}) for case in cases]
    assert len(caught) == 1
    assert [(each.voxels == scan(k).voxels).all() for k, each in enumerate(found)] == [True] * 3
    assert len(entries(tmp_path / "cache")) == 1
    assert not list((tmp_path / "cache").glob(".*.tmp"))


def test_a_cache_folder_that_cannot_be_written_costs_nothing_else(tmp_path, cases):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(CacheWarning):
        found = Cache(blocked / "cache", limit_bytes=BIG).stored(cases[0], LIVER, {})
    assert (found.voxels == scan().voxels).all()


def _store(folder: str, data: str, barrier, results) -> None:
    (case, *_) = discover(Path(data), LIVER)
    cache = Cache(folder, limit_bytes=BIG)
    barrier.wait()
    found = cache.stored(case, LIVER, {})
    results.put((found.folder is not None, int(found.voxels.astype(np.int64).sum())))


def test_processes_that_make_one_entry_at_once_both_end_well(tmp_path, data):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (str(tmp_path / "cache"), str(data), barrier, results)
    workers = [context.Process(target=_store, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=30)
    assert found == [(True, int(scan().voxels.astype(np.int64).sum()))] * 3
    assert len(entries(tmp_path / "cache")) == 1
    assert not list((tmp_path / "cache").glob(".*.tmp"))


def test_another_process_maps_the_same_files(tmp_path, cases):
    found = Cache(tmp_path / "cache", limit_bytes=BIG).stored(cases[0], LIVER, {})
    sent = pickle.dumps(found)
    assert len(sent) < 4096 < found.voxels.nbytes
    again = pickle.loads(sent)
    assert again.case == found.case
    assert (again.voxels == found.voxels).all()


def test_a_case_in_memory_can_be_sent_too(cases):
    from fastmed.training.stored_case import prepare

    again = pickle.loads(pickle.dumps(prepare(cases[0], LIVER, {})))
    assert (again.voxels == scan().voxels).all()


def test_writing_to_mapped_voxels_leaves_the_entry_as_it_is(tmp_path, cases):
    cache = Cache(tmp_path / "cache", limit_bytes=BIG)
    cache.stored(cases[0], LIVER, {}).voxels[:] = 0
    assert (cache.stored(cases[0], LIVER, {}).voxels == scan().voxels).all()


def test_what_a_killed_process_left_is_swept_up(tmp_path, cases):
    folder = tmp_path / "cache"
    for name, age in ((".old.tmp", 10**9), (".new.tmp", None)):
        (folder / name).mkdir(parents=True)
        if age:
            os.utime(folder / name, (age, age))
    Cache(folder, limit_bytes=BIG)
    assert [path.name for path in folder.glob(".*.tmp")] == [".new.tmp"]


def test_a_second_start_does_not_read_the_sources(tmp_path, cases, monkeypatch):
    Cache(tmp_path / "cache", limit_bytes=BIG).stored(cases[0], LIVER, {})
    monkeypatch.setattr(cache_module.hashlib, "file_digest", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Cache(tmp_path / "cache", limit_bytes=BIG).stored(cases[0], LIVER, {})


def test_an_entry_is_plain_json_and_npy(tmp_path, cases):
    found = Cache(tmp_path / "cache", limit_bytes=BIG).stored(cases[0], LIVER, {})
    assert {p.name for p in found.folder.iterdir()} == {
        "entry.json", "voxels.npy", "labels.npy", "points.npy",
    }  # fmt: skip
    assert json.loads((found.folder / "entry.json").read_text())["entry"]["slope"] == 1.0


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path))
    assert Cache.default_folder() == tmp_path
    monkeypatch.delenv("FASTMED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert Cache.default_folder() == Path("/somewhere/fastmed/training")


def test_a_limit_of_nothing_leaves_nothing_on_disk(tmp_path, cases):
    found = Cache(tmp_path / "cache", limit_bytes=0).stored(cases[0], LIVER, {})
    assert (found.voxels == scan().voxels).all()
    assert not (tmp_path / "cache").exists()
