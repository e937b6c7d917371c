"""Networks by name. They know tensors only; the spec and the tasks know what they mean."""

from torch import nn

from fastmed.models.unet import UNet3d

_NETWORKS = {"unet3d": UNet3d}


def build(name: str, **arguments) -> nn.Module:
    """Builds the network `name` with fresh weights.

    name: "unet3d".
    arguments: those of the network's class, usually in_channels, num_classes, base_channels.

    Raises ValueError for an unknown name, TypeError for an unknown argument.
    """
    if name not in _NETWORKS:
        raise ValueError(f"network {name!r} is unknown; known are {', '.join(sorted(_NETWORKS))}")
    return _NETWORKS[name](**arguments)
