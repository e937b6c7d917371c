"""Entries of split series, out of a record: read again they are the volume that was judged."""

from dataclasses import replace

import numpy as np
import pytest
import scans as make

from fastmed.readers.index import index, read_series


def frames(folder) -> None:
    scans = [make.volume((5, 12, 14), seed=seed) for seed in (1, 2)]
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    make.enhanced(folder / "a.dcm", *scans, order=order)


def frames_of_two_files(folder) -> None:
    scans = [make.volume((6, 12, 14), seed=seed) for seed in (1, 2)]
    first, later = [0, 6, 1, 7, 2, 8], [3, 9, 4, 10, 5, 11]
    make.enhanced(folder / "a.dcm", *scans, order=first, SOPInstanceUID="1.2.3.1")
    make.enhanced(folder / "b.dcm", *scans, order=later, SOPInstanceUID="1.2.3.2")


def acquisitions(folder) -> None:
    files = make.series(folder)
    make.second(files, folder / "more", values=7, AcquisitionNumber="2")


def reconstructions(folder) -> None:
    files = make.series(folder)
    make.second(files, folder / "more", values=7, ConvolutionKernel="Br59")


def pixel_spacings(folder) -> None:
    make.edit_all(make.series(folder)[5:], PixelSpacing=[0.9, 0.9])


def copies(folder) -> None:
    make.second(make.series(folder), folder / "more")


def duplicates(folder) -> None:
    files = make.series(folder)
    make.second(files[3:5], folder / "more", values=1)


@pytest.mark.parametrize(
    ("write", "volumes"),
    [
        (frames, 2),
        (frames_of_two_files, 2),
        (acquisitions, 2),
        (reconstructions, 2),
        (pixel_spacings, 2),
        (copies, 1),
        (duplicates, 1),
    ],
)
def test_an_entry_without_what_it_stored_reads_the_same_volume(write, volumes, tmp_path):
    write(tmp_path)
    entries = index(tmp_path, strict=False)
    assert [entry.verdict for entry in entries] == ["ok"] * volumes
    for entry in entries:
        again = read_series(replace(entry, stored=None))
        assert [at.name for at in again.slices] == [at.name for at in read_series(entry).slices]
        np.testing.assert_array_equal(again.voxels, read_series(entry).voxels)
        np.testing.assert_array_equal(again.geometry.affine, entry.geometry.affine)
