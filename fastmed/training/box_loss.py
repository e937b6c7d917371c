"""The loss of a detection: default boxes belong to a size, of a patch or of a tile."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastmed import losses
from fastmed.boxes import SSD300_PER_LEVEL, boxes_per_level
from fastmed.losses import Targets
from fastmed.spec import Spec
from fastmed.tasks.candidates import default_boxes_of

PREFIX = "detection_"
# What torchvision's ssd300_vgg16 is trained by.
_OF_SSD300 = {"matcher": "iou", "box_loss": "smooth_l1", "empty_negatives": 0}


def grid_defaults(spec: Spec, size_zyx: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Default boxes [N, 2K] of a grid of this size in its voxels, and how many each level has."""
    defaults = default_boxes_of(spec, tuple(size_zyx))
    if spec.dimensions == 2:
        return defaults, SSD300_PER_LEVEL
    found = spec.detection
    return defaults, boxes_per_level(size_zyx, found.strides, len(found.diameters_mm[0]))


class BoxLoss(nn.Module):
    """A loss of `fastmed.losses` by its name, for patches of one size and tiles of any.

    patch_zyx: voxels of a training patch. options: of the loss; those of a network of 2 dimensions,
    which is SSD300, begin as SSD300's.

    Called as every loss: output [B, N, 2K + classes] and the Targets of B samples. Raises
    ValueError or TypeError as `losses.build` does.
    """

    def __init__(self, name: str, spec: Spec, patch_zyx, **options):
        super().__init__()
        self.name, self._spec = name, spec
        self._options = (_OF_SSD300 if spec.dimensions == 2 else {}) | options
        self._tiles: dict[tuple[int, ...], nn.Module] = {}
        self.patch = self._built(tuple(patch_zyx))

    def forward(self, output: Tensor, targets: Sequence[Targets]) -> Tensor:
        return self.patch(output, targets)

    def of_tile(self, tile_zyx: Sequence[int], like: Tensor) -> nn.Module:
        """The loss of tiles of another size, on the device of `like`."""
        size = tuple(tile_zyx)
        if size not in self._tiles:
            self._tiles[size] = self._built(size)
        return self._tiles[size].to(like.device)

    def _built(self, size: tuple[int, ...]) -> nn.Module:
        defaults, per_level = grid_defaults(self._spec, size)
        return losses.build(
            self.name,
            num_classes=self._spec.num_classes,
            defaults=defaults,
            per_level=per_level,
            **self._options,
        )
