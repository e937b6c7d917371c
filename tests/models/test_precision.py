"""A converted network computes in 16 bits but for its normalisations, and is float32 outside."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmed import models
from fastmed.models.precision import DTYPES, converted

NORMS = (nn.GroupNorm, nn.BatchNorm2d, nn.BatchNorm3d)
NETWORKS = {
    "unet2d": ({"base_channels": 8}, (1, 1, 33, 32)),
    "unet3d": ({"base_channels": 8}, (1, 1, 17, 32, 32)),
    "resnet3d_18": ({"base_channels": 8}, (1, 1, 33, 32, 32)),
    "resnet3d_50": ({"base_channels": 8}, (1, 1, 33, 32, 32)),
    "ssd3d": ({"base_channels": 8}, (1, 1, 16, 32, 17)),
    "ssd300_vgg16": ({}, (1, 3, 300, 300)),
}
# Of the largest output: fp16 has ten bits, bf16 seven, and twenty layers round one after another.
APART = {"fp16": 0.01, "bf16": 0.08}


def build(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.build(name, **NETWORKS[name][0]).eval()


def image(name):
    return torch.rand(NETWORKS[name][1], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_gives_nearly_the_same_in_float32(name, precision):
    network, x = build(name), image(name)
    with torch.inference_mode():
        expected, found = network(x), converted(network, precision)(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < APART[precision] * expected.abs().max()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_normalisations_see_float32_and_convolutions_do_not(name, precision):
    network, seen = converted(build(name), precision), {}
    for module in network.modules():
        if isinstance(module, (*NORMS, nn.Conv2d, nn.Conv3d)):
            kind = "norm" if isinstance(module, NORMS) else "convolution"
            module.register_forward_pre_hook(
                lambda module, given, kind=kind: seen.setdefault(kind, set()).update(
                    {given[0].dtype, module.weight.dtype}
                )
            )
    with torch.inference_mode():
        network(image(name))
    assert seen.pop("norm", {torch.float32}) == {torch.float32}
    assert seen == {"convolution": {DTYPES[precision]}}


def test_the_network_itself_stays_as_it_was():
    network = build("unet3d")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    converted(network, "fp16")
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert converted(network, "fp32") is network


class Sums(TorchDispatchMode):
    """Records the dtypes in which features are summed up: by a norm of 512 channels, or a mean."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(word in function.name() for word in ("vector_norm", "aten::mean")):
            self.dtypes.add(result.dtype)
        return result


@pytest.mark.parametrize("name", ["ssd300_vgg16", "resnet3d_18"])
def test_sums_that_leave_fp16s_range_are_float32(name):
    with torch.inference_mode(), Sums() as sums:
        converted(build(name), "fp16")(image(name))
    assert sums.dtypes == {torch.float32}


def test_a_weight_beyond_fp16_is_named():
    network = nn.Sequential(nn.Conv3d(1, 1, 1))
    nn.init.constant_(network[0].weight, 1e5)
    with pytest.raises(OverflowError, match=r"weight: a weight of 1e\+05 .*choose bf16 or fp32"):
        converted(network, "fp16")
    assert converted(network, "bf16")(torch.ones(1, 1, 1, 1, 1)).isfinite().all()
