"""Several acquisitions or reconstructions in a series: split where each is uniform, else never."""

import numpy as np
import pytest
import scans as make

from fastmed.readers import dicom_copies
from fastmed.readers.index import index, read_series


def only(entries):
    (entry,) = entries
    return entry


def number_acquisitions(files, numbers) -> None:
    for file, number in zip(files, numbers, strict=True):
        make.edit(file, AcquisitionNumber=str(number))


def second_acquisition(folder, files, **attributes):
    return make.second(files, folder, values=7, AcquisitionNumber="2", **attributes)


SEVERAL = {
    "the same region twice": (
        lambda folder, files: second_acquisition(folder, files),
        ("several acquisitions",),
        "2 acquisitions in one series (9 and 9 slices)",
        [9, 9],
    ),
    "regions that overlap in part": (
        lambda folder, files: second_acquisition(folder, files, by_lps_mm=(0, 0, 12)),
        ("several acquisitions",),
        "2 acquisitions in one series (9 and 9 slices)",
        [9, 9],
    ),
    "regions with a gap between": (
        lambda folder, files: second_acquisition(folder, files, by_lps_mm=(0, 0, 60)),
        ("several acquisitions",),
        "2 acquisitions in one series (9 and 9 slices)",
        [9, 9],
    ),
    "two kernels": (
        lambda folder, files: make.second(
            files, folder, values=7, ConvolutionKernel="Br59", SliceThickness=2
        ),
        ("overlapping reconstructions",),
        "2 overlapping reconstructions in one series, of different kernels (9 and 9 slices)",
        [9, 9],
    ),
    "two kernels, one between the other's slices": (
        lambda folder, files: make.second(
            files, folder, ConvolutionKernel="Br59", by_lps_mm=(0, 0, 1)
        ),
        ("overlapping reconstructions",),
        "of different kernels",
        [9, 9],
    ),
    "two slice thicknesses": (
        lambda folder, files: make.second(files[::2], folder, values=7, SliceThickness=4),
        ("overlapping reconstructions",),
        "of different slice thicknesses (9 and 5 slices)",
        [9, 5],
    ),
    "two fields of view with pixels of one size": (
        lambda folder, files: make.second(files, folder, values=7, by_lps_mm=(8, 5, 0)),
        ("overlapping reconstructions",),
        "of different places in the plane",
        [9, 9],
    ),
    "two image types": (
        lambda folder, files: make.second(
            files, folder, values=7, ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "PHASE 70"]
        ),
        ("overlapping reconstructions",),
        "of different image types",
        [9, 9],
    ),
    "nothing but positions between each other": (
        lambda folder, files: make.second(files, folder, by_lps_mm=(0, 0, 0.7)),
        ("overlapping reconstructions",),
        "at positions between each other",
        [9, 9],
    ),
    "two acquisitions of two kernels each": (
        lambda folder, files: [
            second_acquisition(folder / "2", files),
            make.second(files, folder / "3", values=8, ConvolutionKernel="Br59", StudyID="3"),
            second_acquisition(
                folder / "4",
                make.second(files, folder / "4" / "5", values=3, ConvolutionKernel="Br59"),
            ),
            [path.unlink() for path in (folder / "4" / "5").iterdir()],
        ],
        ("several acquisitions", "overlapping reconstructions"),
        "4 overlapping reconstructions in one series, of different kernels (9 and 9 and 9 and 9",
        [9, 9, 9, 9],
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_volumes_in_a_series_are_refused_by_strict_and_split_by_lenient(case, tmp_path):
    make_more, conditions, reason, counts = SEVERAL[case]
    scan = make.volume()
    files = make.series(tmp_path / "scan", scan)
    make.edit_all(files, ConvolutionKernel="Br40")
    make_more(tmp_path / "scan" / "more", files)
    entry = only(index(tmp_path))
    assert (entry.verdict, entry.conditions) == ("refused", conditions)
    assert reason in entry.reason
    assert f"--lenient makes {len(counts)} volumes of them" in entry.reason
    entries = index(tmp_path, strict=False)
    assert [entry.verdict for entry in entries] == ["ok"] * len(counts)
    assert sorted((entry.shape_zyx[0] for entry in entries), reverse=True) == counts
    assert {entry.conditions for entry in entries} == {("uniform", *conditions)}
    assert all(f"split into {len(counts)} volumes" in entry.warnings[0] for entry in entries)
    first = next(e for e in entries if e.stored.headers[0].path == str(files[0]))
    volume = read_series(first)
    np.testing.assert_array_equal(volume.voxels, scan.voxels)
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-9)


ONE = {
    "an acquisition per slice": range(9),
    "an acquisition per rotation of three slices": [1, 1, 1, 2, 2, 2, 3, 3, 3],
    "two acquisitions, slice by slice": [1, 2, 1, 2, 1, 2, 1, 2, 1],
    "no number on some": ["1", "1", "1", "1", "", "", "", "", ""],
}


@pytest.mark.parametrize("case", ONE)
@pytest.mark.parametrize("strict", [True, False])
def test_one_uniform_stack_is_one_volume_however_its_acquisitions_are_numbered(
    case, strict, tmp_path
):
    number_acquisitions(make.series(tmp_path), ONE[case])
    entry = only(index(tmp_path, strict=strict))
    assert (entry.verdict, entry.conditions, entry.warnings) == ("ok", ("uniform",), ())


def test_kernels_of_regions_one_after_the_other_are_one_volume(tmp_path):
    files = make.series(tmp_path)
    make.edit_all(files[:4], ConvolutionKernel="H40", SliceThickness=4)
    make.edit_all(files[4:], ConvolutionKernel="H30", SliceThickness=2)
    entry = only(index(tmp_path))
    assert (entry.verdict, entry.conditions) == ("ok", ("uniform",))


def test_thick_slices_alone_are_not_called_overlapping(tmp_path):
    make.edit_all(make.series(tmp_path), SliceThickness=5)
    assert only(index(tmp_path)).conditions == ("uniform",)


def test_a_slice_missing_among_acquisitions_of_one_slice_each_is_a_missing_slice(tmp_path):
    files = make.series(tmp_path)
    number_acquisitions(files, range(9))
    files[4].unlink()
    entry = only(index(tmp_path, strict=False))
    assert entry.conditions == ("missing slices",)
    assert entry.shape_zyx[0] == 9


def test_acquisitions_that_go_on_from_each_other_stay_together_when_a_later_one_does_not(tmp_path):
    files = make.series(tmp_path, make.volume((12, 12, 14)))
    number_acquisitions(files, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3])
    for file in files[8:]:
        make.move(file, by_lps_mm=(0, 0, 30))
    entries = index(tmp_path, strict=False)
    assert sorted(entry.shape_zyx[0] for entry in entries) == [4, 8]
    assert {entry.conditions for entry in entries} == {("uniform", "several acquisitions")}


def test_an_acquisition_that_is_not_uniform_by_itself_splits_nothing(tmp_path):
    files = make.series(tmp_path / "scan")
    more = second_acquisition(tmp_path / "scan" / "more", files)
    more[4].unlink()
    entry = only(index(tmp_path))
    assert entry.conditions == ("duplicate positions",)
    assert "of 2 acquisitions" in entry.reason


@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_acquisitions_of_a_tilted_gantry_are_told_apart_too(tilt, tmp_path):
    scan = make.volume(tilt_degrees=tilt)
    files = make.series(tmp_path / "scan", scan)
    second_acquisition(tmp_path / "scan" / "more", files)
    entries = index(tmp_path, strict=False)
    assert [entry.verdict for entry in entries] == ["ok", "ok"]
    for entry in entries:
        np.testing.assert_allclose(entry.geometry.affine, scan.geometry.affine, atol=1e-9)


@pytest.mark.parametrize("strict", [True, False])
def test_pixels_of_acquisitions_are_read_only_until_two_differ(strict, tmp_path, monkeypatch):
    files = make.series(tmp_path)
    make.second(files, tmp_path / "more", values=7, AcquisitionNumber="2")
    read = []
    content = dicom_copies._content
    monkeypatch.setattr(dicom_copies, "_content", lambda h: read.append(h.path) or content(h))
    entries = index(tmp_path, strict=strict)
    assert {"several acquisitions"} <= set(entries[0].conditions)
    assert len(read) == 2
