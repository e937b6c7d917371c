"""Packed archives are searched as folders, and nothing that they say is trusted."""

import io
import os
import struct
import tarfile
import zipfile

import nibabel
import numpy as np
import pytest
import scans as make
from test_dicom_conditions import encrypt_attributes
from test_index_store import dicts, kept

from fastmed.errors import SeriesError
from fastmed.readers import packed_limits
from fastmed.readers.index import index, iter_index, read_series
from fastmed.readers.packed import unpacked

FORMS = ("zip", "tar", "tar.gz", "tgz")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def room(tmp_path_factory, monkeypatch):
    """The folder that temporary files lie in; nothing stays there."""
    folder = tmp_path_factory.mktemp("room")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert os.listdir(folder) == []


def pack(path, members):
    """Writes (name, bytes) pairs as an archive of the form that the path's name tells."""
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in members:
                packed.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if "gz" in path.name else "w") as packed:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))
    return path


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in files]


def scans(folder):
    """An archive with a series, a doubtful one, one with a copy, a volume and a text."""
    make.series(folder / "a", make.volume(seed=1))
    make.series(folder / "b", make.volume(seed=2))[4].unlink()
    copied = make.series(folder / "c", make.volume(seed=3))
    (folder / "c" / "copy.dcm").write_bytes(copied[0].read_bytes())
    image = nibabel.Nifti1Image(np.full((4, 5, 6), -900, np.int16), np.diag([2, 2, 3, 1.0]))
    image.to_filename(folder / "volume.nii.gz")
    np.save(folder / "array.npy", np.full((3, 4, 5), -900, np.int16))
    (folder / "array.json").write_text('{"spacing_mm_zyx": [3, 2, 1]}')
    (folder / "notes.txt").write_text("hello")
    (folder / "empty.dcm").write_bytes(b"")
    return contents(folder)


def told(entries, prefix=""):
    """What an index says, without the name of the archive."""
    return sorted(
        (
            entry.source.removeprefix(prefix),
            *(entry.kind, entry.verdict, entry.reason.replace(prefix, "")),
            *(entry.files, entry.shape_zyx, entry.geometry, entry.conditions),
            tuple(warning.replace(prefix, "") for warning in entry.warnings),
        )
        for entry in entries
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strict", [True, False])
def test_an_archive_holds_what_a_folder_holds(tmp_path, form, strict):
    members = scans(tmp_path / "folder")
    (tmp_path / "in").mkdir()
    archive = pack(tmp_path / "in" / f"x.{form}", members)
    expected = told(index(tmp_path / "folder", strict=strict))
    prefix = f"x.{form}/"
    for path in (tmp_path / "in", archive):
        found = index(path, strict=strict)
        assert told(found, prefix) == expected
        assert dicts(iter_index(path, strict=strict)) == dicts(found)


@pytest.mark.parametrize("form", FORMS)
def test_scans_in_an_archive_are_read_as_those_in_a_folder(tmp_path, form):
    members = scans(tmp_path / "folder")
    archive = pack(tmp_path / f"x.{form}", members)
    packed = {entry.source: entry for entry in index(archive, strict=False)}
    for entry in index(tmp_path / "folder", strict=False):
        if entry.verdict == "ok":
            expected = read_series(entry)
            volume = read_series(packed[f"x.{form}/{entry.source}"])
            np.testing.assert_array_equal(volume.voxels, expected.voxels)
            assert volume.geometry == expected.geometry


def test_members_of_an_entry_say_where_they_lie(tmp_path):
    make.series(tmp_path / "folder" / "a")
    archive = pack(tmp_path / "x.zip", contents(tmp_path / "folder"))
    (entry,) = index(archive)
    member = entry.members[0]
    assert (member.path, member.member) == (str(archive), "a/0001.dcm")
    assert member.relative == "x.zip/a/0001.dcm"


@pytest.mark.parametrize("form", FORMS)
def test_an_unchanged_archive_is_not_read_again(tmp_path, form, monkeypatch):
    members = scans(tmp_path / "folder")
    (tmp_path / "in").mkdir()
    archive = pack(tmp_path / "in" / f"x.{form}", members)
    (tmp_path / "in" / "beside.txt").write_text("x")
    first, counts = kept(tmp_path / "in")
    assert counts == (len(members) + 2, 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr("fastmed.readers.judge.batches", None)
        again, counts = kept(tmp_path / "in")
        assert counts == (0, len(members) + 2, 0)
        (tmp_path / "in" / "beside.txt").write_text("another")
        kept_again, counts = kept(tmp_path / "in")
        assert counts == (1, len(members) + 1, 0)
    assert dicts(again) == dicts(first) == dicts(kept_again)
    pack(archive, members[:-3])
    entries, _ = kept(tmp_path / "in")
    assert dicts(entries) == dicts(index(tmp_path / "in"))
    archive.unlink()
    assert [entry.source for entry in kept(tmp_path / "in")[0]] == ["beside.txt"]


def one_failed(path):
    """(source, reason, condition) of the one entry that failed."""
    (entry,) = [entry for entry in index(path) if entry.verdict == "failed"]
    return entry.source, entry.reason, *entry.conditions


LEADING_OUT = ("../out", "a/../../out", "/etc/out", "C:/out", "..\\out", "a\\..\\out", "\\\\h\\out")


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_name_that_leads_out_is_named_and_not_unpacked(tmp_path, form, name):
    files = make.series(tmp_path / "folder" / "a")
    content = files[0].read_bytes()
    archive = pack(tmp_path / f"x.{form}", [*contents(tmp_path / "folder"), (name, content)])
    source, reason, condition = one_failed(archive)
    assert source == f"x.{form}/{name}"
    assert reason.startswith("its name leads out of the archive")
    assert condition == "damaged"
    (entry,) = [entry for entry in index(archive) if entry.verdict == "ok"]
    assert entry.files == 9
    assert not list(tmp_path.rglob("out"))


@pytest.mark.parametrize("name", ["a" * 300, "a/.."])
def test_a_name_that_no_file_can_have_is_named(tmp_path, name):
    archive = pack(tmp_path / "x.zip", [(name, b"x")])
    (entry,) = index(archive)
    assert entry.verdict == "failed"
    assert "its name" in entry.reason


def test_links_and_devices_in_a_tar_are_not_followed(tmp_path):
    make.series(tmp_path / "secret")
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        for name, kind in (("link", tarfile.SYMTYPE), ("again", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret" / "0001.dcm")
            packed.addfile(info)
        for name, kind in (("pipe", tarfile.FIFOTYPE), ("disk", tarfile.BLKTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            packed.addfile(info)
    assert one_failed(tmp_path / "x.tar") == (
        "x.tar/link",
        "a link, which is not followed inside an archive",
        "damaged",
    )


def test_a_link_in_a_zip_is_not_followed(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    assert one_failed(tmp_path / "x.zip")[1].startswith("a link, which is not followed")


def test_an_archive_inside_an_archive_is_named_and_not_opened(tmp_path):
    archive = pack(tmp_path / "x.zip", [("inner.tar.gz", b"x"), ("a.txt", b"x")])
    source, reason, _ = one_failed(archive)
    assert source == "x.zip/inner.tar.gz"
    assert reason == "an archive inside an archive is not opened; unpack it first"


def test_an_encrypted_member_is_named(tmp_path):
    archive = pack(tmp_path / "x.zip", [("a.dcm", b"x" * 50)])
    content = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    archive.write_bytes(content)
    assert one_failed(archive) == (
        "x.zip/a.dcm",
        "encrypted by a password; unpack it with the password",
        "encrypted",
    )


def test_a_member_that_unpacks_to_far_too_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_limits, "_HARMLESS_BYTES", 1 << 20)
    archive = pack(tmp_path / "x.zip", [("bomb.dcm", bytes(4 << 20))])
    _, reason, condition = one_failed(archive)
    assert "unpack to 4194304 or more" in reason
    assert condition == "too large"


def test_a_gzipped_tar_that_unpacks_to_far_too_much_is_left_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_limits, "_HARMLESS_BYTES", 1 << 20)
    make.series(tmp_path / "folder" / "a")
    members = contents(tmp_path / "folder")
    archive = pack(tmp_path / "x.tar.gz", [*members, ("bomb", bytes(64 << 20)), ("c", b"")])
    entries = {entry.source: entry for entry in index(archive)}
    assert set(entries) == {"x.tar.gz", "x.tar.gz/a", "x.tar.gz/bomb"}
    assert entries["x.tar.gz"].conditions == ("too large",)
    assert entries["x.tar.gz/a"].conditions == ("uniform", "too large")
    assert entries["x.tar.gz/a"].files == 9


def test_a_zip_whose_members_share_their_bytes_is_not_unpacked(tmp_path, monkeypatch):
    """Overlapping members, which unpack to a thousand times what any one of them says."""
    monkeypatch.setattr(packed_limits, "_HARMLESS_BYTES", 1 << 20)
    archive = pack(tmp_path / "x.zip", [("0", bytes(1 << 19))])
    with zipfile.ZipFile(archive, "a") as packed:
        (info,) = packed.infolist()
        for k in range(1, 400):
            twin = zipfile.ZipInfo(str(k))
            for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(twin, name, getattr(info, name))
            packed.filelist.append(twin)
        packed._didModify = True
    (entry,) = index(archive)
    assert (entry.source, entry.conditions) == ("x.zip", ("too large",))


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_more_members_than_the_limit_are_refused(tmp_path, form, monkeypatch):
    monkeypatch.setattr(f"fastmed.readers.packed_{form}.MEMBERS", 20)
    archive = pack(tmp_path / f"x.{form}", [(f"{k}.txt", b"x") for k in range(21)])
    source, reason, condition = one_failed(archive)
    assert (source, condition) == (f"x.{form}", "too large")
    assert "the limit of 20" in reason


def test_a_directory_too_long_for_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    archive = pack(tmp_path / "x.zip", [("a.txt", b"x")])
    content = archive.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    archive.write_bytes(content[: end + 12] + struct.pack("<L", 1 << 31) + content[end + 16 :])
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert one_failed(archive)[2] == "too large"


def test_a_member_larger_than_the_limit_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_limits, "MEMBER_BYTES", 1000)
    for form in FORMS:
        archive = pack(tmp_path / f"x.{form}", [("a.dcm", os.urandom(1001)), ("b.txt", b"x")])
        source, reason, condition = one_failed(archive)
        assert (source, condition) == (f"x.{form}/a.dcm", "too large")
        assert reason == "1001 bytes, above the limit of 1000"


def test_a_damaged_member_is_named_and_stops_nothing_else(tmp_path):
    files = make.series(tmp_path / "folder" / "a")
    members = [("bad.dcm", os.urandom(5000)), *contents(tmp_path / "folder")]
    archive = pack(tmp_path / "x.zip", members)
    content = bytearray(archive.read_bytes())
    content[500:600] = bytes(100)
    archive.write_bytes(content)
    source, reason, condition = one_failed(archive)
    assert (source, condition) == ("x.zip/bad.dcm", "damaged")
    assert reason.startswith("it cannot be unpacked")
    assert [entry.files for entry in index(archive) if entry.verdict == "ok"] == [len(files)]


def test_archives_of_any_damage_stop_nothing(tmp_path):
    rng = np.random.default_rng(0)
    make.series(tmp_path / "in" / "good")
    members = scans(tmp_path / "folder")
    for form in FORMS:
        whole = pack(tmp_path / f"x.{form}", members).read_bytes()
        for k in range(25):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                damaged[place] = rng.integers(256)
            (tmp_path / "in" / f"{k}.{form}").write_bytes(damaged)
    entries = index(tmp_path / "in")
    assert ("good", "ok") in {(entry.source, entry.verdict) for entry in entries}
    assert all(entry.reason.isprintable() for entry in entries)


def test_a_name_twice_in_an_archive_counts_once(tmp_path):
    files = make.series(tmp_path / "folder" / "a")
    twice = ("a/0001.dcm", files[1].read_bytes())
    archive = pack(tmp_path / "x.tar", [*contents(tmp_path / "folder"), twice])
    assert "more than once" in one_failed(archive)[1]
    (entry,) = [entry for entry in index(archive) if entry.verdict == "ok"]
    assert entry.files == 9
    assert dicts(iter_index(archive)) == dicts(index(archive))


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["a.dcm", "IM0001", "a.dcm.age", "a.nii.gz.gpg"])
def test_an_encrypted_file_in_an_archive_is_told_by_its_own_bytes(tmp_path, form, name):
    archive = pack(tmp_path / f"x.{form}", [(name, b"age-encryption.org/v1\n-> X25519 abc\n")])
    source, reason, condition = one_failed(archive)
    assert (source, condition) == (f"x.{form}/{name}", "encrypted")
    assert reason.startswith("it is encrypted (a file encrypted by age)")


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_encrypted_attributes_of_files_in_an_archive_are_found(tmp_path, form):
    for file in make.series(tmp_path / "folder" / "a"):
        encrypt_attributes(file)
    archive = pack(tmp_path / f"x.{form}", contents(tmp_path / "folder"))
    source, reason, condition = one_failed(archive)
    assert (source, condition) == (f"x.{form}/a", "encrypted")
    assert "attributes that a volume needs are encrypted" in reason
    assert dicts(iter_index(archive)) == dicts(index(archive))


def test_an_archive_that_changed_is_not_read(tmp_path):
    make.series(tmp_path / "folder" / "a")
    members = contents(tmp_path / "folder")
    archive = pack(tmp_path / "x.zip", members)
    (entry,) = index(archive)
    pack(archive, members[:-1])
    with pytest.raises(SeriesError, match=r"x.zip/a/0009.dcm is no longer there"):
        read_series(entry)


def test_unpacked_files_are_the_owners_and_gone_after_use(tmp_path, room):
    make.series(tmp_path / "folder" / "a")
    archive = pack(tmp_path / "x.tar.gz", contents(tmp_path / "folder"))
    (entry,) = index(archive)
    with unpacked(entry.members) as there:
        assert all(os.path.isfile(found.path) for found in there)
        (own,) = room.iterdir()
        assert own.stat().st_mode & 0o077 == 0
    assert not list(room.iterdir())


def test_macos_leftovers_named_like_archives_are_no_archives(tmp_path):
    (tmp_path / "._x.zip").write_bytes(b"x")
    (entry,) = index(tmp_path)
    assert (entry.kind, entry.verdict) == ("not an image", "skipped")
