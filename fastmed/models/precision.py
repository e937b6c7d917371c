"""Lower precision: a network's weights in 16 bits, its normalisations in float32."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, _NormBase)


def converted(network: nn.Module, precision: str) -> nn.Module:
    """A copy of a network that computes in `precision`; takes and returns float32 as before.

    precision: "fp32" (the network itself), "fp16" or "bf16". Weights are rounded once. Every
    normalisation keeps its weights and works in float32: a variance over a 3D feature map leaves
    fp16's range, and bf16 has three digits.

    Raises OverflowError that names a weight beyond what fp16 can hold (65504).
    """
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return network
    copy = deepcopy(network)
    for module in list(copy.modules()):
        if isinstance(module, _NORMS):
            continue
        for name, child in module._modules.items():
            if isinstance(child, _NORMS):
                module._modules[name] = _InFloat32(child)
        for name, values in [*module._parameters.items(), *module._buffers.items()]:
            if values is not None and values.is_floating_point():
                _round(values, dtype, name)
    return _Float32Outside(copy, dtype)


def _round(values: Tensor, dtype: torch.dtype, name: str) -> None:
    rounded = values.data.to(dtype)
    if not torch.equal(rounded.isfinite(), values.data.isfinite()):
        raise OverflowError(
            f"{name}: a weight of {float(values.data.abs().max()):.3g} is beyond {dtype}; "
            "choose bf16 or fp32"
        )
    values.data = rounded


class _InFloat32(nn.Module):
    """A normalisation that sees float32, between layers of another dtype."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


class _Float32Outside(nn.Module):
    """A network of another dtype that takes and returns float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.to(self.dtype)).float()
