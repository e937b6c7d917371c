"""Weights, slices, boxes and outputs on which SSD300 is held against torchvision's."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmed import models
from fastmed.boxes import match_iou

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
# How far results may lie from torchvision's, by how their names start; others are equal. The
# same convolutions on a processor with other instructions are 4e-5 apart.
LIMITS = {
    "output": 1e-4,
    "default boxes": 1e-5,  # pixels
    "trained": 1e-3,
    "loss": 1e-4,
    "gradient": 1e-5,
    "boxes": 1e-2,  # pixels
    "scores": 1e-4,
}


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


def quiet_output() -> Tensor:
    """As output(), but few boxes beyond the threshold; the last image's have scores in common."""
    quiet = output()
    quiet[..., 4] += 10
    quiet[-1] = quiet[-1].round()
    return quiet


def many_boxes() -> Tensor:
    """[240, 4] in 300 x 300 pixels; 40 at each size on whole pixels, where overlaps are equal."""
    sides = torch.tensor([4, 10, 21, 46, 120, 240]).repeat_interleave(40)[:, None]
    places = torch.from_numpy(_uniform("many", (240, 2))) * 150 + 150
    low = (places - sides / 2).round()
    return torch.cat([low, low + sides], 1)


def results() -> dict[str, Tensor]:
    """What SSD300 makes of all this, by names, some of which end with the number of the image."""
    network = models.build("ssd300_vgg16", num_classes=NUM_CLASSES)
    fill(network)
    slices, truth = images(), targets()
    with torch.no_grad():
        seen = network.eval().heads(slices)
        losses = network.train().losses(seen, slices, truth)
    made = {"output": seen, "default boxes": network.defaults}
    for name, value in losses.items():
        made[f"trained {name}"] = value
    made |= found_results("", network.detections(seen, slices))
    made |= found_results("of few ", network.detections(quiet_output(), slices))
    scales = [torch.tensor([300 / w, 300 / h] * 2) for _, h, w in SHAPES]
    made["matched"] = torch.stack(
        [
            match_iou(network.defaults, one["boxes"] * scale)
            for one, scale in zip(truth, scales, strict=True)
        ]
    )
    made["matched of many"] = match_iou(network.defaults, many_boxes())
    given = output().requires_grad_()
    return made | loss_results(network.losses(given, slices, truth), given)


def found_results(group: str, found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Detections under the names of results."""
    return {
        f"{name} {group}{place}": value
        for place, one in enumerate(found)
        for name, value in one.items()
    }


def loss_results(losses: dict[str, Tensor], given: Tensor) -> dict[str, Tensor]:
    """The losses of output(), and its gradient, which shows the boxes that count."""
    gradient = torch.autograd.grad(sum(losses.values()), given)[0]
    made = {f"loss {name}": value.detach() for name, value in losses.items()}
    return made | {
        "matched boxes": (gradient[..., :4] != 0).any(2),
        "counted boxes": (gradient[..., 4:] != 0).any(2),
        "gradient": gradient,
    }


def sampled(name: str, values: Tensor) -> Tensor:
    """The part of a result that is small enough to keep."""
    if name == "output":
        return values[:, ::29]
    if name == "gradient":
        return values.sum(1)
    return values[::7] if name == "default boxes" else values


def differences(
    ours: dict[str, Tensor], expected: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """Per name the largest absolute difference, infinite for other shapes, and its limit."""
    assert ours.keys() == expected.keys()
    found = {}
    for name, values in expected.items():
        mine = ours[name]
        limit = next((v for start, v in LIMITS.items() if name.startswith(start)), 0)
        if mine.shape != values.shape:
            found[name] = (float("inf"), limit)
        else:
            distance = (mine.double() - values.double()).abs()
            found[name] = (float(distance.max()) if distance.numel() else 0.0, limit)
    return found


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in -1..1, the same on every machine."""
    generator = np.random.Generator(np.random.PCG64(list(name.encode())))
    return 2 * generator.random(tuple(shape), dtype=np.float32) - 1
