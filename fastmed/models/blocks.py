"""The parts that U-Nets are made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DoubleConv3d(nn.Sequential):
    """Twice: 3 x 3 x 3 convolution with bias, GroupNorm of 8 groups, ReLU. Keeps the size."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.GroupNorm(8, out_channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            nn.GroupNorm(8, out_channels),
            nn.ReLU(inplace=True),
        )


class Down3d(nn.Sequential):
    """Halves each size, rounding down (max pooling), then a DoubleConv3d."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.MaxPool3d(2), DoubleConv3d(in_channels, out_channels))


class Up3d(nn.Module):
    """Doubles the deep feature, pads it to the skip's size, joins both, then a DoubleConv3d.

    deep_channels, skip_channels: widths of the two inputs.
    up: "trilinear" (align_corners=True) or "transpose" (a learnt 2 x 2 x 2 kernel, stride 2).
    """

    def __init__(self, deep_channels: int, skip_channels: int, out_channels: int, up: str):
        super().__init__()
        if up == "trilinear":
            self.up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)
        elif up == "transpose":
            self.up = nn.ConvTranspose3d(deep_channels, deep_channels, 2, stride=2)
        else:
            raise ValueError(f"up {up!r}: expected 'trilinear' or 'transpose'")
        self.conv = DoubleConv3d(skip_channels + deep_channels, out_channels)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        deep = self.up(deep)
        z, y, x = (skip.shape[axis] - deep.shape[axis] for axis in (2, 3, 4))
        # Max pooling drops at most the last plane of an odd size, so there is one to give back.
        deep = F.pad(deep, (0, x, 0, y, 0, z))
        return self.conv(torch.cat([skip, deep], dim=1))
