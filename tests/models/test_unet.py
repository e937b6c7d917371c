"""UNet3d is the network that the liver pipeline defines."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastmed import models


class Plain(nn.Module):
    """The same network written out from its description, without a part of fastmed in it.

    Widths n, 2n, 4n, 8n, 8n. A stage is twice a 3 x 3 x 3 convolution with bias, GroupNorm of 8
    and ReLU; going down starts with a max pooling of 2. Going up doubles the deep feature, pads it
    to the skip's size and joins [skip, up]: 16n -> 4n, 8n -> 2n, 4n -> n, 2n -> n.
    """

    def __init__(self, in_channels, num_classes, n, up):
        super().__init__()
        self.down = nn.ModuleList(
            self.double(a, b)
            for a, b in (
                (in_channels, n),
                (n, 2 * n),
                (2 * n, 4 * n),
                (4 * n, 8 * n),
                (8 * n, 8 * n),
            )
        )
        self.up = nn.ModuleList(
            nn.ModuleList([self.grow(deep, up), self.double(joined, out)])
            for deep, joined, out in (
                (8 * n, 16 * n, 4 * n), (4 * n, 8 * n, 2 * n), (2 * n, 4 * n, n), (n, 2 * n, n),
            )
        )  # fmt: skip
        self.head = nn.Conv3d(n, num_classes, 1)

    @staticmethod
    def grow(channels, up):
        if up == "transpose":
            return nn.ConvTranspose3d(channels, channels, 2, stride=2)
        return nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)

    @staticmethod
    def double(a, b):
        return nn.Sequential(
            nn.Conv3d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.ReLU(),
            nn.Conv3d(b, b, 3, padding=1), nn.GroupNorm(8, b), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        skips = [self.down[0](x)]
        for stage in self.down[1:]:
            skips.append(stage(F.max_pool3d(skips[-1], 2)))
        deep = skips.pop()
        for grow, join in self.up:
            skip, deep = skips.pop(), grow(deep)
            pad = [n for axis in (4, 3, 2) for n in (0, skip.shape[axis] - deep.shape[axis])]
            deep = join(torch.cat([skip, F.pad(deep, pad)], dim=1))
        return self.head(deep)


def with_same_weights(network: nn.Module, plain: nn.Module) -> None:
    """Both list their parameters from the input to the output, so that they match in order."""
    ours, theirs = list(network.parameters()), list(plain.parameters())
    assert [tuple(p.shape) for p in ours] == [tuple(p.shape) for p in theirs]
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            mine.copy_(torch.randn(mine.shape) * 0.1)
            other.copy_(mine)


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 31, 33), (23, 16, 47)], ids=str)
@pytest.mark.parametrize("up", ["trilinear", "transpose"])
def test_unet3d_computes_what_its_description_says(up, size):
    torch.manual_seed(0)
    network = models.build("unet3d", in_channels=2, num_classes=3, base_channels=8, up=up)
    plain = Plain(2, 3, 8, up)
    with_same_weights(network, plain)
    image = torch.randn(2, 2, *size)
    with torch.inference_mode():
        logits = network(image)
        assert logits.shape == (2, 3, *size)
        torch.testing.assert_close(logits, plain(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "thousands"),
    [({"base_channels": 8}, 629), ({}, 5651), ({"base_channels": 8, "up": "transpose"}, 673)],
    ids=str,
)
def test_unet3d_has_the_size_promised(arguments, thousands):
    network = models.build("unet3d", **arguments)
    assert round(sum(p.numel() for p in network.parameters()) / 1000) == thousands


def test_features_are_what_the_head_sees():
    network = models.build("unet3d", base_channels=8).eval()
    image = torch.rand(1, 1, 16, 16, 17)
    with torch.inference_mode():
        features = network.features(image)
        assert features.shape == (1, 8, 16, 16, 17)
        torch.testing.assert_close(network.head(features), network(image))


def test_every_weight_takes_part_in_the_output():
    network = models.build("unet3d", base_channels=8, up="transpose")
    network(torch.rand(1, 1, 17, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("unet4d", {}, ValueError, "network 'unet4d' is unknown; known are unet3d"),
        ("unet3d", {"base_channels": 12}, ValueError, "base_channels 12: expected a multiple of 8"),
        ("unet3d", {"base_channels": 0}, ValueError, "base_channels 0"),
        ("unet3d", {"up": "nearest"}, ValueError, "up 'nearest': expected 'trilinear'"),
        ("unet3d", {"depth": 4}, TypeError, "depth"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(name, arguments, error, words):
    with pytest.raises(error, match=words):
        models.build(name, **arguments)
