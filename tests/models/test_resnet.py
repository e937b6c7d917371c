"""The 3D ResNets are the networks that the classification pipeline defines."""

import pytest
import torch
from parity import with_same_weights
from torch import nn
from torch.nn import functional as F

from fastmed import models

BLOCKS = {"resnet3d_18": (2, 2, 2, 2), "resnet3d_34": (3, 4, 6, 3), "resnet3d_50": (3, 4, 6, 3)}


class Plain(nn.Module):
    """A 3D ResNet written out from its description, without a part of fastmed in it.

    Stem: convolution of 7 with stride 2, BatchNorm, ReLU, max pooling of 3 with stride 2. A basic
    block has two convolutions of 3, the first with the stride; a bottleneck has 1, 3 (with the
    stride), 1. Convolutions have no bias; each has a BatchNorm; ReLU between and after the sum with
    the shortcut, a convolution of 1 and BatchNorm where the shape changes. Global mean, linear.
    """

    def __init__(self, name, in_channels, num_classes, n):
        super().__init__()
        self.stem = nn.ModuleList([self.conv(in_channels, n, 7, 2), nn.BatchNorm3d(n)])
        self.blocks = nn.ModuleList()
        width = n
        for stage, count in enumerate(BLOCKS[name]):
            for index in range(count):
                stride = 2 if stage and not index else 1
                out = n * 2**stage * (4 if name == "resnet3d_50" else 1)
                self.blocks.append(self.block(name, width, n * 2**stage, out, stride))
                width = out
        self.fc = nn.Linear(width, num_classes)

    @staticmethod
    def conv(a, b, kernel, stride):
        return nn.Conv3d(a, b, kernel, stride, padding=kernel // 2, bias=False)

    def block(self, name, a, middle, b, stride):
        if name == "resnet3d_50":
            steps = [(a, middle, 1, 1), (middle, middle, 3, stride), (middle, b, 1, 1)]
        else:
            steps = [(a, middle, 3, stride), (middle, b, 3, 1)]
        main = [m for step in steps for m in (self.conv(*step), nn.BatchNorm3d(step[1]))]
        side = [self.conv(a, b, 1, stride), nn.BatchNorm3d(b)] if stride > 1 or a != b else []
        return nn.ModuleList([nn.Sequential(*main), nn.Sequential(*side)])

    def forward(self, x):
        conv, norm = self.stem
        x = F.max_pool3d(F.relu(norm(conv(x))), 3, stride=2, padding=1)
        for main, side in self.blocks:
            y = x
            for index in range(0, len(main), 2):
                y = main[index + 1](main[index](y))
                if index < len(main) - 2:
                    y = F.relu(y)
            x = F.relu(y + side(x))
        return self.fc(F.adaptive_avg_pool3d(x, 1).flatten(1))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(32, 32, 32), (17, 40, 33)], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_resnet_computes_what_its_description_says(name, size, training):
    torch.manual_seed(0)
    network = models.build(name, in_channels=2, num_classes=3, base_channels=8)
    plain = Plain(name, 2, 3, 8)
    with_same_weights(network.train(training), plain.train(training))
    image = torch.randn(3, 2, *size)
    with torch.no_grad():
        logits, expected = network(image), plain(image)
    assert logits.shape == (3, 3)
    assert expected.std() > 1e-2, "weights that give no signal compare nothing"
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("resnet3d_18", {}, 33_161_026),
        ("resnet3d_34", {}, 63_470_658),
        ("resnet3d_50", {}, 46_159_170),
        ("resnet3d_18", {"base_channels": 8, "in_channels": 2, "num_classes": 3}, 524_515),
    ],
    ids=str,
)
def test_a_resnet_has_the_size_promised(name, arguments, parameters):
    assert sum(p.numel() for p in models.build(name, **arguments).parameters()) == parameters


@pytest.mark.parametrize("name", BLOCKS)
def test_convolutions_start_normal_with_the_variance_of_their_fan_out(name):
    torch.manual_seed(0)
    for module in models.build(name, base_channels=32).modules():
        if isinstance(module, nn.Conv3d):
            assert module.bias is None
            fan_out = module.out_channels * module.kernel_size[0] ** 3
            spread = float(module.weight.detach().std()) / (2 / fan_out) ** 0.5
            assert abs(spread - 1) < 5 / module.weight.numel() ** 0.5
        elif isinstance(module, nn.BatchNorm3d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_zero_init_last_makes_every_block_start_as_its_shortcut(name):
    network = models.build(name, base_channels=8, zero_init_last=True)
    blocks = [block for n in (1, 2, 3, 4) for block in getattr(network, f"layer{n}")]
    assert len(blocks) == sum(BLOCKS[name])
    for block in blocks:
        x = torch.randn(2, block.conv1.in_channels, 4, 4, 4)
        torch.testing.assert_close(block(x), F.relu(block.downsample(x)))


def test_without_the_choice_the_last_norm_starts_at_one():
    network = models.build("resnet3d_18", base_channels=8)
    x = torch.randn(2, 8, 4, 4, 4)
    assert not torch.equal(network.layer1[0](x), F.relu(x))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_weight_takes_part_in_the_output(name):
    network = models.build(name, base_channels=8)
    network(torch.rand(2, 1, 33, 32, 40)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("name", BLOCKS)
def test_channels_last_changes_the_memory_but_not_the_numbers(name):
    torch.manual_seed(0)
    network = models.build(name, base_channels=8).eval()
    image, layout = torch.rand(2, 1, 33, 40, 48), torch.channels_last_3d
    with torch.no_grad():
        expected = network(image)
        network.to(memory_format=layout)
        weights = [p for p in network.parameters() if p.dim() == 5]
        assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
        logits = network(image.contiguous(memory_format=layout))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "deepest"), [((1, 1, 1), (1, 1, 1)), ((64, 33, 32), (2, 2, 1))], ids=str
)
def test_any_size_runs_and_the_deepest_feature_is_a_thirty_second(size, deepest):
    network = models.build("resnet3d_50", base_channels=8).eval()
    with torch.inference_mode():
        assert network.features(torch.rand(1, 1, *size)).shape == (1, 256, *deepest)
        assert network(torch.rand(1, 1, *size)).shape == (1, 2)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 1, 32, 32), r"ResNet3d: expected \[B, 1, D, H, W\], got \[1, 1, 32, 32\]"),
        ((2, 3, 32, 32, 32), r"ResNet3d: expected \[B, 1, D, H, W\], got \[2, 3,"),
        ((2, 1, 32, 0, 32), r"ResNet3d: expected D, H, W of at least 1, got \[32, 0, 32\]"),
        ((1, 1, 32, 32, 32), r"BatchNorm cannot train on \[1, 1, 32, 32, 32\].*a larger batch"),
    ],
    ids=str,
)
def test_an_image_that_does_not_fit_is_named(shape, words):
    with pytest.raises(ValueError, match=words):
        models.build("resnet3d_18", base_channels=8)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"num_classes": 0}, ValueError, "num_classes 0: expected at least 1"),
        ({"base_channels": 0}, ValueError, "base_channels 0: expected at least 1"),
        ({"depth": 18}, TypeError, "depth"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        models.build("resnet3d_18", **arguments)
