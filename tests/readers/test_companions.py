"""The files beside an image file that it is read with are members of its entry."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from test_index_store import dicts, kept
from test_packed import contents, pack
from test_series_record import recorded

from fastmed.errors import SeriesError
from fastmed.inference.content import content_sha256
from fastmed.readers.index import index, iter_index, read_series
from fastmed.readers.reread import opened


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.mktemp("cache")))


def image(path, hu=-900):
    picture = sitk.GetImageFromArray(np.full((4, 5, 6), hu, np.int16))
    picture.SetSpacing((1.0, 1.0, 2.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(picture, str(path))


def mhd(folder, hu=-900):
    image(folder / "x.mhd", hu)
    return ["x.mhd", "x.raw"]


def nhdr(folder, hu=-900):
    image(folder / "x.nhdr", hu)
    return ["x.nhdr", *sorted(path.name for path in folder.glob("x.raw*"))]


def npy(folder, hu=-900):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x.npy", np.full((3, 4, 5), hu, np.int16))
    spacing = [2.0, 1.0, 1.0 if hu == -900 else 1.5]
    (folder / "x.json").write_text(json.dumps({"spacing_mm_zyx": spacing}))
    return ["x.npy", "x.json"]


def mhd_of_slices(folder, hu=-900):
    mhd(folder, hu)
    raw, header = (folder / "x.raw").read_bytes(), (folder / "x.mhd").read_text()
    (folder / "x.raw").unlink()
    for k in range(4):
        (folder / f"s{k + 1}.raw").write_bytes(raw[k * 60 : (k + 1) * 60])
    named = "ElementDataFile = s%d.raw 1 4 1"
    (folder / "x.mhd").write_text(header.replace("ElementDataFile = x.raw", named))
    return ["x.mhd", "s1.raw", "s2.raw", "s3.raw", "s4.raw"]


def mhd_list(folder, hu=-900):
    names = mhd_of_slices(folder, hu)
    header = (folder / "x.mhd").read_text().splitlines()[:-1]
    (folder / "x.mhd").write_text("\n".join([*header, "ElementDataFile = LIST", *names[1:], ""]))
    return names


def mhd_of_a_folder_below(folder, hu=-900):
    mhd(folder, hu)
    (folder / "below").mkdir(exist_ok=True)
    (folder / "x.raw").rename(folder / "below" / "data.raw")
    header = (folder / "x.mhd").read_text()
    (folder / "x.mhd").write_text(header.replace("= x.raw", "= below/data.raw"))
    return ["x.mhd", "below/data.raw"]


def mhd_of_a_link(folder, hu=-900):
    mhd(folder, hu)
    away = folder.parent / "away.raw"
    away.write_bytes((folder / "x.raw").read_bytes())
    (folder / "x.raw").unlink()
    (folder / "x.raw").symlink_to(away)
    return ["x.mhd", "x.raw"]


KINDS = (mhd, nhdr, npy, mhd_of_slices, mhd_list, mhd_of_a_folder_below, mhd_of_a_link)


def scan(entries):
    (entry,) = [entry for entry in entries if entry.verdict == "ok"]
    return entry


def content(entry):
    with opened(entry) as there:
        return content_sha256(there)


@pytest.mark.parametrize("kind", KINDS)
def test_companions_are_members_and_the_entry_is_read_again_with_them(tmp_path, kind):
    names = kind(tmp_path / "in")
    entry = scan(index(tmp_path / "in"))
    assert [member.relative for member in entry.members] == names
    assert entry.files == 1
    again = read_series(recorded(entry)).voxels
    np.testing.assert_array_equal(again, read_series(entry).voxels)
    assert dicts(iter_index(tmp_path / "in")) == dicts(index(tmp_path / "in"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_a_companion_alone_changes_stamp_and_content(tmp_path, kind):
    names = kind(tmp_path / "in")
    header = (tmp_path / "in" / names[0]).read_bytes()
    first = scan(kept(tmp_path / "in")[0])
    before = content(first)
    later = (tmp_path / "in" / names[-1]).resolve()
    old = later.read_bytes()
    changed = tmp_path / "changed"
    kind(changed, hu=-800)
    later.write_bytes((changed / names[-1]).read_bytes())
    assert later.read_bytes() != old
    assert (tmp_path / "in" / names[0]).read_bytes() == header
    second = scan(kept(tmp_path / "in")[0])
    assert second.members != first.members
    assert content(second) != before


@pytest.mark.parametrize("kind", [mhd, nhdr, npy])
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_companions_in_an_archive_are_members_of_it(tmp_path, kind, form):
    names = kind(tmp_path / "folder" / "a")
    archive = pack(tmp_path / f"x.{form}", contents(tmp_path / "folder"))
    entry, plain = scan(index(archive)), scan(index(tmp_path / "folder"))
    assert [member.member for member in entry.members] == [f"a/{name}" for name in names]
    assert {member.path for member in entry.members} == {str(archive)}
    np.testing.assert_array_equal(read_series(recorded(entry)).voxels, read_series(plain).voxels)
    assert content(entry) == content(plain)
    assert dicts(iter_index(archive)) == dicts(index(archive))


def test_an_unchanged_volume_with_data_beside_it_keeps_its_members(tmp_path):
    mhd(tmp_path)
    assert dicts(kept(tmp_path)[0]) == dicts(kept(tmp_path)[0])


def test_data_that_is_gone_is_no_member_and_cannot_be_read(tmp_path):
    mhd(tmp_path)
    entry = recorded(scan(index(tmp_path)))
    (tmp_path / "x.raw").unlink()
    (now,) = index(tmp_path)
    assert (now.verdict, [member.relative for member in now.members]) == ("failed", ["x.mhd"])
    with pytest.raises(SeriesError):
        read_series(entry)
