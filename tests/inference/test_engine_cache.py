"""What the engine cache gives back is what was kept, for just these facts, or nothing."""

import json
import os

import pytest

from fastmed.cache_folder import cache_folder
from fastmed.inference.engines.engine_cache import EngineCache, Entry

FACTS = {
    "library": "TensorRT 11.4.0.106",
    "gpu": "NVIDIA A100",
    "compute_capability": [8, 0],
    "onnx_sha256": "ab" * 32,
    "precision": "float32",
    "profile": [(1, 1, 16, 16, 16), (4, 1, 96, 96, 96), (4, 1, 96, 96, 96)],
    "flags_cleared": ("TF32",),
}
ENTRY = Entry("engine", FACTS)


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def kept(cache):
    assert cache.write(ENTRY, b"the engine", seconds_to_build=12.5) == ""
    return cache


def only(cache, ending):
    (path,) = cache.folder.glob(f"*{ending}")
    return path


def test_an_engine_comes_back_as_it_was_kept(kept):
    assert kept.read(ENTRY) == b"the engine"
    assert kept.read(Entry("engine", json.loads(json.dumps(FACTS)))) == b"the engine"


def test_the_json_beside_it_says_what_it_is(kept):
    said = json.loads(only(kept, ".json").read_text())
    assert said["entry"]["gpu"] == "NVIDIA A100"
    assert said["entry"]["profile"][1] == [4, 1, 96, 96, 96]
    assert (said["bytes"], said["seconds_to_build"]) == (10, 12.5)


def test_nothing_lies_beside_the_two_files(kept):
    names = sorted(path.name for path in kept.folder.iterdir())
    assert names == [f"{ENTRY.stem}.bin", f"{ENTRY.stem}.json"]


CHANGED = {
    "library": "TensorRT 11.4.1.0",
    "gpu": "NVIDIA A10",
    "compute_capability": [8, 6],
    "onnx_sha256": "cd" * 32,
    "precision": "float16",
    "profile": [(4, 1, 96, 96, 96)] * 3,
    "flags_cleared": (),
}


@pytest.mark.parametrize(("name", "value"), CHANGED.items(), ids=CHANGED.keys())
def test_any_other_fact_is_another_entry(kept, name, value):
    assert kept.read(Entry("engine", FACTS | {name: value})) is None


def test_another_kind_is_another_entry(kept):
    assert kept.read(Entry("timing", FACTS)) is None


def another_gpus(cache):
    """The files of another GPU under this one's names."""
    other = Entry("engine", FACTS | {"gpu": "NVIDIA H100"})
    cache.write(other, b"another engine")
    for ending in ("bin", "json"):
        os.replace(cache.folder / f"{other.stem}.{ending}", cache.folder / f"{ENTRY.stem}.{ending}")


def a_folder(cache):
    path = only(cache, ".bin")
    path.unlink()
    path.mkdir()


DAMAGE = {
    "cut": lambda c: only(c, ".bin").write_bytes(b"the eng"),
    "one bit": lambda c: only(c, ".bin").write_bytes(b"the enginf"),
    "empty": lambda c: only(c, ".bin").write_bytes(b""),
    "no engine": lambda c: only(c, ".bin").unlink(),
    "no json": lambda c: only(c, ".json").unlink(),
    "json cut": lambda c: only(c, ".json").write_text('{"entry": {'),
    "json of another shape": lambda c: only(c, ".json").write_text("[1, 2]"),
    "json is no text": lambda c: only(c, ".json").write_bytes(b"\xff\xfe\x00"),
    "json nested without end": lambda c: only(c, ".json").write_text("[" * 100_000),
    "folder in its place": a_folder,
    "another GPU's": another_gpus,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_damaged_or_foreign_is_as_good_as_absent(kept, damage):
    damage(kept)
    assert kept.read(ENTRY) is None


def test_what_is_damaged_is_replaced(kept):
    DAMAGE["one bit"](kept)
    assert kept.write(ENTRY, b"built anew") == ""
    assert kept.read(ENTRY) == b"built anew"


def test_what_is_forgotten_is_gone(kept):
    kept.forget(ENTRY)
    assert list(kept.folder.iterdir()) == []
    kept.forget(ENTRY)


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("no folder")
    cache = EngineCache(tmp_path / "file" / "engines")
    problem = cache.write(ENTRY, b"the engine")
    assert str(cache.folder) in problem
    assert "FASTMED_CACHE" in problem
    assert cache.read(ENTRY) is None
    cache.forget(ENTRY)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder_is_named_with_what_to_do(cache):
    cache.folder.mkdir(mode=0o500)
    assert "permission denied" in cache.write(ENTRY, b"the engine")


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path))
    assert cache_folder("engines") == tmp_path
    monkeypatch.delenv("FASTMED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("engines") == tmp_path / "fastmed" / "engines"
