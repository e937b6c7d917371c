"""Geometry: where the voxels of a scan are in the patient. The only file that indexes an affine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSE_AXES = np.eye(4)[[2, 1, 0, 3]]
_SHEAR_TOLERANCE = 1e-3  # cosine between axes: 0.06 degrees, 0.4 mm over a 400 mm scan


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in the patient's LPS millimetres.

    shape_zyx: voxels along z, y, x (slice, row, column).
    affine: [4, 4] float64 from a voxel index (z, y, x, 1), at voxel centres, to LPS (x, y, z, 1)
        in mm. It may be sheared, as a tilted gantry makes it.

    Raises ValueError where a size is below 1 or the affine is not finite and invertible.
    """

    shape_zyx: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape_zyx)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape_zyx {shape}: expected three sizes of at least 1")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"affine: expected a finite 4 x 4 matrix, got {affine.tolist()}")
        if np.abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ValueError(f"affine is singular, two axes coincide: {affine.tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "shape_zyx", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Geometry)
            and self.shape_zyx == other.shape_zyx
            and np.array_equal(self.affine, other.affine)
        )

    @classmethod
    def from_axes(cls, shape_zyx, origin_lps_mm, steps_lps_mm) -> Geometry:
        """Builds a geometry from the first voxel's centre and the LPS steps (mm) along z, y, x."""
        affine = np.eye(4)
        affine[:3, :3] = np.asarray(steps_lps_mm, dtype=np.float64).T
        affine[:3, 3] = origin_lps_mm
        return cls(tuple(shape_zyx), affine)

    @classmethod
    def from_spacing(cls, shape_zyx, spacing_mm_zyx, origin_lps_mm=(0.0, 0.0, 0.0)) -> Geometry:
        """Builds an axis-aligned geometry: x to the left, y to the back, z to the head."""
        z, y, x = spacing_mm_zyx
        return cls.from_axes(shape_zyx, origin_lps_mm, [(0, 0, z), (0, y, 0), (x, 0, 0)])

    @classmethod
    def from_ras_xyz(cls, shape_xyz, affine_ras_xyz) -> Geometry:
        """Builds a geometry from NIfTI's convention: index (i, j, k) = (x, y, z) to RAS mm."""
        affine = _LPS_RAS @ np.asarray(affine_ras_xyz, dtype=np.float64) @ _REVERSE_AXES
        return cls(tuple(shape_xyz)[::-1], affine)

    def to_ras_xyz(self) -> np.ndarray:
        """Returns the [4, 4] affine of NIfTI's convention, index (x, y, z) to RAS mm."""
        return _LPS_RAS @ self.affine @ _REVERSE_AXES

    @property
    def origin_lps_mm(self) -> np.ndarray:
        """Centre of voxel (0, 0, 0), LPS (x, y, z) in mm."""
        return self.affine[:3, 3]

    @property
    def steps_lps_mm(self) -> np.ndarray:
        """[3, 3]; row k is the LPS displacement in mm of one step along index axis k (z, y, x)."""
        return self.affine[:3, :3].T

    @property
    def spacing_mm_zyx(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxel centres along z, y, x."""
        return tuple(float(s) for s in np.linalg.norm(self.steps_lps_mm, axis=1))

    @property
    def directions(self) -> np.ndarray:
        """[3, 3]; row k is the LPS unit vector of index axis k (z, y, x)."""
        steps = self.steps_lps_mm
        return steps / np.linalg.norm(steps, axis=1, keepdims=True)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in cubic millimetres."""
        return float(np.abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def normal(self) -> np.ndarray:
        """Unit LPS vector across the slices, on the side of increasing z index."""
        step_z, step_y, step_x = self.steps_lps_mm
        normal = np.cross(step_x, step_y)
        normal /= np.linalg.norm(normal)
        return normal if normal @ step_z > 0 else -normal

    @property
    def tilt_degrees(self) -> float:
        """Angle between the slice stack and the slices' normal: the gantry tilt; 0 if upright."""
        cosine = float(np.clip(self.directions[0] @ self.normal, -1.0, 1.0))
        return float(np.degrees(np.arccos(cosine)))

    @property
    def is_sheared(self) -> bool:
        """Whether two index axes are not at right angles, beyond rounding in the headers."""
        z, y, x = self.directions
        return max(abs(z @ y), abs(z @ x), abs(y @ x)) > _SHEAR_TOLERANCE

    def to_world(self, index_zyx) -> np.ndarray:
        """Maps voxel indices [..., 3] (z, y, x) to LPS mm [..., 3] (x, y, z)."""
        index = np.asarray(index_zyx, dtype=np.float64)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world_lps_mm) -> np.ndarray:
        """Maps LPS mm [..., 3] (x, y, z) to fractional voxel indices [..., 3] (z, y, x)."""
        world = np.asarray(world_lps_mm, dtype=np.float64)
        return (world - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def matrix_from(self, other: Geometry) -> np.ndarray:
        """Returns the [3, 4] float64 matrix from `other`'s voxel index (z, y, x, 1) to this one's.

        It is what `fastmed.ops.window_resample` takes to sample this grid at `other`'s voxels.
        Entries that move no voxel of `other` by a millionth of a voxel are set to zero, so that
        rounding does not hide an axis-aligned pair. All are multiples of 2**-34 voxel, so that the
        products and sums of float64 are exact: a piece of a grid, sampled from a piece of the
        scan, equals the same piece of the whole bit by bit.
        """
        matrix = (np.linalg.inv(self.affine) @ other.affine)[:3]
        matrix[:, :3][np.abs(matrix[:, :3]) * other.shape_zyx < 1e-6] = 0.0
        return np.rint(matrix * 2.0**34) / 2.0**34

    def slab(self, first_z: float, slices: int = 1) -> Geometry:
        """The same grid from (fractional) slice `first_z` on, `slices` slices deep."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world((first_z, 0.0, 0.0))
        return Geometry((slices, *self.shape_zyx[1:]), affine)

    def crop(self, first_zyx, size_zyx) -> Geometry:
        """The part of this grid that begins at (fractional) index `first_zyx`."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(first_zyx)
        return Geometry(tuple(size_zyx), affine)

    def resized(self, size_zyx) -> Geometry:
        """The same space, sheared as it is, divided into another number of voxels."""
        stretch = np.array(self.shape_zyx) / np.asarray(size_zyx)
        first = self.to_world((stretch - 1) / 2)
        return Geometry.from_axes(tuple(size_zyx), first, self.steps_lps_mm * stretch[:, None])

    def along_patient(self) -> Geometry:
        """The same voxels, axes reordered and flipped to run nearest to head, back and left."""
        return self._reordered(*_patient_order(self.directions))

    def along(self, axes: str) -> Geometry:
        """The same voxels, axes reordered and flipped to run as three letters say.

        axes: where index axes 0, 1 and 2 run to, as nearly as they can: one of S and I (head,
            feet), of P and A (back, front), of L and R. "SPL" is `along_patient`; MONAI's "RAS" has
            x first.
        """
        patient = self.along_patient()
        order = ["SPL".find(letter) if letter in "SPL" else "IAR".find(letter) for letter in axes]
        signs = np.array([1.0 if letter in "SPL" else -1.0 for letter in axes])
        return patient._reordered(order, signs)

    def _reordered(self, order: Sequence[int], signs: np.ndarray) -> Geometry:
        """The same voxels; axis k is this one's axis order[k], backwards where signs[k] < 0."""
        order, shape = list(order), np.array(self.shape_zyx)
        last = np.zeros(3)
        last[order] = np.where(signs < 0, shape[order] - 1, 0)
        steps = self.steps_lps_mm[order] * signs[:, None]
        return Geometry.from_axes(tuple(shape[order]), self.to_world(last), steps)

    def grid(self, spacing_mm_zyx) -> Geometry:
        """Lays a right-angled grid of the given spacing (mm along z, y, x) over this scan.

        Its axes are the scan's own, reordered and flipped so that z runs to the head, y to the
        back and x to the left as nearly as they can. A sheared scan gets the slice-stacking and
        the row axis with a third one across them, so that the grid stands upright in the patient,
        and is then large enough for every voxel; else it covers the scan to half a voxel.
        """
        spacing = np.asarray(spacing_mm_zyx, dtype=np.float64)
        axes, low, high = self._upright_box()
        voxels = (high - low) / spacing
        size = np.ceil(voxels - 1e-6) if self.is_sheared else np.rint(voxels)
        size = np.maximum(size, 1).astype(int)
        first = (low + high) / 2 - (size - 1) * spacing / 2
        return Geometry.from_axes(
            tuple(size), np.linalg.solve(axes, first), axes * spacing[:, None]
        )

    def grid_of_size(self, size_zyx) -> Geometry:
        """Lays a right-angled grid of the given size over this scan; its spacing follows.

        Its axes are those of `grid`. It covers the scan exactly, a sheared one with every voxel.
        """
        axes, low, high = self._upright_box()
        spacing = (high - low) / np.asarray(size_zyx)
        first = np.linalg.solve(axes, low + spacing / 2)
        return Geometry.from_axes(tuple(size_zyx), first, axes * spacing[:, None])

    def _upright_box(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Axes [3, 3] of a right-angled grid (rows), and the scan's low and high mm along them."""
        axes = self.directions.copy()
        if self.is_sheared:
            axes[2] -= (axes[2] @ axes[0]) * axes[0]
            axes[2] /= np.linalg.norm(axes[2])
            across = np.cross(axes[0], axes[2])
            axes[1] = across if across @ axes[1] > 0 else -across
        order, signs = _patient_order(axes)
        axes = axes[list(order)] * signs[:, None]
        corners = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in self.shape_zyx), indexing="ij"))
        along = self.to_world(corners.reshape(3, -1).T) @ axes.T
        return axes, along.min(axis=0), along.max(axis=0)


def _patient_order(axes: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Which of three unit vectors (rows) runs nearest to S, P and L, and the sign of each."""
    patient = np.array([(0, 0, 1), (0, 1, 0), (1, 0, 0)], dtype=np.float64)
    cosines = axes @ patient.T
    order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[k], k]) for k in range(3)))
    signs = np.where(np.sum(axes[list(order)] * patient, axis=1) < 0, -1.0, 1.0)
    return order, signs
