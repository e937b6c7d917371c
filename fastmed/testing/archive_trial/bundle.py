"""A bundle whose network costs next to nothing: what remains of a run's time is the run itself."""

from __future__ import annotations

from pathlib import Path

import torch

from fastmed import bundle, models
from fastmed.spec import Label, Network, Spec

_NETWORK = Network("unet3d", {"num_classes": 2, "base_channels": 8})


def tiny_bundle(folder: Path, *, spacing_mm: float = 12.0) -> Path:
    """Writes a segmentation bundle of fresh, seeded weights, unless it is there; returns its path.

    spacing_mm: of the network's grid; at 12 mm a scan of the abdomen is a few tiles.
    """
    path = folder / "tiny"
    if path.exists():
        return path
    spec = Spec(
        name="tiny",
        task="segmentation",
        labels=(Label(1, "found"),),
        network=_NETWORK,
        spacing_mm_zyx=(spacing_mm,) * 3,
        window_hu=(-1000.0, 400.0),
        tile_zyx=(16, 32, 32),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = models.build(spec.network.name, **spec.network.arguments)
    bundle.write(path, spec, network)
    return path
