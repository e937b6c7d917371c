"""The budget of a run is within every control group of the process, and scans keep to it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaits
from dataclasses import replace

import pytest
import scans as make

import fastmed
from fastmed.errors import FastmedError
from fastmed.inference import archive, memory_budget, pipeline
from fastmed.inference.memory_budget import MemoryBudget, cost_of, default_budget
from fastmed.inference.series_folder import SeriesFolder
from fastmed.readers.series import Series
from fastmed.spec import Label, Spec

GIB = 2**30
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that makes control groups: lines of /proc/self/cgroup, files' names, and
    {group: (limit, use, cache)}."""
    moved = [
        replace(h, root=tmp_path / h.root.relative_to("/")) for h in memory_budget._HIERARCHIES
    ]
    monkeypatch.setattr(memory_budget, "_HIERARCHIES", moved)
    monkeypatch.setattr(memory_budget, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory_budget, "_available", lambda: 64 * GIB)

    def make(lines, root, names, groups):
        (tmp_path / "cgroup").write_text(lines)
        for group, (limit, use, cache) in groups.items():
            folder = tmp_path / "sys/fs/cgroup" / root / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / names[0]).write_text(f"{limit}\n")
            (folder / names[1]).write_text(f"{use}\n")
            (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cache}\nslab 2\n")

    return make


CASES = {
    "no groups": ("", "", V2, {}, 64),
    "the root of a container": ("0::/\n", "", V2, {"": (8 * GIB, 2 * GIB, 0)}, 6),
    "no limit": ("0::/a\n", "", V2, {"a": ("max", 2 * GIB, 0)}, 64),
    "a nested group": ("0::/a/b\n", "", V2, {"a/b": (8 * GIB, 2 * GIB, 0)}, 6),
    "a group around it": (
        *("0::/a/b/c\n", "", V2),
        *({"a/b/c": ("max", GIB, 0), "a": (16 * GIB, 4 * GIB, 0), "x": (GIB, 0, 0)}, 12),
    ),
    "the least of several": (
        *("0::/a/b\n", "", V2),
        *({"a/b": (8 * GIB, GIB, 0), "a": (9 * GIB, 6 * GIB, 0)}, 3),
    ),
    "files in the cache": ("0::/a\n", "", V2, {"a": (8 * GIB, 7 * GIB, 5 * GIB)}, 6),
    "version 1": (
        *("7:cpu,cpuacct:/z\n5:memory:/slurm/job_1/step_0\n1:name=systemd:/y\n", "memory", V1),
        *({"slurm/job_1": (8 * GIB, 4 * GIB, GIB), "y": (GIB, 0, 0), "z": (GIB, 0, 0)}, 5),
    ),
    "version 2 beside 1": ("0::/a\n", "unified", V2, {"a": (8 * GIB, 2 * GIB, 0)}, 6),
    "a group that is mounted elsewhere": (
        *("0::/docker/abc\n", "", V2, {"": (8 * GIB, 2 * GIB, 0)}, 6),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_budget_is_half_of_what_the_narrowest_group_leaves(machine, case):
    *system, free_gib = CASES[case]
    machine(*system)
    assert default_budget() == free_gib * GIB // 2


def test_a_scan_waits_until_there_is_room_for_it():
    budget, never = MemoryBudget(10), threading.Event()
    assert budget.take(4, never)
    assert budget.take(6, never)
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(budget.take, 5, never)
        budget.give_back(4)
        with pytest.raises(StillWaits):
            third.result(0.3)
        budget.give_back(6)
        assert third.result(10)


def test_a_scan_larger_than_the_budget_goes_in_when_no_other_is_there():
    budget, never = MemoryBudget(10), threading.Event()
    assert budget.take(1000, never)
    with ThreadPoolExecutor(1) as pool:
        small = pool.submit(budget.take, 1, never)
        with pytest.raises(StillWaits):
            small.result(0.3)
        budget.give_back(1000)
        assert small.result(10)


def test_a_scan_that_waits_for_room_is_let_go_when_the_run_stops():
    budget, stopped = MemoryBudget(10), threading.Event()
    budget.take(10, stopped)
    stopped.set()
    assert not budget.take(1, stopped)


def test_a_scan_costs_its_voxels_its_grid_with_logits_and_its_labels():
    spec = Spec(
        name="m",
        task="segmentation",
        labels=(Label(1, "liver"),),
        spacing_mm_zyx=(2.0, 2.0, 2.0),
        window_hu=(0.0, 1.0),
        tile_zyx=(16, 16, 16),
    )
    entry = Series("1", "a", "ct", "ok", "", shape_zyx=(100, 512, 512))
    voxels = 100 * 512 * 512
    assert cost_of(entry, spec) == voxels * (4 + 2) + voxels * 4 * 3


def test_scans_run_one_by_one_where_the_budget_has_room_for_one(tiny_bundle, tmp_path, monkeypatch):
    order = []
    read, place = pipeline.read_series, SeriesFolder.put_in_place

    def reading(entry, **options):
        order.append(f"read {entry.source}")
        if entry.source == "s1":
            raise FastmedError("what fails gives its room back")
        return read(entry, **options)

    def placed(folder):
        place(folder)
        order.append("placed")

    monkeypatch.setattr(pipeline, "read_series", reading)
    monkeypatch.setattr(SeriesFolder, "put_in_place", placed)
    for number in range(4):
        make.series(tmp_path / "in" / f"s{number}", make.volume(seed=number))
    settings = {"model": tiny_bundle, "engine": "torch", "device": "cpu", "quiet": True}
    monkeypatch.setattr(archive, "budget_of", lambda memory_gb: memory_gb)
    fastmed.infer(tmp_path / "in", tmp_path / "out", memory_gb=1, attempts=1, **settings)
    assert order == [
        *("read s0", "placed", "read s1", "read s2", "placed", "read s3", "placed"),
    ]


def test_three_scans_are_in_hand_however_long_one_takes_to_write(
    tiny_bundle, tmp_path, monkeypatch
):
    read, place, started, third = (
        pipeline.read_series,
        SeriesFolder.put_in_place,
        [],
        threading.Event(),
    )
    in_hand = []

    def reading(entry, **options):
        started.append(entry.source)
        if len(started) == 3:
            third.set()
        return read(entry, **options)

    def placed(folder):
        assert third.wait(30)
        time.sleep(0.3)  # a fourth would begin
        in_hand.append(len(started) - len(in_hand))
        place(folder)

    monkeypatch.setattr(pipeline, "read_series", reading)
    monkeypatch.setattr(SeriesFolder, "put_in_place", placed)
    for number in range(6):
        make.series(tmp_path / "in" / f"s{number}", make.volume(seed=number))
    settings = {"model": tiny_bundle, "engine": "torch", "device": "cpu", "quiet": True}
    assert fastmed.infer(tmp_path / "in", tmp_path / "out", **settings).exit_status == 0
    assert in_hand == [3, 3, 3, 3, 2, 1]


@pytest.mark.parametrize(("workers", "gib"), [(0, 3), (1, 3), (3, 1)])
def test_workers_have_equal_shares_of_the_memory(tiny_bundle, tmp_path, monkeypatch, workers, gib):
    given = []

    def begun(settings, *_):
        given.append(settings.memory_bytes)
        raise FastmedError("that will do")

    monkeypatch.setattr(archive, "_runs", begun)
    make.series(tmp_path / "in")
    with pytest.raises(FastmedError, match="that will do"):
        fastmed.infer(
            tmp_path / "in", tmp_path / "out", model=tiny_bundle, workers=workers, memory_gb=3
        )
    assert given == [gib * GIB]
