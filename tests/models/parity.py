"""Equal weights for a network and for the same network written out in plain modules."""

import torch
from torch import nn


def with_same_weights(network: nn.Module, plain: nn.Module) -> None:
    """Fills both with the same random numbers, also BatchNorm's statistics.

    Both list their parameters and buffers from the input to the output, so that they match in
    order. Convolutions are scaled by their fan-in, so that deep networks keep finite values.
    """
    ours, theirs = (list(each.named_parameters()) for each in (network, plain))
    assert [tuple(p.shape) for _, p in ours] == [tuple(p.shape) for _, p in theirs]
    with torch.no_grad():
        for (_, mine), (_, other) in zip(ours, theirs, strict=True):
            spread = mine[0].numel() ** -0.5 if mine.dim() > 1 else 0.2
            mine.copy_(torch.randn(mine.shape) * spread + (mine.dim() == 1))
            other.copy_(mine)
        for mine, other in zip(network.buffers(), plain.buffers(), strict=True):
            assert mine.shape == other.shape
            if mine.is_floating_point():
                mine.copy_(torch.rand(mine.shape) + 0.5)
                other.copy_(mine)
