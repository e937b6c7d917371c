"""Holds SSD300 against torchvision's ssd300_vgg16: python tools/ssd300_parity.py [--write FILE]

--torchvision names the folder that torchvision was installed into (make build/oracles). Prints what
differs for equal weights, images, targets and outputs, and fails where a limit is passed. --write
stores what torchvision gives, which tests/models compare with where torchvision is absent.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastmed import models
from fastmed.testing import ssd300 as scene

ROOT = Path(__file__).resolve().parent.parent


def import_torchvision(folder: Path):
    """torchvision's models of detection and its box_iou, also beside a CPU build of torch.

    Its operators load with the build of torch that they were made for alone.
    """
    sys.path.insert(0, str(folder))
    try:
        torch.ops.load_library(str(folder / "torchvision" / "_C.so"))
    except OSError:
        declare_operators()
    import torchvision
    from torchvision.models import detection
    from torchvision.ops import box_iou

    torchvision.ops.boxes._assert_has_ops = lambda: None
    print(f"torchvision {torchvision.__version__}, torch {torch.__version__}")
    return detection, box_iou


def declare_operators() -> None:
    """Declares the two operators that torchvision's import asks for, and defines nms."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", greedy_nms, "CPU")
    declare_operators.library = library  # what it declares is gone with it


def greedy_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The rule as the paper has it: the best first, and none that overlaps one before."""
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides[:, 0] * sides[:, 1]
    left = scores.sort(descending=True, stable=True).indices
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left = left[shared / (areas[best] + areas[left] - shared) <= threshold]
    return torch.tensor(kept, dtype=torch.int64)


def theirs(detection, box_iou) -> dict[str, Tensor]:
    """torchvision's results, under the names of scene.results."""
    network = detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=scene.NUM_CLASSES
    )
    scene.fill(network)
    seen = {}
    network.head.register_forward_hook(lambda _, __, out: seen.update(out))
    network.anchor_generator.register_forward_hook(lambda _, __, out: seen.update(anchors=out))
    images, targets = scene.images(), scene.targets()
    with torch.no_grad():
        found = network.eval()(images)
        results = {
            "output": torch.cat([seen["bbox_regression"], seen["cls_logits"]], 2),
            "default boxes": seen["anchors"][0],
        }
        losses = network.train()(images, targets)
    for name, value in losses.items():
        results[f"trained {name}"] = value
    results |= scene.found_results("", found)
    few = network.eval().postprocess_detections(
        as_heads(scene.quiet_output()), seen["anchors"], [(300, 300)] * len(images)
    )
    few = network.transform.postprocess(
        few, [(300, 300)] * len(images), [image.shape[-2:] for image in images]
    )
    results |= scene.found_results("of few ", few)

    _, resized = network.transform(images, targets)
    matched = [
        network.proposal_matcher(box_iou(target["boxes"], anchors))
        if len(target["boxes"])
        else torch.full((len(anchors),), -1)
        for target, anchors in zip(resized, seen["anchors"], strict=True)
    ]
    results["matched"] = torch.stack(matched)
    truth = scene.many_boxes()
    results["matched of many"] = network.proposal_matcher(box_iou(truth, seen["anchors"][0]))
    output = scene.output().requires_grad_()
    losses = network.compute_loss(resized, as_heads(output), seen["anchors"], matched)
    return results | scene.loss_results(losses, output)


def as_heads(output: Tensor) -> dict[str, Tensor]:
    return {"bbox_regression": output[..., :4], "cls_logits": output[..., 4:].contiguous()}


def fresh_difference(ours: nn.Module, fresh: nn.Module) -> float:
    """The largest relative difference in the spread of new weights; biases and scales are equal."""
    largest = 0.0
    for mine, other in zip(ours.parameters(), fresh.parameters(), strict=True):
        if mine.dim() == 1:
            assert torch.equal(mine, other)
        else:
            largest = max(largest, abs((mine.std() / other.std()).item() - 1))
    return largest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchvision", type=Path, default=ROOT / "build" / "oracles")
    parser.add_argument("--write", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    detection, box_iou = import_torchvision(arguments.torchvision)
    passed = True
    for classes in (2, 91):
        fresh = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes)
        ours = models.build("ssd300_vgg16", num_classes=classes)
        spread = fresh_difference(ours, fresh)
        passed &= spread < 0.1
        ours.load_state_dict(fresh.state_dict(), strict=True)
        fresh.load_state_dict(ours.state_dict(), strict=True)
        print(f"{classes} classes: state dicts load; spread of fresh weights {spread:.1%} apart")
    expected = theirs(detection, box_iou)
    if arguments.write:
        stored = {name: scene.sampled(name, value).numpy() for name, value in expected.items()}
        stored["state names"] = np.array(list(fresh.state_dict()))
        stored["state shapes"] = np.array([str(list(v.shape)) for v in fresh.state_dict().values()])
        np.savez_compressed(arguments.write, **stored)
        print(f"{arguments.write}: {arguments.write.stat().st_size} bytes")
    differences = scene.differences(scene.results(), expected)
    for name, (difference, limit) in differences.items():
        print(f"{name:24} {difference:.2e}  at most {limit:g}")
    passed &= all(difference <= limit for difference, limit in differences.values())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
