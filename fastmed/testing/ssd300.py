"""Weights, slices, boxes and outputs on which SSD300 is held against torchvision's."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 3
# Channels, height, width: enlarged, as it is, and shrunk to 300 x 300.
SHAPES = ((3, 240, 280), (3, 300, 300), (3, 512, 420))
# Per image boxes (x1, y1, x2, y2) in pixels and their labels. The second image has none; in the
# third two boxes are alike, one is below the smallest default box and one is half outside.
TRUTH = (
    ([[30.5, 40.25, 61.0, 80.0], [100.0, 20.0, 260.0, 200.0]], [1, 2]),
    ([], []),
    (
        [[10, 20, 110, 95], [10, 20, 110, 95], [300.5, 400, 305, 404.25], [390, 480, 450, 540]],
        [2, 1, 1, 2],
    ),
)


def fill(network: nn.Module) -> None:
    """Gives every parameter numbers that depend on its name and shape alone.

    Features stay near 1 on all levels, so that scores lie between 0 and 1 and not at either end.
    """
    for name, parameter in network.named_parameters():
        numbers = _uniform(name, parameter.shape)
        if parameter.dim() == 4:
            fan_in = parameter[0].numel()
            gain = 6 if name.startswith("backbone") else 3
            numbers *= (gain / fan_in) ** 0.5
            if fan_in == 27:  # the first, on values to 120
                numbers /= 64
        elif name.endswith("scale_weight"):
            numbers = 20 + 5 * numbers
        elif name.startswith("head.classification"):
            # Background first among the classes of each box.
            numbers[::NUM_CLASSES] += 2
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(numbers))


def images(channels: int | None = None) -> list[Tensor]:
    """Smooth shapes with fine noise, float32 in 0..1, of SHAPES or with other channels."""
    made = []
    for place, (own, height, width) in enumerate(SHAPES):
        count = channels or own
        coarse = torch.from_numpy(_uniform(f"shapes {place}", (1, count, 9, 8)))
        noise = torch.from_numpy(_uniform(f"noise {place}", (count, height, width)))
        smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)[0]
        made.append((0.5 + 0.45 * smooth + 0.05 * noise).clamp(0, 1))
    return made


def targets() -> list[dict[str, Tensor]]:
    """TRUTH as the networks take it."""
    return [
        {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        for boxes, labels in TRUTH
    ]


def output() -> Tensor:
    """Codes and logits, [3, 8732, 4 + NUM_CLASSES], as if a network had given them."""
    return torch.from_numpy(3 * _uniform("output", (len(SHAPES), 8732, 4 + NUM_CLASSES)))


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in -1..1, the same on every machine."""
    generator = np.random.Generator(np.random.PCG64(list(name.encode())))
    return 2 * generator.random(tuple(shape), dtype=np.float32) - 1
