"""Tilted and uneven series: each voxel of each original slice at its true place in the patient."""

import numpy as np
import pydicom
import pytest
import scans as make

from fastmed.geometry import Geometry
from fastmed.readers.index import index, read_series
from fastmed.volume import Volume

GRADIENT = np.array([1.5, -2.0, 3.0])  # HU per mm along x, y, z


def field_hu(world_lps_mm):
    """HU that rise evenly through space, so that linear interpolation loses nothing."""
    return np.asarray(world_lps_mm) @ GRADIENT


def places_of(dataset) -> np.ndarray:
    """LPS mm [rows, columns, 3] of all pixels of one slice, by the standard's own formula."""
    along, down = np.reshape(np.array(dataset.ImageOrientationPatient, float), (2, 3))
    step_y, step_x = map(float, dataset.PixelSpacing)
    rows, columns = np.mgrid[: dataset.Rows, : dataset.Columns]
    origin = np.array(dataset.ImagePositionPatient, float)
    return origin + columns[..., None] * step_x * along + rows[..., None] * step_y * down


def write_field(folder, depths_mm, tilt_degrees) -> None:
    """Slices of the field at these depths along the table, the gantry leaning along y."""
    lean = np.radians(tilt_degrees)
    for k, depth in enumerate(depths_mm):
        axes = [(0, 0, 1), (0, 0.8 * np.cos(lean), -0.8 * np.sin(lean)), (0.7, 0, 0)]
        grid = Geometry.from_axes((1, 20, 24), (-30.0, -20.0, -100.0 + depth), axes)
        hu = field_hu(grid.to_world(np.moveaxis(np.indices((1, 20, 24)), 0, -1)))
        stored = np.rint((hu + 1024) * 10).astype(np.int16)
        (file,) = make.series(folder / f"{k}", Volume(stored, grid, 0.1, -1024.0))
        make.edit(file, SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2")
        file.rename(folder / f"{k}.dcm")
        (folder / f"{k}").rmdir()


@pytest.mark.parametrize("tilt", [0.0, 18.5, -25.0])
@pytest.mark.parametrize(
    "depths",
    [
        pytest.param(2.0 * np.arange(8), id="uniform"),
        pytest.param([0, 1.1, 2.2, 6.4, 10.6, 18, 25.4], id="uneven"),
        pytest.param([0, 2, 4, 8, 10, 12, 14], id="missing"),
    ],
)
def test_the_volume_is_the_field_at_its_own_geometry(depths, tilt, tmp_path):
    write_field(tmp_path, depths, tilt)
    (entry,) = index(tmp_path, strict=False)
    assert ("tilted" in entry.conditions) == (tilt != 0)
    volume = read_series(entry)
    indices = np.moveaxis(np.indices(volume.voxels.shape), 0, -1)
    off_mm = 0.1  # a slice may lie so far off the plane that it is taken to be on
    tolerance = 0.1 + off_mm * np.abs(GRADIENT).max()
    assert np.abs(volume.hu() - field_hu(volume.geometry.to_world(indices))).max() < tolerance


@pytest.mark.parametrize("tilt", [0.0, 18.5])
def test_every_pixel_of_every_original_slice_is_found_at_its_true_place(tilt, tmp_path):
    write_field(tmp_path, [0, 1.1, 2.2, 6.4, 10.6, 18, 25.4], tilt)
    (entry,) = index(tmp_path, strict=False)
    assert_every_pixel_in_place(read_series(entry), tmp_path)


def test_every_pixel_of_the_real_tilted_head_is_found_at_its_true_place(scans):
    (entry,) = index(scans / "ct-head-tilt-dicom", strict=False)
    assert entry.conditions == ("tilted", "uneven")
    assert_every_pixel_in_place(read_series(entry), scans / "ct-head-tilt-dicom")


def assert_every_pixel_in_place(volume: Volume, folder) -> None:
    by_uid = {at.sop_instance_uid: at.z_index for at in volume.slices}
    step_mm = volume.geometry.spacing_mm_zyx[0]
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    assert len(by_uid) == len(files)
    for file in files:
        dataset = pydicom.dcmread(file)
        z_index = by_uid[dataset.SOPInstanceUID]
        found = volume.geometry.to_index(places_of(dataset))
        rows, columns = np.mgrid[: dataset.Rows, : dataset.Columns]
        assert np.abs(found[..., 0] - z_index).max() * step_mm < 0.1
        np.testing.assert_allclose(found[..., 1], rows, atol=0.15)
        np.testing.assert_allclose(found[..., 2], columns, atol=0.15)
        if z_index == int(z_index):
            hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            inside = dataset.pixel_array != dataset.get("PixelPaddingValue")
            np.testing.assert_allclose(
                volume.hu()[int(z_index)][inside], hu[inside], rtol=0, atol=1e-3
            )
