"""Clean-up: what a spec asks to be done to a label map after segmentation."""

from __future__ import annotations

import numpy as np

from fastmed.spec import Spec

_TOUCHING = np.ones((3, 3, 3), bool)  # 26 neighbours


def clean(labels: np.ndarray, spec: Spec, voxel_volume_ml: float) -> np.ndarray:
    """Cleans a label map as `spec.clean_up` says.

    labels: [D, H, W] integers, left as they are; values other than the spec's labels stay.
    voxel_volume_ml: of the labels' grid, in ml.

    Per label, in this order and each where it is asked for: all but its largest piece (26
    neighbours) become background, of equals the one whose first voxel comes first stays; the
    background that it encloses becomes the label, in 3D, or slice by slice where D is 1 or the
    spec is of 2 dimensions; its pieces of less than `smallest_ml` become background. What is open
    to the border of the grid is not enclosed. No label ever takes a voxel from another; of nested
    labels the inner one fills its holes first.

    Returns the labels, of the same dtype: a new array, or `labels` itself where nothing is asked.
    """
    wanted = spec.clean_up
    if wanted.is_off:
        return labels
    cleaned = labels.copy()
    values = [label.value for label in spec.labels]
    if wanted.largest_component:
        for value, box in _boxes(cleaned, values):
            _keep_largest(cleaned[box], value)
    if wanted.fill_holes:
        in_plane = spec.dimensions == 2 or labels.shape[0] == 1
        inner_first = sorted(_boxes(cleaned, values), key=lambda found: _size(found[1]))
        for value, box in inner_first:
            _fill(cleaned[box], value, in_plane)
    if wanted.smallest_ml > 0:
        for value, box in _boxes(cleaned, values):
            _drop_small(cleaned[box], value, wanted.smallest_ml / voxel_volume_ml)
    return cleaned


def _boxes(labels: np.ndarray, values: list[int]) -> list[tuple[int, tuple[slice, ...]]]:
    """The smallest box around each label that is there."""
    from scipy import ndimage

    found = ndimage.find_objects(labels, max_label=max(values))
    return [(value, found[value - 1]) for value in values if found[value - 1] is not None]


def _size(box: tuple[slice, ...]) -> int:
    return int(np.prod([piece.stop - piece.start for piece in box]))


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the connected pieces of a mask 1, 2, ... by their first voxels; with their sizes."""
    from scipy import ndimage

    pieces, _ = ndimage.label(mask, _TOUCHING)
    sizes = np.bincount(pieces.reshape(-1))
    sizes[0] = 0
    return pieces, sizes


def _keep_largest(box: np.ndarray, value: int) -> None:
    pieces, sizes = _pieces(box == value)
    if len(sizes) > 2:
        box[(pieces > 0) & (pieces != sizes.argmax())] = 0


def _drop_small(box: np.ndarray, value: int, smallest_voxels: float) -> None:
    pieces, sizes = _pieces(box == value)
    small = sizes < smallest_voxels * (1 - 1e-9)  # 10 voxels of 0.1 ml are 1 ml
    small[0] = False
    if small.any():
        box[small[pieces]] = 0


def _fill(box: np.ndarray, value: int, in_plane: bool) -> None:
    """Fills what no path over faces leads out of, in the label's own box."""
    from scipy import ndimage

    faces = ndimage.generate_binary_structure(3, 1)
    if in_plane:
        faces[[0, 2]] = False
    regions, count = ndimage.label(box != value, faces)
    is_open = np.zeros(count + 1, bool)
    is_open[0] = True  # the label itself
    for axis in (1, 2) if in_plane else (0, 1, 2):
        for end in (0, -1):
            is_open[np.unique(regions.take(end, axis))] = True
    if not is_open.all():
        box[~is_open[regions] & (box == 0)] = value
