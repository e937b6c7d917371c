"""3D ResNets: a class for a whole scan."""

import math

import torch
from torch import Tensor, nn

from fastmed.models.blocks import check_batch_norm, check_counts, check_input


class BasicBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions, the first with the stride, beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1 x 1 x 1, 3 x 3 x 3 with the stride, 1 x 1 x 1 to four times the width; and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv3d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity, or where the shape changes a 1 x 1 x 1 convolution and BatchNorm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
    )


class ResNet3d(nn.Module):
    """A 3D ResNet of stage widths n, 2n, 4n, 8n (n = base_channels; Bottleneck: four times that).

    Takes [B, in_channels, D, H, W] float and returns logits [B, num_classes]. Any size runs; below
    32 the deepest feature is a single voxel, and one such scan alone cannot train, because
    BatchNorm needs two values per channel. Raises ValueError for other shapes.

    block: BasicBlock or Bottleneck; blocks: how many of them in each of the four stages.
    zero_init_last: start the last BatchNorm of each block at 0, so that every block begins as its
        shortcut (Goyal et al., 2017).

    Parameters are named as in torchvision's ResNets (conv1, layer1.0.conv1, downsample, fc).

    Source: He et al., "Deep Residual Learning", CVPR 2016, in 3D as Hara et al., CVPR 2018, with
    He et al.'s normal initialisation by fan-out (ICCV 2015).
    """

    dimensions = 3

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 64,
        zero_init_last: bool = False,
    ):
        super().__init__()
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels)
        self.in_channels = in_channels
        n = base_channels
        self.conv1 = nn.Conv3d(in_channels, n, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(n)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        grown = block.expansion
        self.layer1 = _stage(block, n, n, blocks[0], stride=1)
        self.layer2 = _stage(block, n * grown, 2 * n, blocks[1], stride=2)
        self.layer3 = _stage(block, 2 * n * grown, 4 * n, blocks[2], stride=2)
        self.layer4 = _stage(block, 4 * n * grown, 8 * n, blocks[3], stride=2)
        self.fc = nn.Linear(8 * n * grown, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_last and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)

    def features(self, x: Tensor) -> Tensor:
        """Returns the deepest feature, [B, channels, D / 32, H / 32, W / 32], sizes rounded up."""
        check_input(self, x, self.in_channels, smallest=1)
        check_batch_norm(self, x, 32, math.ceil)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: Tensor) -> Tensor:
        feature = self.features(x)
        # Thousands of voxels may leave fp16's range: in a lower precision they add up in float32.
        wide = torch.promote_types(feature.dtype, torch.float32)
        return self.fc(feature.mean(dim=(2, 3, 4), dtype=wide).to(feature.dtype))


def _stage(block, in_channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    first = block(in_channels, width, stride)
    rest = (block(width * block.expansion, width, 1) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def resnet3d_18(**arguments) -> ResNet3d:
    """ResNet3d of 2, 2, 2, 2 BasicBlocks; arguments: those of ResNet3d but for the blocks."""
    return ResNet3d(BasicBlock, (2, 2, 2, 2), **arguments)


def resnet3d_34(**arguments) -> ResNet3d:
    """ResNet3d of 3, 4, 6, 3 BasicBlocks; arguments: those of ResNet3d but for the blocks."""
    return ResNet3d(BasicBlock, (3, 4, 6, 3), **arguments)


def resnet3d_50(**arguments) -> ResNet3d:
    """ResNet3d of 3, 4, 6, 3 Bottlenecks; arguments: those of ResNet3d but for the blocks."""
    return ResNet3d(Bottleneck, (3, 4, 6, 3), **arguments)
