"""Networks by name. They know tensors only; the spec and the tasks know what they mean."""

from torch import nn

from fastmed.models.resnet import resnet3d_18, resnet3d_34, resnet3d_50
from fastmed.models.ssd3d import SSD3D
from fastmed.models.ssd300 import SSD300
from fastmed.models.unet import UNet2d, UNet3d

_NETWORKS = {
    "unet2d": UNet2d,
    "unet3d": UNet3d,
    "resnet3d_18": resnet3d_18,
    "resnet3d_34": resnet3d_34,
    "resnet3d_50": resnet3d_50,
    "ssd3d": SSD3D,
    "ssd300_vgg16": SSD300,
}


def build(name: str, **arguments) -> nn.Module:
    """Builds the network `name` with fresh weights.

    name: "unet2d", "unet3d", "resnet3d_18", "resnet3d_34", "resnet3d_50", "ssd3d" or
        "ssd300_vgg16".
    arguments: those of the network's class, usually in_channels, num_classes, base_channels.

    Raises ValueError for an unknown name or a bad value, TypeError for an unknown argument.
    """
    if name not in _NETWORKS:
        raise ValueError(f"network {name!r} is unknown; known are {', '.join(sorted(_NETWORKS))}")
    return _NETWORKS[name](**arguments)
