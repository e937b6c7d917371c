"""UNet2d and UNet3d are the network that the segmentation pipelines define."""

import pytest
import torch
from parity import with_same_weights
from torch import nn
from torch.nn import functional as F

from fastmed import models

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


class Plain(nn.Module):
    """The same network written out from its description, without a part of fastmed in it.

    Widths n, 2n, 4n, 8n, 8n. A stage is twice a convolution of 3 with bias, a norm (GroupNorm of 8
    in 3D, BatchNorm in 2D) and ReLU; going down starts with a max pooling of 2. Going up doubles
    the deep feature, pads it to the skip's size and joins [skip, up]: 16n -> 4n, 8n -> 2n,
    4n -> n, 2n -> n.
    """

    def __init__(self, dimensions, in_channels, num_classes, n, up):
        super().__init__()
        self.dimensions = dimensions
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
        self.head = CONV[dimensions](n, num_classes, 1)

    def grow(self, channels, up):
        if up == "transpose":
            return TRANSPOSED[self.dimensions](channels, channels, 2, stride=2)
        return nn.Upsample(scale_factor=2, mode=LINEAR[self.dimensions], align_corners=True)

    def double(self, a, b):
        conv = CONV[self.dimensions]
        norms = [nn.GroupNorm(8, b) if self.dimensions == 3 else nn.BatchNorm2d(b) for _ in "12"]
        return nn.Sequential(
            conv(a, b, 3, padding=1), norms[0], nn.ReLU(),
            conv(b, b, 3, padding=1), norms[1], nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        pool = F.max_pool2d if self.dimensions == 2 else F.max_pool3d
        skips = [self.down[0](x)]
        for stage in self.down[1:]:
            skips.append(stage(pool(skips[-1], 2)))
        deep = skips.pop()
        for grow, join in self.up:
            skip, deep = skips.pop(), grow(deep)
            axes = range(x.dim() - 1, 1, -1)
            pad = [n for axis in axes for n in (0, skip.shape[axis] - deep.shape[axis])]
            deep = join(torch.cat([skip, F.pad(deep, pad)], dim=1))
        return self.head(deep)


def test_the_plain_network_has_no_part_of_fastmed():
    assert all(
        type(module).__module__.startswith("torch.nn") or isinstance(module, Plain)
        for module in Plain(2, 1, 2, 8, "transpose").modules()
    )


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("unet3d", (16, 16, 16)), ("unet3d", (17, 31, 33)), ("unet3d", (23, 16, 47)),
        ("unet2d", (16, 16)), ("unet2d", (31, 33)), ("unet2d", (47, 65)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("up", ["linear", "transpose"])
def test_a_unet_computes_what_its_description_says(name, up, size, training):
    torch.manual_seed(0)
    up = LINEAR[len(size)] if up == "linear" else up
    network = models.build(name, in_channels=2, num_classes=3, base_channels=8, up=up)
    plain = Plain(len(size), 2, 3, 8, up)
    with_same_weights(network.train(training), plain.train(training))
    image = torch.randn(2, 2, *size)
    with torch.no_grad():
        logits = network(image)
        assert logits.shape == (2, 3, *size)
        torch.testing.assert_close(logits, plain(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("unet3d", {}, 5_650_538),
        ("unet3d", {"up": "transpose"}, 6_042_578),
        ("unet3d", {"base_channels": 8}, 628_986),
        ("unet2d", {}, 13_394_242),
        ("unet2d", {"up": "transpose"}, 14_787_842),
        ("unet2d", {"num_classes": 1}, 13_394_177),
    ],
    ids=str,
)
def test_a_unet_has_the_size_promised(name, arguments, parameters):
    assert sum(p.numel() for p in models.build(name, **arguments).parameters()) == parameters


@pytest.mark.parametrize(("name", "size"), [("unet3d", (16, 16, 17)), ("unet2d", (16, 33))])
def test_features_are_what_the_head_sees(name, size):
    network = models.build(name, base_channels=8).eval()
    image = torch.rand(1, 1, *size)
    with torch.inference_mode():
        features = network.features(image)
        assert features.shape == (1, 8, *size)
        torch.testing.assert_close(network.head(features), network(image))


@pytest.mark.parametrize(("name", "size"), [("unet3d", (17, 16, 16)), ("unet2d", (33, 32))])
def test_every_weight_takes_part_in_the_output(name, size):
    network = models.build(name, base_channels=8, up="transpose")
    network(torch.rand(1, 1, *size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_weights_saved_before_unet2d_came_still_fit():
    keys = list(models.build("unet3d", base_channels=8, up="transpose").state_dict())
    assert keys[:4] == ["stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"]
    for key in ("down1.1.0.weight", "down4.1.4.bias", "up1.up.weight", "up4.conv.3.bias"):
        assert key in keys
    assert keys[-2:] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("name", "size"), [("unet3d", (17, 32, 19)), ("unet2d", (33, 47))])
def test_channels_last_changes_the_memory_but_not_the_numbers(name, size, training):
    torch.manual_seed(0)
    network = models.build(name, base_channels=8, up="transpose").train(training)
    image = torch.rand(2, 1, *size)
    layout = torch.channels_last_3d if len(size) == 3 else torch.channels_last
    with torch.no_grad():
        expected = network(image)
        last = network.to(memory_format=layout).features(image.contiguous(memory_format=layout))
        assert last.is_contiguous(memory_format=layout)
        torch.testing.assert_close(network.head(last), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("unet4d", {}, ValueError, "network 'unet4d' is unknown; known are resnet3d_18, "),
        ("unet3d", {"base_channels": 12}, ValueError, "base_channels 12: expected a multiple of 8"),
        ("unet3d", {"base_channels": 0}, ValueError, "base_channels 0"),
        ("unet2d", {"base_channels": 0}, ValueError, "base_channels 0: expected at least 1"),
        ("unet2d", {"num_classes": 0}, ValueError, "num_classes 0: expected at least 1"),
        ("unet3d", {"in_channels": 0}, ValueError, "in_channels 0: expected at least 1"),
        ("unet3d", {"up": "bilinear"}, ValueError, "up 'bilinear': expected 'trilinear' or 'trans"),
        ("unet2d", {"up": "trilinear"}, ValueError, "up 'trilinear': expected 'bilinear' or 'tr"),
        ("unet3d", {"depth": 4}, TypeError, "depth"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(name, arguments, error, words):
    with pytest.raises(error, match=words):
        models.build(name, **arguments)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        (
            "unet3d",
            (1, 1, 16, 15, 16),
            r"UNet3d: expected D, H, W of at least 16, got \[16, 15",
        ),
        ("unet3d", (1, 1, 16, 16), r"UNet3d: expected \[B, 1, D, H, W\], got \[1, 1, 16, 16\]"),
        ("unet3d", (1, 2, 16, 16, 16), r"UNet3d: expected \[B, 1, D, H, W\], got \[1, 2,"),
        ("unet2d", (1, 1, 15, 40), r"UNet2d: expected H, W of at least 16, got \[15, 40\]"),
        ("unet2d", (1, 1, 31, 31), r"BatchNorm cannot train on \[1, 1, 31, 31\]"),
    ],
    ids=str,
)
def test_an_image_that_does_not_fit_is_named(name, shape, words):
    with pytest.raises(ValueError, match=words):
        models.build(name, base_channels=8)(torch.zeros(shape))


@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
def test_the_smallest_image_passes(name):
    network = models.build(name, base_channels=8).eval()
    size = [16] * network.dimensions
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, *size)).shape == (1, 2, *size)
    assert torch.isfinite(network.train()(torch.rand(2, 1, *size))).all()
