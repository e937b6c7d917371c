"""The budget of a run is within every control group that the process is in."""

from dataclasses import replace

import pytest

from fastmed.inference import memory_budget
from fastmed.inference.memory_budget import default_budget

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
