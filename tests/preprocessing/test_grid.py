"""The network's grid: where the spec's region is, of its spacing or its size, in one window."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_lungs import GEOMETRIES, LUNG_LPS_MM, corners_lps_mm, scan_of

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.preprocessing import grid_geometry, to_grid
from fastmed.spec import AXES, Label, Spec
from fastmed.volume import Volume

SCAN = Spec(
    name="s",
    task="classification",
    labels=(Label(1, "nodule"),),
    spacing_mm_zyx=(4.0, 3.0, 2.0),
    window_hu=(-1000.0, 400.0),
)
SIZED = replace(SCAN, spacing_mm_zyx=None, size_zyx=(24, 32, 40))
LUNGS = replace(SCAN, region="lungs")
LUNGS_SIZED = replace(SIZED, region="lungs")


@pytest.mark.parametrize("spec", [SCAN, SIZED, LUNGS, LUNGS_SIZED], ids=["mm", "n", "lung", "l n"])
@pytest.mark.parametrize("name", ["upright", "flipped", "sagittal", "tilted"])
def test_the_grid_has_the_specs_spacing_or_size_and_the_patients_axes(spec, name):
    grid = grid_geometry(scan_of(GEOMETRIES[name]), spec)
    if spec.size_zyx:
        assert grid.shape_zyx == spec.size_zyx
    else:
        assert grid.spacing_mm_zyx == pytest.approx(spec.spacing_mm_zyx)
    assert not grid.is_sheared
    assert (np.diag(grid.directions[:, ::-1]) > 0.9).all()
    low, high = corners_lps_mm(grid)
    if spec.region == "lungs":
        np.testing.assert_allclose((low, high), np.add(LUNG_LPS_MM, [[-5], [5]]), atol=5)


def test_a_sized_grid_over_a_scan_is_the_scan_resized():
    volume = scan_of(GEOMETRIES["upright"])
    image, grid = to_grid(volume, SIZED)
    assert image.shape == SIZED.size_zyx
    np.testing.assert_allclose(corners_lps_mm(grid), corners_lps_mm(volume.geometry), atol=1e-6)


def test_the_window_is_the_specs_whatever_the_scan_holds():
    """Never min-max: twice the contrast in the scan is twice the contrast on the grid."""
    geometry = Geometry.from_spacing((4, 6, 8), (4.0, 3.0, 2.0))
    hu = np.random.default_rng(1).integers(-900, -700, geometry.shape_zyx).astype(np.int16)
    image, _ = to_grid(Volume(hu, geometry), SCAN)
    torch.testing.assert_close(image, torch.from_numpy((hu + 1000) / 1400).float())


def test_outside_the_scan_around_the_lungs_stands_what_the_spec_says():
    """A box of a tilted scan leaves the scan at its corners; an upright one hardly does."""
    volume = scan_of(GEOMETRIES["tilted"])
    short = replace(
        volume,
        voxels=volume.voxels[40:60],
        geometry=volume.geometry.crop((40, 0, 0), (20, *volume.voxels.shape[1:])),
    )
    spec = replace(LUNGS, outside_hu=-300.0)
    image, grid = to_grid(short, spec)
    at = short.geometry.to_index(grid.to_world(np.moveaxis(np.indices(grid.shape_zyx), 0, -1)))
    outside = ((at < -1) | (at > np.array(short.geometry.shape_zyx))).any(axis=-1)
    assert outside.any()
    np.testing.assert_allclose(image.numpy()[outside], 0.5)


def test_unknown_spacing_is_refused_where_the_spec_needs_mm_and_taken_where_it_does_not():
    volume = Volume(
        np.zeros((4, 6, 8), np.int16),
        Geometry.from_spacing((4, 6, 8), (1, 1, 1)),
        spacing_is_known=False,
    )
    with pytest.raises(SeriesError, match=r'put \{"spacing_mm_zyx": \[z, y, x\]\} into a .json'):
        to_grid(volume, SCAN)
    assert to_grid(volume, SIZED)[0].shape == SIZED.size_zyx


DIRECTIONS = {
    "S": (0, 0, 1), "I": (0, 0, -1), "P": (0, 1, 0),
    "A": (0, -1, 0), "L": (1, 0, 0), "R": (-1, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("axes", ["SPL", "RAS", "LPS", "IAR", "PLS"])
@pytest.mark.parametrize("name", ["upright", "flipped", "sagittal", "tilted"])
@pytest.mark.parametrize("sized", [False, True])
def test_axes_run_where_the_spec_says(axes, name, sized):
    """The same voxels as of the patient's axes, in another order: sizes and spacings with them."""
    volume = scan_of(GEOMETRIES[name])
    order = [next(k for k, pair in enumerate(AXES) if a in pair) for a in axes]
    values = {"SPL": (4.0, 3.0, 2.0), "sizes": (24, 32, 40)}
    spec = replace(SIZED if sized else SCAN, axes=axes)
    if sized:
        spec = replace(spec, size_zyx=tuple(values["sizes"][k] for k in order))
    else:
        spec = replace(spec, spacing_mm_zyx=tuple(values["SPL"][k] for k in order))
    plain, plain_grid = to_grid(volume, SIZED if sized else SCAN)
    image, grid = to_grid(volume, spec)
    for direction, letter in zip(grid.directions, axes, strict=True):
        assert direction @ DIRECTIONS[letter] > 0.9
    if not sized:
        assert grid.spacing_mm_zyx == pytest.approx(spec.spacing_mm_zyx)
    backwards = [k for k, letter in enumerate(axes) if letter in "IAR"]
    torch.testing.assert_close(image, plain.permute(order).flip(backwards), atol=1e-5, rtol=0)
    assert grid.along_patient().shape_zyx == plain_grid.shape_zyx
    np.testing.assert_allclose(grid.along_patient().affine, plain_grid.affine, atol=1e-9)


@pytest.mark.parametrize("axes", ["SP", "SPX", "SIL", "spl", "SPLR"])
def test_axes_that_are_none_are_named(axes):
    with pytest.raises(ValueError, match=f"axes '{axes}': expected one letter of S or I"):
        replace(SCAN, axes=axes)
