"""A walk finds each file once, wherever its names and links are, folder after folder."""

import os

import pytest

from fastmed.readers import walk as module
from fastmed.readers.walk import listings, walk


def relative(*paths, exclude=()):
    return [found.relative for found in walk(paths, exclude)]


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_files_come_by_name_and_folders_after_the_files_beside_them(tmp_path):
    write(tmp_path, "b.dcm", "a.dcm", "a/2", "a/1", "c/d/e", "c/d/f")
    assert relative(tmp_path) == ["a.dcm", "b.dcm", "a/1", "a/2", "c/d/e", "c/d/f"]


def test_a_found_file_says_how_a_change_is_noticed(tmp_path):
    write(tmp_path, "a")
    (found,) = walk(tmp_path)
    status = os.stat(tmp_path / "a")
    assert (found.file_bytes, found.mtime_ns, found.inode) == (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
    )
    assert (found.path, found.place, found.member) == (found.path, found.path, "")


def test_a_large_folder_is_listed_in_pieces_that_part_no_file_from_its_companion(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_PIECE", 3)
    write(tmp_path, *(f"{k}.{end}" for k in range(6) for end in ("json", "npy")))
    pieces = [[row[0] for row in listing.rows] for listing in listings(tmp_path)]
    assert [len(piece) for piece in pieces] == [4, 4, 4]
    assert [name for piece in pieces for name in piece] == sorted(os.listdir(tmp_path))
    for piece in pieces:
        assert {name.split(".")[1] for name in piece} == {"json", "npy"}


@pytest.mark.parametrize("first", ["a", "z"])
def test_a_file_and_links_to_it_count_once_under_its_own_name(tmp_path, first):
    write(tmp_path, "m/file")
    (tmp_path / first).symlink_to(tmp_path / "m" / "file")
    assert relative(tmp_path) == ["m/file"]


def test_a_file_that_only_links_reach_counts_once(tmp_path):
    write(tmp_path, "outside/file")
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "outside" / "file")
    assert relative(tmp_path / "in") == ["a"]


def test_a_file_of_two_names_counts_once(tmp_path):
    write(tmp_path, "a/file")
    os.link(tmp_path / "a" / "file", tmp_path / "a" / "twin")
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a" / "file", tmp_path / "b" / "third")
    assert relative(tmp_path) == ["a/file"]


def test_a_file_named_beside_its_folder_counts_once(tmp_path):
    write(tmp_path, "a/file", "other")
    assert relative(tmp_path / "a" / "file", tmp_path / "a") == ["file"]
    assert relative(tmp_path / "a", tmp_path / "a" / "file", tmp_path / "other") == [
        "file",
        "other",
    ]


def test_one_file_named_twice_counts_once(tmp_path):
    write(tmp_path, "file")
    assert relative(tmp_path / "file", tmp_path / "file") == ["file"]


def test_an_excluded_file_or_folder_is_left_out(tmp_path):
    write(tmp_path, "a/1", "b/2", "c")
    assert relative(tmp_path, exclude=[tmp_path / "a", tmp_path / "c"]) == ["b/2"]


def test_a_link_that_leads_nowhere_is_named_with_its_place(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken").symlink_to(tmp_path / "absent")
    (found,) = walk(tmp_path)
    assert (found.relative, found.problem) == ("a/broken", "a link to a file that is absent")


def test_a_walk_looks_at_each_file_once(tmp_path, monkeypatch):
    write(tmp_path, *(f"{k}/{j}" for k in range(3) for j in range(20)))
    looked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: looked.append(path) or stat(path, **more))
    assert len(relative(tmp_path)) == 60
    monkeypatch.undo()
    files = [path for path in looked if os.path.isfile(path)]
    assert len(files) == len(set(files)) == 60
