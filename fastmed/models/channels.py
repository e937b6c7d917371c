"""How many channels a network takes."""

from __future__ import annotations

from torch import nn


def channels_taken(network: nn.Module) -> int | None:
    """Channels of the image that a network takes: those of its first convolution; None without."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            return module.in_channels
    return None
