"""UNet3d: the liver pipeline's network."""

from torch import Tensor, nn

from fastmed.models.blocks import DoubleConv3d, Down3d, Up3d


class UNet3d(nn.Module):
    """A 3D U-Net of widths n, 2n, 4n, 8n, 8n (n = base_channels, a multiple of 8).

    Takes [B, in_channels, D, H, W] float with D, H, W of at least 16 (four halvings), any of them
    odd, and returns logits [B, num_classes, D, H, W].

    up: "trilinear" or "transpose", how the decoder doubles its features.

    Source: Cicek et al., "3D U-Net", MICCAI 2016, with GroupNorm (Wu and He, ECCV 2018).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 24,
        up: str = "trilinear",
    ):
        super().__init__()
        n = base_channels
        if n < 8 or n % 8:
            raise ValueError(f"base_channels {n}: expected a multiple of 8 (GroupNorm of 8 groups)")
        self.stem = DoubleConv3d(in_channels, n)
        self.down1 = Down3d(n, 2 * n)
        self.down2 = Down3d(2 * n, 4 * n)
        self.down3 = Down3d(4 * n, 8 * n)
        self.down4 = Down3d(8 * n, 8 * n)
        self.up1 = Up3d(8 * n, 8 * n, 4 * n, up)
        self.up2 = Up3d(4 * n, 4 * n, 2 * n, up)
        self.up3 = Up3d(2 * n, 2 * n, n, up)
        self.up4 = Up3d(n, n, n, up)
        self.head = nn.Conv3d(n, num_classes, 1)

    def features(self, x: Tensor) -> Tensor:
        """Returns what the head sees, [B, base_channels, D, H, W]."""
        x1 = self.stem(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        deep = self.down4(x4)
        return self.up4(self.up3(self.up2(self.up1(deep, x4), x3), x2), x1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
