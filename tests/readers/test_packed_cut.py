"""Packed archives that end early: what was read before the end is there, and is not trusted."""

import gzip
import shutil
import tarfile

import nibabel
import numpy as np
import pytest
import scans as make
from test_index_store import dicts, kept
from test_packed import contents, one_failed, pack

from fastmed.errors import SeriesError
from fastmed.readers.index import index, iter_index, read_series

STRICT = "its archive is truncated: slices may be missing; --lenient takes what is there"
LENIENT = "its archive is truncated: slices may be missing"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.mktemp("cache")))


def cut_between_files(archive):
    """Ends a tar behind its last whole member, without the mark that ends it; returns the bytes."""
    whole = archive.read_bytes()
    with tarfile.open(archive) as packed:
        end = packed.getmembers()[-1]
    size = end.offset_data + -(-end.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    archive.write_bytes(whole[:size])
    return whole


def cut_tar(folder, form="tar"):
    """A tar of a series of 9 slices, of which the last is cut, with two series before it."""
    for k in range(3):
        make.series(folder / "whole" / str(k), make.volume(seed=k))
    archive = pack(folder / f"x.{form}", contents(folder / "whole"))
    if form == "tar":
        with tarfile.open(archive) as packed:
            end = packed.getmembers()[-1].offset_data + 700
        archive.write_bytes(archive.read_bytes()[:end])
    else:
        content = archive.read_bytes()
        archive.write_bytes(content[: len(content) - 600])
    return archive


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_strict_refuses_and_lenient_takes_what_was_read_before_the_cut(tmp_path, form):
    archive = cut_tar(tmp_path, form)
    strict = [entry for entry in index(archive) if entry.kind == "ct"]
    assert len(strict) == 3
    for entry in strict:
        assert (entry.verdict, entry.reason, entry.geometry) == ("refused", STRICT, None)
        assert entry.conditions == ("uniform", "truncated")
        with pytest.raises(SeriesError, match="slices may be missing"):
            read_series(entry)
    assert strict[2].files < 9
    for entry in index(archive, strict=False):
        if entry.kind == "ct":
            assert (entry.verdict, entry.warnings) == ("ok", (LENIENT,))
            assert entry.conditions == ("uniform", "truncated")
            volume = read_series(entry)
            assert len(volume.voxels) == entry.files
            assert LENIENT in volume.warnings


@pytest.mark.parametrize("strict", [True, False])
def test_a_kept_index_says_the_same_of_a_cut_archive(tmp_path, strict):
    archive = cut_tar(tmp_path)
    (tmp_path / "in").mkdir()
    shutil.move(archive, tmp_path / "in")
    expected = dicts(index(tmp_path / "in", strict=strict))
    assert dicts(iter_index(tmp_path / "in", strict=strict)) == expected
    for _ in range(2):
        assert dicts(kept(tmp_path / "in", strict=strict)[0]) == expected


def test_a_kept_index_takes_an_archive_back_that_was_copied_again(tmp_path):
    make.series(tmp_path / "whole" / "a")
    (tmp_path / "in").mkdir()
    archive = pack(tmp_path / "in" / "x.tar", contents(tmp_path / "whole"))
    whole = cut_between_files(archive)
    refused = [entry for entry in kept(tmp_path / "in")[0] if entry.kind == "ct"]
    assert [(entry.verdict, entry.files) for entry in refused] == [("refused", 9)]
    archive.write_bytes(whole)
    (entry,) = kept(tmp_path / "in")[0]
    assert (entry.verdict, entry.conditions) == ("ok", ("uniform",))


def test_a_series_that_lies_partly_in_a_cut_archive_is_refused(tmp_path):
    files = make.series(tmp_path / "whole" / "a")
    (tmp_path / "in").mkdir()
    for file in files[:4]:
        file.rename(tmp_path / "in" / file.name)
    cut_between_files(pack(tmp_path / "in" / "x.tar", contents(tmp_path / "whole")))
    make.series(tmp_path / "in" / "beside", make.volume(seed=4))
    found = {entry.source: entry.verdict for entry in index(tmp_path / "in") if entry.kind == "ct"}
    assert sorted(found.values()) == ["ok", "refused"]
    assert found["beside"] == "ok"


def test_what_is_refused_anyway_keeps_its_reason(tmp_path):
    make.series(tmp_path / "whole" / "a")[4].unlink()
    archive = pack(tmp_path / "x.tar", contents(tmp_path / "whole"))
    cut_between_files(archive)
    (entry,) = [entry for entry in index(archive) if entry.kind == "ct"]
    assert entry.reason.startswith("1 slice missing between")
    assert entry.conditions == ("missing slices", "truncated")


def test_what_is_no_ct_stays_skipped(tmp_path):
    files = make.series(tmp_path / "whole" / "a")
    make.edit_all(files, SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR")
    archive = pack(tmp_path / "x.tar", contents(tmp_path / "whole"))
    cut_between_files(archive)
    verdicts = {entry.kind: entry.verdict for entry in index(archive)}
    assert verdicts == {"damaged": "failed", "other modality": "skipped"}


def test_a_volume_in_a_cut_archive_may_lack_the_files_beside_it(tmp_path):
    image = nibabel.Nifti1Image(np.full((4, 5, 6), -900, np.int16), np.diag([2, 2, 3, 1.0]))
    (tmp_path / "whole").mkdir()
    image.to_filename(tmp_path / "whole" / "a.nii.gz")
    archive = pack(tmp_path / "x.tar", contents(tmp_path / "whole"))
    cut_between_files(archive)
    (entry,) = [entry for entry in index(archive) if entry.kind == "ct"]
    assert entry.verdict == "refused"
    assert entry.reason == (
        "its archive is truncated: files that belong to it may be missing; --lenient takes what is "
        "there"
    )
    (entry,) = [entry for entry in index(archive, strict=False) if entry.kind == "ct"]
    assert entry.verdict == "ok"
    assert read_series(entry).warnings == entry.warnings


def test_a_tar_that_breaks_off_by_damage_is_no_more_trusted(tmp_path):
    make.series(tmp_path / "whole" / "a")
    make.series(tmp_path / "whole" / "b", make.volume(seed=1))
    archive = pack(tmp_path / "x.tar", contents(tmp_path / "whole"))
    with tarfile.open(archive) as packed:
        header = packed.getmembers()[12].offset
    content = bytearray(archive.read_bytes())
    content[header : header + 512] = b"\xff" * 512
    archive.write_bytes(content)
    found = [entry for entry in index(archive) if entry.kind == "ct"]
    assert [(entry.verdict, entry.files) for entry in found] == [("refused", 9), ("refused", 3)]
    assert all("its archive is damaged: slices may be missing" in entry.reason for entry in found)
    assert [e.verdict for e in index(archive, strict=False) if e.kind == "ct"] == ["ok", "ok"]


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_tar_is_named_and_what_was_read_before_is_there(tmp_path, form, share):
    for k in range(6):
        make.series(tmp_path / "folder" / str(k), make.volume(seed=k))
    archive = pack(tmp_path / f"x.{form}", contents(tmp_path / "folder"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    entries = index(archive, strict=False)
    (own,) = [entry for entry in entries if entry.source == archive.name]
    assert own.verdict == "failed"
    assert own.conditions == ("truncated",)
    assert "could be read before" in own.reason
    assert sum(entry.verdict == "ok" for entry in entries) >= int(6 * share) - 1


def test_a_tar_that_lacks_its_end_is_named(tmp_path):
    make.series(tmp_path / "folder" / "a")
    archive = pack(tmp_path / "x.tar", contents(tmp_path / "folder"))
    cut_between_files(archive)
    assert one_failed(archive)[::2] == ("x.tar", "truncated")


def test_a_tar_whose_headers_are_damaged_is_named(tmp_path):
    archive = pack(tmp_path / "x.tar", [("a.txt", b"x"), ("b.txt", b"x")])
    content = bytearray(archive.read_bytes())
    content[1024:1536] = b"\xff" * 512
    archive.write_bytes(content)
    assert one_failed(archive)[::2] == ("x.tar", "damaged")


@pytest.mark.parametrize(
    ("form", "content", "condition"),
    [
        ("zip", b"hello" * 100, "damaged"),
        ("tar", b"hello" * 200, "truncated"),
        ("tar.gz", b"hello" * 100, "truncated"),
        ("tar.gz", gzip.compress(b"hello" * 1000)[:-12], "truncated"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, form, content, condition):
    archive = tmp_path / f"x.{form}"
    archive.write_bytes(content)
    assert one_failed(archive)[::2] == (f"x.{form}", condition)


def test_a_truncated_zip_is_named(tmp_path):
    archive = pack(tmp_path / "x.zip", [("a.txt", b"x" * 1000)])
    archive.write_bytes(archive.read_bytes()[:-30])
    assert one_failed(archive)[::2] == ("x.zip", "truncated")
