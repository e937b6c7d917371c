"""SSD3D: boxes of small things in 3D, by default boxes on a feature pyramid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmed.models.blocks import check_counts, check_input

_BACKGROUND_AT_FIRST = 0.99
_STRIDES = (2, 4, 8, 16, 32)
_SMALLEST = 3  # of one value GroupNorm of one channel has no variance


class SSD3D(nn.Module):
    """A small single-shot detector: residual stages, a feature pyramid, heads that levels share.

    Takes [B, in_channels, D, H, W] float with D, H, W of at least 3, any of them odd, and returns
    [B, N, 6 + num_classes]: for each default box its code and its logits, ordered as
    `fastmed.boxes.default_boxes` lays them for these strides. Raises ValueError for other shapes.

    num_classes: with the background, class 0.
    base_channels: width n at stride 2, a multiple of 8 (GroupNorm of 8 groups); stride 4 has 2n,
        the deeper ones 4n.
    strides: of the levels that answer, rising powers of 2 from 2 to 32.
    boxes_per_place: default boxes at each place of a level.
    pyramid_channels: width of the pyramid and of the heads, a multiple of 8; None makes it 4n. At
        stride 2 the heads are most of the work, which 2n makes a quarter.

    A feature of stride s lies in the middle of the s voxels that it sums up: each halving is a
    convolution of kernel 2, so that mirrored scans have mirrored answers to learn.

    Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016; Lin et al., "Feature
    Pyramid Networks", CVPR 2017, and "Focal Loss for Dense Object Detection", ICCV 2017 (the heads
    and how they begin); He et al., "Deep Residual Learning", CVPR 2016.
    """

    dimensions = 3

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 16,
        strides: Sequence[int] = (4, 8, 16),
        boxes_per_place: int = 2,
        pyramid_channels: int | None = None,
    ):
        super().__init__()
        check_counts(in_channels=in_channels, boxes_per_place=boxes_per_place)
        n, pyramid = (
            base_channels,
            4 * base_channels if pyramid_channels is None else pyramid_channels,
        )
        for name, width in (("base_channels", n), ("pyramid_channels", pyramid)):
            if width < 8 or width % 8:
                raise ValueError(
                    f"{name} {width}: expected a multiple of 8 (GroupNorm of 8 groups)"
                )
        if num_classes < 2:
            raise ValueError(f"num_classes {num_classes}: expected at least 2, with the background")
        strides = tuple(strides)
        if not strides or list(strides) != sorted({*strides} & {*_STRIDES}):
            raise ValueError(f"strides {strides}: expected some of {_STRIDES}, rising")
        self.in_channels, self.boxes_per_place, self.strides = in_channels, boxes_per_place, strides
        halvings = _STRIDES.index(strides[-1]) + 1
        widths = [in_channels, n, 2 * n, *[4 * n] * 3][: halvings + 1]
        self.stages = nn.ModuleList(
            _Stage(widths[k], widths[k + 1], blocks=2 if k else 1) for k in range(halvings)
        )
        self.shallowest = _STRIDES.index(strides[0])
        self.laterals = nn.ModuleList(
            nn.Conv3d(width, pyramid, 1) for width in widths[1:][self.shallowest :]
        )
        self.answering = [_STRIDES.index(s) - self.shallowest for s in strides]
        self.head = nn.Sequential(*_tower(pyramid), *_tower(pyramid))
        self.answer = nn.Conv3d(pyramid, boxes_per_place * (6 + num_classes), 3, padding=1)
        self._initialise(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.in_channels, _SMALLEST)
        levels = [self.answer(self.head(feature)) for feature in self.features(x)]
        return torch.cat([self._flat(level) for level in levels], 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the pyramid's feature of each stride, [B, pyramid_channels, *sizes / stride]."""
        bottom_up = []
        for stage in self.stages:
            x = stage(x)
            bottom_up.append(x)
        skips = bottom_up[self.shallowest :]
        pyramid = [lateral(skip) for lateral, skip in zip(self.laterals, skips, strict=True)]
        for level in reversed(range(len(pyramid) - 1)):
            size = pyramid[level].shape[2:]
            # To the nearest is each value twice along an axis, the last once where it is odd.
            pyramid[level] = pyramid[level] + F.interpolate(pyramid[level + 1], size)
        return [pyramid[level] for level in self.answering]

    def _flat(self, level: Tensor) -> Tensor:
        """[B, boxes * values, d, h, w] as [B, d * h * w * boxes, values]."""
        boxes = level.unflatten(1, (self.boxes_per_place, -1))
        return boxes.permute(0, 3, 4, 5, 1, 2).flatten(1, 4)

    def _initialise(self, num_classes: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and module is not self.answer:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.answer.weight, std=0.01)
        odds = _BACKGROUND_AT_FIRST / (1 - _BACKGROUND_AT_FIRST)
        first = torch.zeros(self.boxes_per_place, 6 + num_classes)
        first[:, 6] = math.log(odds * (num_classes - 1))
        with torch.no_grad():
            self.answer.bias.copy_(first.flatten())


class _Stage(nn.Sequential):
    """Halves each size, rounding up, then residual blocks."""

    def __init__(self, in_channels: int, width: int, blocks: int):
        super().__init__(_Halve(in_channels, width), *(_Block(width) for _ in range(blocks)))


class _Halve(nn.Module):
    """A convolution of kernel and stride 2, of an odd size with a plane of zeros behind it."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, width, 2, stride=2, bias=False)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        # An even size does not reach the plane; a free one, whose size nobody knows, has it always.
        if torch.compiler.is_compiling() or any(n % 2 for n in x.shape[2:]):
            x = F.pad(x, (0, 1, 0, 1, 0, 1))
        return F.relu(self.norm(self.conv(x)), inplace=True)


class _Block(nn.Module):
    """Two 3 x 3 x 3 convolutions with GroupNorm beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.norm1 = _conv(width, width), nn.GroupNorm(8, width)
        self.conv2, self.norm2 = _conv(width, width), nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + x, inplace=True)


def _tower(width: int) -> tuple[nn.Module, ...]:
    return _conv(width, width), nn.GroupNorm(8, width), nn.ReLU(inplace=True)


def _conv(in_channels: int, width: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, width, 3, padding=1, bias=False)
