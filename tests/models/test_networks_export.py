"""Every network goes through torch.export with free batch and sizes, as the exporter asks."""

import pytest
import torch
import torch.fx.experimental._config

from fastmed import models

# network, in_channels, smallest size of an axis, example, two other shapes
NETWORKS = {
    "unet2d": (16, (2, 1, 33, 48), [(1, 1, 16, 16), (3, 1, 47, 65)]),
    "unet3d": (16, (2, 1, 33, 48, 35), [(1, 1, 16, 16, 16), (3, 1, 31, 17, 49)]),
    "resnet3d_18": (32, (2, 1, 65, 96, 67), [(1, 1, 32, 32, 32), (3, 1, 63, 33, 64)]),
    "resnet3d_34": (32, (2, 1, 65, 96, 67), [(1, 1, 32, 32, 32), (3, 1, 63, 33, 64)]),
    "resnet3d_50": (32, (2, 1, 65, 96, 67), [(1, 1, 32, 32, 32), (3, 1, 63, 33, 64)]),
    "ssd3d": (3, (2, 1, 33, 48, 35), [(1, 1, 3, 3, 9), (3, 1, 31, 17, 49)]),
}
CASES = [(name, {}) for name in NETWORKS] + [(n, {"up": "transpose"}) for n in ("unet2d", "unet3d")]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_an_exported_network_takes_other_batches_and_sizes(name, arguments):
    torch.manual_seed(0)
    network = models.build(name, base_channels=8, **arguments).eval()
    smallest, example, others = NETWORKS[name]
    free = {
        axis: torch.export.Dim(f"axis{axis}", min=smallest if axis else 1, max=4096)
        for axis in range(len(example))
        if axis != 1
    }
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(network, (torch.zeros(example),), dynamic_shapes=(free,))
    # Tracing notes that the deepest feature had more than one voxel. ONNX drops the note; that one
    # voxel is no special case is what the smallest shapes show here.
    exported = program.module(check_guards=False)
    for shape in others:
        image = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), network(image), rtol=1e-5, atol=1e-6)
