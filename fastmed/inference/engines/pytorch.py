"""PyTorch eager as an engine: always there, and the reference of the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmed.bundle import Bundle
from fastmed.inference.engines.protocol import TileEngine, usual_batch
from fastmed.inference.engines.torch_graph import CudaGraph
from fastmed.models.channels import channels_taken
from fastmed.models.precision import DTYPES, converted
from fastmed.spec import Spec


class NetworkEngine(TileEngine):
    """PyTorch eager around a network that lives elsewhere, such as one in training.

    precision: what the network computes in, as it is.
    network: on `device` already; its weights are neither moved nor copied, so that each call sees
        them as they are. It runs in eval mode and without gradients; a network in training mode
        gets every module's mode back.
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        spec: Spec,
        device: torch.device | str,
        precision: str = "fp32",
    ):
        super().__init__(spec, str(device), precision)
        self._network = network
        self._channels = channels_taken(network)
        self._layout = _LAYOUTS[spec.dimensions]

    def _run(self, tiles: Tensor) -> Tensor:
        training = [module for module in self._network.modules() if module.training]
        if training:
            self._network.eval()
        try:
            with torch.inference_mode():
                logits = self._network(tiles.to(memory_format=self._layout))
        finally:
            for module in training:
                module.training = True
        return logits.float().contiguous()


# Convolutions on the CPU run 1.4 to 1.7 times faster in this layout.
_LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


class TorchEngine(NetworkEngine):
    """PyTorch: always there, and in float32 the reference for the other engines.

    It runs eagerly; on CUDA, full batches of the spec's tile run as a CUDA graph.

    In a lower precision the weights are rounded once and normalisations stay in float32, as in the
    exported files; autocast would round them again with every tile.
    """

    @staticmethod
    def lacks(bundle: Bundle, device: str, precision: str) -> str:
        if bundle.spec.network is None:
            return f"{bundle.path} names no [network] that torch could build"
        if precision not in DTYPES:
            return f"torch computes in {', '.join(DTYPES)}; --engine ov, ort or trt in {precision}"
        if device == "cpu" and not _computes_fast_in(precision):
            return f"this CPU has no {precision} arithmetic: torch would take ten times as long"
        return ""

    def __init__(self, bundle: Bundle, device: str, precision: str = "fp32"):
        spec, layout = bundle.spec, _LAYOUTS[bundle.spec.dimensions]
        network = converted(bundle.network(), precision).to(device, memory_format=layout)
        super().__init__(network, spec, device, precision)
        size = spec.tile_zyx or spec.size_zyx
        self._usual = size and (usual_batch(spec, device), *size[-spec.dimensions :])
        self._graph: CudaGraph | None = None

    def _run(self, tiles: Tensor) -> Tensor:
        if not tiles.is_cuda:
            return super()._run(tiles)
        # TF32, which torch would take for convolutions, has 10 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self.precision != "fp32"):
            return self._run_on_cuda(tiles)

    def _run_on_cuda(self, tiles: Tensor) -> Tensor:
        if (len(tiles), *tiles.shape[2:]) != self._usual:
            return super()._run(tiles)
        if self._graph is None:
            self._graph = CudaGraph(super()._run, self.device, self.say)
        return self._graph(tiles)


def _computes_fast_in(precision: str) -> bool:
    """Whether torch's convolutions on this CPU know a precision, and do not imitate it."""
    ask = {
        "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
        "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
    }
    return precision not in ask or (torch.backends.mkldnn.is_available() and ask[precision]())
