"""Profiles: the shapes of tiles that a TensorRT engine is built for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastmed.errors import SeriesError
from fastmed.inference.engines.protocol import CUDA_BATCHES
from fastmed.spec import Spec

Shape = tuple[int, ...]
_SMALLEST = 16  # voxels along an axis: what every network of the package takes


@dataclass(frozen=True)
class Profile:
    """Shapes from `smallest` to `largest`, fastest at `usual`; [B, C, sizes] each."""

    smallest: Shape
    usual: Shape
    largest: Shape

    @classmethod
    def of_one(cls, shape: Shape) -> Profile:
        return cls(shape, shape, shape)

    @property
    def is_static(self) -> bool:
        return self.smallest == self.largest

    def holds(self, shape: Shape) -> bool:
        bounds = zip(self.smallest, shape, self.largest, strict=True)
        return all(low <= size <= high for low, size, high in bounds)

    def __str__(self) -> str:
        low, high = (" x ".join(map(str, end)) for end in (self.smallest, self.largest))
        return low if self.is_static else f"{low} to {high}"


class ProfileChooser:
    """Says for each shape of tiles which profile runs it.

    The spec's tile (where it names none, whatever comes first) has a profile of its own, with as
    many tiles as have been seen at once. All else shares one profile, which reaches from one
    small tile to the usual batch of the spec's, and further once something larger has come.

    axes: of the network's input, None where free.
    """

    def __init__(self, spec: Spec, axes: Sequence[int | None]):
        sizes = spec.tile_zyx or spec.size_zyx
        self._axes = tuple(axes)
        self._sizes = None if sizes is None else tuple(sizes[-spec.dimensions :])
        self._floor = max(spec.size_multiple, _SMALLEST)
        self._batch = CUDA_BATCHES[spec.dimensions]
        self._fixed: Profile | None = None
        self._shared: Profile | None = None

    def choose(self, shape: Shape) -> Profile:
        """The profile for tiles [B, C, sizes]; SeriesError where the network cannot take them."""
        if not self._takes(shape):
            wanted = ", ".join("any" if axis is None else str(axis) for axis in self._axes)
            raise SeriesError(
                f"the network takes images [{wanted}] and was given {list(shape)}; check [tiles] "
                "and [grid] in bundle.toml"
            )
        if self._is_new_fixed(shape):
            self._fixed = Profile.of_one(shape)
        if self._fixed is not None and self._fixed.holds(shape):
            return self._fixed
        if self._shared is None or not self._shared.holds(shape):
            self._shared = self._widened(shape)
        return self._shared

    def _takes(self, shape: Shape) -> bool:
        return len(shape) == len(self._axes) and all(
            axis in (None, size) for axis, size in zip(self._axes, shape, strict=True)
        )

    def _is_new_fixed(self, shape: Shape) -> bool:
        if self._fixed is None:
            return self._sizes in (None, shape[2:])
        usual = self._fixed.usual
        return shape[1:] == usual[1:] and shape[0] > usual[0]

    def _widened(self, shape: Shape) -> Profile:
        usual = (self._batch, shape[1], *(self._sizes or shape[2:]))
        seen = [shape, usual] + ([self._shared.largest] if self._shared else [])
        floor = (1, shape[1], *(self._floor for _ in shape[2:]))
        low = [shape, usual, floor] + ([self._shared.smallest] if self._shared else [])
        smallest, largest = tuple(map(min, *low)), tuple(map(max, *seen))

        def fitted(sizes: Shape) -> Shape:
            pairs = zip(self._axes, sizes, strict=True)
            return tuple(size if axis is None else axis for axis, size in pairs)

        return Profile(fitted(smallest), fitted(largest), fitted(largest))
