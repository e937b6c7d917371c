"""On a GPU, ONNX Runtime gives torch's logits from torch's memory."""

import pytest
import torch
from network_bundles import SHAPES, SPECS

from fastmed.inference.engines import present
from fastmed.inference.engines.onnx_runtime import OnnxRuntimeEngine
from fastmed.inference.engines.opening import open_engine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


@pytest.mark.parametrize("name", SPECS)
def test_it_gives_torchs_logits_for_any_shape(made, name):
    if lacking := present(made(name), "cuda:0", "fp32")["ort"]:
        pytest.skip(lacking)
    engine = OnnxRuntimeEngine(made(name), "cuda:0")
    reference = open_engine(made(name), "torch", "cuda:0")[0]
    shapes = SHAPES[name]
    for seed, shape in enumerate((shapes.fixed.usual, shapes.ranged.smallest, shapes.fixed.usual)):
        depth = (1,) if len(shape) == 4 else ()
        generator = torch.Generator().manual_seed(seed)
        tiles = torch.rand(shape[0], 1, *depth, *shape[2:], generator=generator).cuda()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected = reference(tiles).clone()
        found = engine(tiles)
        assert found.device == tiles.device
        scale = max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * scale)
