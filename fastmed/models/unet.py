"""UNet2d and UNet3d: the networks of the segmentation pipelines, of one description."""

import math

from torch import Tensor, nn

from fastmed.models.blocks import (
    LINEAR,
    DoubleConv,
    Down,
    Up,
    check_batch_norm,
    check_counts,
    check_input,
    pointwise,
)

SMALLEST = 16  # four halvings leave one voxel


class _UNet(nn.Module):
    """A U-Net of widths n, 2n, 4n, 8n, 8n with n = base_channels."""

    dimensions: int

    def __init__(self, in_channels: int, num_classes: int, base_channels: int, up: str):
        super().__init__()
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels)
        self.in_channels = in_channels
        d, n = self.dimensions, base_channels
        self.stem = DoubleConv(d, in_channels, n)
        self.down1 = Down(d, n, 2 * n)
        self.down2 = Down(d, 2 * n, 4 * n)
        self.down3 = Down(d, 4 * n, 8 * n)
        self.down4 = Down(d, 8 * n, 8 * n)
        self.up1 = Up(d, 8 * n, 8 * n, 4 * n, up)
        self.up2 = Up(d, 4 * n, 4 * n, 2 * n, up)
        self.up3 = Up(d, 2 * n, 2 * n, n, up)
        self.up4 = Up(d, n, n, n, up)
        self.head = pointwise(d, n, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Returns what the head sees, [B, base_channels, *sizes]."""
        check_input(self, x, self.in_channels, SMALLEST)
        if self.dimensions == 2:
            check_batch_norm(self, x, SMALLEST, math.floor)
        x1 = self.stem(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        deep = self.down4(x4)
        return self.up4(self.up3(self.up2(self.up1(deep, x4), x3), x2), x1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class UNet2d(_UNet):
    """A 2D U-Net of widths n, 2n, 4n, 8n, 8n (n = base_channels), with BatchNorm.

    Takes [B, in_channels, H, W] float with H, W of at least 16 (four halvings), any of them odd,
    and returns logits [B, num_classes, H, W]. One slice of less than 32 x 32 alone cannot train:
    BatchNorm needs two values per channel. Raises ValueError for other shapes.

    up: "bilinear" or "transpose", how the decoder doubles its features.

    Source: Ronneberger et al., "U-Net", MICCAI 2015, padded, with BatchNorm.
    """

    dimensions = 2

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 64,
        up: str = LINEAR[2],
    ):
        super().__init__(in_channels, num_classes, base_channels, up)


class UNet3d(_UNet):
    """A 3D U-Net of widths n, 2n, 4n, 8n, 8n (n = base_channels, a multiple of 8), with GroupNorm.

    Takes [B, in_channels, D, H, W] float with D, H, W of at least 16 (four halvings), any of them
    odd, and returns logits [B, num_classes, D, H, W]. Raises ValueError for other shapes.

    up: "trilinear" or "transpose", how the decoder doubles its features.

    Source: Cicek et al., "3D U-Net", MICCAI 2016, with GroupNorm (Wu and He, ECCV 2018).
    """

    dimensions = 3

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 24,
        up: str = LINEAR[3],
    ):
        n = base_channels
        if n < 8 or n % 8:
            raise ValueError(f"base_channels {n}: expected a multiple of 8 (GroupNorm of 8 groups)")
        super().__init__(in_channels, num_classes, base_channels, up)
