"""The parts that U-Nets are made of, in 2D and 3D, and the checks of what comes in."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


def pointwise(dimensions: int, in_channels: int, out_channels: int) -> nn.Module:
    """A convolution of kernel 1, with bias."""
    return _CONV[dimensions](in_channels, out_channels, 1)


class DoubleConv(nn.Sequential):
    """Twice: convolution of kernel 3 with bias, norm, ReLU. Keeps the size.

    The norm is BatchNorm in 2D; in 3D, where memory allows few scans per batch, GroupNorm of 8
    groups.
    """

    def __init__(self, dimensions: int, in_channels: int, out_channels: int):
        super().__init__(
            _CONV[dimensions](in_channels, out_channels, 3, padding=1),
            _norm(dimensions, out_channels),
            nn.ReLU(inplace=True),
            _CONV[dimensions](out_channels, out_channels, 3, padding=1),
            _norm(dimensions, out_channels),
            nn.ReLU(inplace=True),
        )


def _norm(dimensions: int, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if dimensions == 2 else nn.GroupNorm(8, channels)


class Down(nn.Sequential):
    """Halves each size, rounding down (max pooling), then a DoubleConv."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int):
        super().__init__(_POOL[dimensions](2), DoubleConv(dimensions, in_channels, out_channels))


class Up(nn.Module):
    """Doubles the deep feature, pads it to the skip's size, joins both, then a DoubleConv.

    deep_channels, skip_channels: widths of the two inputs.
    up: "bilinear" in 2D, "trilinear" in 3D (align_corners=True), or "transpose" (a learnt kernel
        of size and stride 2).
    """

    def __init__(
        self, dimensions: int, deep_channels: int, skip_channels: int, out_channels: int, up: str
    ):
        super().__init__()
        linear = LINEAR[dimensions]
        if up == linear:
            self.up = nn.Upsample(scale_factor=2, mode=linear, align_corners=True)
        elif up == "transpose":
            self.up = _TRANSPOSED[dimensions](deep_channels, deep_channels, 2, stride=2)
        else:
            raise ValueError(f"up {up!r}: expected {linear!r} or 'transpose'")
        self.conv = DoubleConv(dimensions, skip_channels + deep_channels, out_channels)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        deep = self.up(deep)
        # Max pooling drops at most the last plane of an odd size, so there is one to give back.
        missing = [skip.shape[axis] - deep.shape[axis] for axis in range(2, deep.dim())]
        deep = F.pad(deep, [side for n in reversed(missing) for side in (0, n)])
        return self.conv(torch.cat([skip, deep], dim=1))


def check_input(network: nn.Module, x: Tensor, in_channels: int, smallest: int) -> None:
    """Raises ValueError unless x is [B, in_channels, *sizes] with sizes of at least `smallest`."""
    if torch.compiler.is_compiling():  # a free size has no value; its range is the exporter's
        return
    name, sizes = type(network).__name__, x.shape[2:]
    axes = ["D, H, W", "H, W"][network.dimensions == 2]
    if x.dim() != network.dimensions + 2 or x.shape[1] != in_channels:
        raise ValueError(f"{name}: expected [B, {in_channels}, {axes}], got {list(x.shape)}")
    if min(sizes) < smallest:
        raise ValueError(f"{name}: expected {axes} of at least {smallest}, got {list(sizes)}")


def check_batch_norm(network: nn.Module, x: Tensor, step: int, rounded) -> None:
    """Raises ValueError where BatchNorm in training has one value per channel: no variance.

    step: how many voxels along each axis the deepest feature makes one of, rounded by `rounded`.
    """
    if torch.compiler.is_compiling() or not network.training:
        return
    values = x.shape[0] * math.prod(rounded(n / step) for n in x.shape[2:])
    if values == 1:
        raise ValueError(
            f"{type(network).__name__}: BatchNorm cannot train on {list(x.shape)}, which leaves "
            "one value per channel; take a larger batch or size"
        )


def check_counts(**counts: int) -> None:
    """Raises ValueError for the first argument that is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} {count}: expected at least 1")
