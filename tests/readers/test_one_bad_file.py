"""What is wrong with one file, whatever it is, is named and stops no other."""

import io
import os
import struct
import zipfile
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import scans as make
from test_companions import image, mhd
from test_index_store import dicts, kept
from test_packed import pack

from fastmed.readers import dicom, judge
from fastmed.readers.index import index, iter_index
from fastmed.readers.voxel_content import MAX_VOXELS
from fastmed.readers.walk import stamp


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.mktemp("cache")))


def bad_one(folder):
    """The one entry that is not ok, where a sound series lies beside it; as both ways index it."""
    make.series(folder / "sound")
    entries = index(folder)
    assert dicts(iter_index(folder)) == dicts(entries)
    assert "sound" in {entry.source for entry in entries if entry.verdict == "ok"}
    (bad,) = [entry for entry in entries if entry.verdict not in ("ok", "skipped")]
    return bad


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros((2, 3, 4)))
    return buffer.getvalue()


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)


ARRAYS = {
    "an archive of arrays": arrays(),
    "a broken archive": b"PK\x03\x04" + bytes(40),
    "a header without its end": npy("{'descr': '<i2', 'fortran_order': False, 'shape': ("),
    "a shape beyond all": npy(f"{{'descr': '<i2', 'fortran_order': False, 'shape': ({2**70}, 2)}}"),
    "no dictionary": npy("[1]"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_file_that_is_none_is_named(case, tmp_path):
    (tmp_path / "a.npy").write_bytes(ARRAYS[case])
    bad = bad_one(tmp_path)
    assert (bad.source, bad.verdict, bad.conditions) == ("a.npy", "failed", ("damaged",))


NAMED_BY_A_HEADER = {
    "two numbers in a pattern": b"a%s%03d.raw 1 3 1",
    "digits that are none": "a%\u0663d.raw 1 3 1".encode(),
    "a number of many digits": b"a%d.raw 1 " + b"9" * 5000 + b" 1",
    "a name as wide as the memory": b"a%999999999d.raw 1 3 1",
    "a long name": b"%d" * 100_000,
    "no name": b"\x1c",
}


@pytest.mark.parametrize("case", NAMED_BY_A_HEADER)
def test_a_header_that_names_its_voxels_strangely_is_named(case, tmp_path):
    mhd(tmp_path)
    header = (tmp_path / "x.mhd").read_bytes()
    (tmp_path / "x.mhd").write_bytes(header.replace(b"x.raw", NAMED_BY_A_HEADER[case]))
    bad = bad_one(tmp_path)
    assert (bad.source, bad.verdict) == ("x.mhd", "failed")


def test_a_header_that_names_a_pipe_is_not_waited_for(tmp_path):
    mhd(tmp_path)
    (tmp_path / "x.raw").unlink()
    os.mkfifo(tmp_path / "x.raw")
    bad = bad_one(tmp_path)
    assert (bad.source, bad.verdict) == ("x.mhd", "failed")
    assert "a pipe or a device" in bad.reason


def test_a_header_in_an_archive_reads_nothing_outside_of_it(tmp_path):
    mhd(tmp_path / "away")
    raw = tmp_path / "away" / "x.raw"
    header = (tmp_path / "away" / "x.mhd").read_bytes().replace(b"x.raw", str(raw).encode())
    (tmp_path / "in").mkdir()
    pack(tmp_path / "in" / "x.zip", [("x.mhd", header)])
    bad = bad_one(tmp_path / "in")
    assert (bad.source, bad.verdict) == ("x.zip/x.mhd", "failed")
    assert "outside of its archive" in bad.reason


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_any_packing_stops_no_other(method, tmp_path):
    pytest.importorskip({zipfile.ZIP_BZIP2: "bz2", zipfile.ZIP_LZMA: "lzma"}[method])
    (file, *_) = make.series(tmp_path / "folder", make.volume(seed=1))
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "x.zip", "w", method) as packed:
        packed.writestr("good/a.dcm", file.read_bytes())
        packed.writestr("bad.dcm", os.urandom(5000))
        packed.writestr("good/b.txt", "hello")
    content = bytearray((tmp_path / "in" / "x.zip").read_bytes())
    start = content.index(b"bad.dcm") + 2000
    content[start : start + 100] = bytes(100)
    (tmp_path / "in" / "x.zip").write_bytes(content)
    make.series(tmp_path / "in" / "sound")
    told = {entry.source: entry for entry in index(tmp_path / "in")}
    assert told["x.zip/bad.dcm"].reason.startswith("it cannot be unpacked")
    assert told["x.zip/good/a.dcm"].conditions == ("single slice",)
    assert told["sound"].verdict == "ok"


def test_no_member_of_an_archive_takes_the_place_of_another(tmp_path):
    names = ["a (again)", "a", "a", "a"]
    pack(tmp_path / "x.tar", [(name, b"x") for name in names])
    entries = index(tmp_path)
    assert sorted(entry.source for entry in entries if entry.verdict == "failed") == [
        "x.tar/a (again) (again)",
        "x.tar/a (again) (again) (again)",
    ]
    assert dicts(iter_index(tmp_path)) == dicts(entries)


def test_a_name_too_long_for_any_disk_is_cut_where_it_is_shown(tmp_path):
    pack(tmp_path / "x.tar", [("a/" * 100_000 + "b", b"x"), ("c.txt", b"x")])
    bad = bad_one(tmp_path)
    assert "its name is longer than 4096 characters" in bad.reason
    assert len(bad.source) < 200


@pytest.mark.parametrize("lies_of", ["count", "place"])
def test_a_zip_that_lists_more_than_it_says_is_refused_unread(lies_of, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmed.readers.packed_zip.MEMBERS", 20)
    archive = pack(tmp_path / "x.zip", [(f"{k}.txt", b"x") for k in range(21)])
    content = archive.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    few = struct.pack("<HH", 1, 1)
    if lies_of == "count":
        content = content[: end + 8] + few + content[end + 12 :]
    else:  # a record that allows everything, and a locator that leads to another one
        size, start = struct.unpack("<LL", content[end + 12 : end + 20])
        record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 21, 21, size, start)
        other = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 60, start)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
        content = content[:end] + other + record + locator + content[end:]
    archive.write_bytes(content)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    (entry,) = index(tmp_path)
    assert (entry.source, entry.conditions) == ("x.zip", ("too large",))


def test_times_and_inodes_of_64_bits_are_kept(tmp_path):
    files = make.series(tmp_path)
    os.utime(files[3], (0, 10_500_000_000))  # the year 2302
    entries, _ = kept(tmp_path)
    assert [entry.verdict for entry in entries] == ["ok"]
    assert kept(tmp_path)[1] == (0, 9, 0)
    beyond = SimpleNamespace(st_size=1, st_mtime_ns=2**63 + 1, st_ino=2**64 - 1)
    assert all(0 <= number < 2**63 for number in stamp(beyond))


def test_a_series_whose_judge_fails_unforeseen_costs_only_itself(tmp_path, monkeypatch):
    make.series(tmp_path / "odd", make.volume(seed=1))
    judge_group = dicom.judge_group

    def fails(headers, **options):
        if any("odd" in header.path for header in headers):
            raise KeyError("Doe^Jane")
        return judge_group(headers, **options)

    monkeypatch.setattr(dicom, "judge_group", fails)
    bad = bad_one(tmp_path)
    assert (bad.verdict, bad.files) == ("failed", 9)
    assert bad.reason == "it cannot be judged (an unexpected KeyError); please report this"


def test_a_file_whose_judge_fails_unforeseen_costs_only_itself(tmp_path, monkeypatch):
    (tmp_path / "a.nii").write_bytes(b"x")
    judges = judge._ENTRIES["ct"] | {(".nii", ".nii.gz"): lambda *_: 1 / 0}
    monkeypatch.setitem(judge._ENTRIES, "ct", judges)
    bad = bad_one(tmp_path)
    assert (bad.source, bad.reason) == (
        "a.nii",
        "it cannot be judged (an unexpected ZeroDivisionError); please report this",
    )


def test_a_file_that_vanishes_while_it_is_looked_at_is_named(tmp_path, monkeypatch):
    (tmp_path / "odd").write_bytes(b"\x08\x00\x05\x00" + bytes(200))

    def gone(path):
        raise FileNotFoundError(2, "No such file or directory")

    def unreadable(found, raw):
        raise ValueError("it does not say what it holds")

    monkeypatch.setattr("fastmed.readers.dicom_header.read_raw", lambda *_: object())
    monkeypatch.setattr("fastmed.readers.dicom_header._header", unreadable)
    monkeypatch.setattr("fastmed.readers.dicom_header.is_marked", gone)
    (entry,) = index(tmp_path)
    assert (entry.verdict, entry.reason) == ("failed", "No such file or directory")


SHAPE = (1024, 1024, 1025)
assert np.prod(SHAPE) > MAX_VOXELS


def large_nifti(path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    path.with_suffix(".nii").write_bytes(header.binaryblock + bytes(4))


def large_image(path) -> None:
    mhd(path.parent)
    header = (path.parent / "x.mhd").read_text()
    (path.parent / "x.raw").unlink()
    header = header.replace("DimSize = 6 5 4", "DimSize = 1025 1024 1024")
    (path.parent / "x.mhd").write_text(header)


def large_array(path) -> None:
    np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.int8, SHAPE)


@pytest.mark.parametrize("write", [large_nifti, large_image, large_array])
def test_more_voxels_than_the_limit_are_refused_by_the_header(write, tmp_path):
    write(tmp_path / "x")
    bad = bad_one(tmp_path)
    assert (bad.verdict, bad.conditions) == ("refused", ("too large",))
    assert f"above the limit of {MAX_VOXELS}" in bad.reason


CRASHING = {
    "more axes than any image": ("x.mhd", b"NDims = 3", b"NDims = 9999"),
    "on the next line": ("x.mhd", b"NDims = 3", b"NDims =\n 99"),
    "many directions": ("x.nrrd", b"space directions:", b"space directions: " + b"(1,0,0) " * 9000),
    "many labels": ("x.nrrd", b"encoding:", b"labels: " + b'"a" ' * 9000 + b"\nencoding:"),
}


@pytest.mark.parametrize("case", CRASHING)
def test_a_header_that_would_crash_the_process_is_not_shown_to_its_library(case, tmp_path):
    name, field, instead = CRASHING[case]
    image(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert field in content
    (tmp_path / name).write_bytes(content.replace(field, instead, 1))
    bad = bad_one(tmp_path)
    assert (bad.source, bad.verdict) == (name, "failed")
    assert "its header" in bad.reason
