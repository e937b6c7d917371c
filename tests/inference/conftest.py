"""What tests of inference may ask for."""

import network_bundles
import nibabel
import numpy as np
import pytest
import scans

import fastmed


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Returns a function that gives a small bundle of a network by its name, exported once."""
    folder, bundles = tmp_path_factory.mktemp("networks"), {}

    def make(name):
        if name not in bundles:
            bundles[name] = network_bundles.exported(name, folder)
        return bundles[name]

    return make


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    """Two NIfTI of soft tissue in air, and a third of one slice."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, depth in enumerate((24, 20, 1)):
        hu = np.full((depth, 40, 44), -1000, np.int16)
        hu[:, 4:36, 4:40] = np.random.default_rng(seed).integers(-150, 250, (depth, 32, 36))
        affine = np.diag([3.0, 3, 3, 1])
        nibabel.save(nibabel.Nifti1Image(hu.T, affine), folder / f"{seed}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two good scans, one with missing slices, one cut short, a localizer and a text file."""
    folder = tmp_path_factory.mktemp("archive")
    scans.series(folder / "a", scans.volume(seed=1), localizer=True)
    scans.series(folder / "b", scans.volume(seed=2, tilt_degrees=15))
    for path in scans.series(folder / "missing", scans.volume(seed=3))[4:6]:
        path.unlink()
    scans.truncate(scans.series(folder / "short", scans.volume(seed=4))[3], lose_bytes=40)
    (folder / "notes.txt").write_text("a note")
    return folder


@pytest.fixture
def run(tiny_bundle, tmp_path):
    """Runs the tiny bundle, quietly, into a new folder."""

    def run(input, output=None, **options):
        settings = {"model": tiny_bundle, "engine": "torch", "device": "cpu", "quiet": True}
        return fastmed.infer(input, output or tmp_path / "out", **(settings | options))

    return run
