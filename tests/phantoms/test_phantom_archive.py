"""The phantom archive of every state: what it holds, and that its truth is complete and repeats."""

from collections import Counter
from pathlib import Path

import pydicom
import pytest

from fastmed import phantom_archive
from fastmed.cli import main
from fastmed.errors import UsageError
from fastmed.phantom_archive import SIZES, WAYS, read_truth, shares, write_archive
from fastmed.phantom_scans import write_phantoms
from fastmed.readers.series import CONDITIONS, KINDS, VERDICTS


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Every way once, in tiny scans."""
    folder = tmp_path_factory.mktemp("archive") / "made"
    write_phantoms("archive", folder, count=len(WAYS), seed=1, size="tiny")
    return folder


def test_every_way_comes_once_before_any_comes_twice(archive):
    truth = read_truth(archive / "truth.csv")
    assert {row.way for row in truth} == set(WAYS)
    assert len(list((archive / "scans").iterdir())) == len(WAYS)


def test_the_truth_speaks_the_words_of_an_index(archive):
    for row in read_truth(archive / "truth.csv"):
        assert {row.strict, row.lenient} <= set(VERDICTS), row
        assert row.kind in KINDS, row
        assert set(row.conditions.split("; ")) <= set(CONDITIONS), row
        assert bool(row.liver_ml) == (row.strict == "ok"), row


def test_every_file_stands_behind_one_line_of_the_truth(archive):
    """A file that nobody expects anything of would be one that may be lost."""
    truth = read_truth(archive / "truth.csv")
    packed = ("zip", "tar", "tar.gz", "encrypted zip", "cut zip", "cut tar")
    files = [path for path in (archive / "scans").rglob("*") if not path.is_dir()]
    in_folders = [path for path in files if not path.name.endswith((".zip", ".tar", ".tar.gz"))]
    assert sum(row.files for row in truth if row.way not in packed) == len(in_folders)


def test_every_series_has_a_uid_of_its_own_and_no_person(archive):
    truth = read_truth(archive / "truth.csv")
    damaged = {archive / "scans" / row.source for row in truth if row.kind == "damaged"}
    cases, patients = Counter(), set()
    for folder in (archive / "scans").iterdir():
        files = set(folder.rglob("*.dcm")) - damaged if folder.is_dir() else ()
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
        cases.update({header.SeriesInstanceUID for header in headers})
        patients.update(str(header.PatientName) for header in headers)
    assert len(cases) > 40
    assert set(cases.values()) == {1}
    assert patients == {"PHANTOM^FASTMED"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(archive, tmp_path):
    ways = ["uniform", "uneven", "enhanced", "segmentation", "zip", "encrypted zip", "nifti.gz"]
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        write_archive(tmp_path / name, len(ways), seed, "tiny", ways=ways)
    one, two, other = (_content(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert len(one) > len(ways)
    same = [path for path in one.keys() & other.keys() if one[path] == other[path]]
    assert not same


def test_the_shares_are_kept_where_there_are_enough_series():
    share = shares()
    assert sum(share.values()) == pytest.approx(1.0)
    order = Counter(phantom_archive.plan._order(1000, 0, share))
    for way, part in share.items():
        assert abs(order[way] - 1000 * part) < 2, way


def test_the_page_on_it_has_the_truth_of_every_way(archive):
    page = (Path(__file__).parents[2] / "docs" / "phantom_archive.md").read_text("utf-8")
    for row in read_truth(archive / "truth.csv"):
        words = (row.kind, row.conditions.replace(";", ","), row.strict, row.lenient)
        lines = page[page.index(f"| {row.way} |") :].splitlines()[:3]
        assert any(" | ".join(words) in line for line in lines), row


def test_wrong_settings_are_named(tmp_path, capsys):
    assert main(["phantom", "archive", "--output", str(tmp_path / "a"), "--size", "huge"]) == 2
    assert "--size huge: expected one of small, tiny" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--size huge"):
        write_phantoms("archive", tmp_path / "a", size="huge")
    with pytest.raises(UsageError, match="phantom abdomen does not take it"):
        write_phantoms("abdomen", tmp_path / "a", size="tiny")
    with pytest.raises(UsageError, match="ways lost"):
        write_archive(tmp_path / "a", 1, 0, "tiny", ways=["lost"])
    assert not (tmp_path / "a").exists()
    assert set(SIZES) == {"small", "tiny"}


def _content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
