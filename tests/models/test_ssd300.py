"""SSD300 takes and gives what torchvision's ssd300_vgg16 does, and names what does not fit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmed import models
from fastmed.testing import ssd300 as scene

ROOT = Path(__file__).parents[2]
ORACLES = ROOT / "build" / "oracles"
# Of torchvision 0.28.0; python tools/ssd300_parity.py --write makes it again.
STORED = Path(__file__).parent / "data" / "ssd300_torchvision.npz"


@pytest.fixture(scope="module")
def stored():
    with np.load(STORED) as file:
        return dict(file)


@pytest.fixture(scope="module")
def ours():
    return scene.results()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.build("ssd300_vgg16").eval()


def truth(*boxes, labels=None):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([1] * len(boxes) if labels is None else labels, dtype=torch.int64),
    }


RESULTS = ["output", "default boxes", "matched", "trained", "loss", "counted", "gradient"]
RESULTS += ["boxes", "scores", "labels"]


@pytest.mark.parametrize("start", RESULTS)
def test_results_are_those_stored_of_torchvision(stored, ours, start):
    expected = {
        name: torch.from_numpy(values) for name, values in stored.items() if name.startswith(start)
    }
    assert expected
    found = scene.differences(
        {name: scene.sampled(name, ours[name]) for name in expected}, expected
    )
    assert {n: f"{apart:.2g}" for n, (apart, limit) in found.items() if not apart <= limit} == {}


def test_the_stored_results_reach_every_rule(stored):
    """All candidates and all detections, fewer of both, and more than a threshold leaves out."""
    assert [len(stored[f"scores {place}"]) for place in range(3)] == [200] * 3
    few = [stored[f"scores of few {place}"] for place in range(3)]
    assert all(0 < len(scores) < 200 and 0.01 < scores.min() < 0.02 for scores in few)
    assert len(np.unique(few[2])) < len(few[2])
    matched, counted = stored["matched boxes"].sum(1), stored["counted boxes"].sum(1)
    assert matched[1] == 0 < min(matched[0], matched[2])
    assert list(counted) == list(4 * matched)


def test_every_result_is_stored(stored, ours):
    assert set(ours) == set(stored) - {"state names", "state shapes"}


def test_parameters_are_named_and_shaped_as_in_torchvision(stored):
    with torch.device("meta"):
        state = models.build("ssd300_vgg16", num_classes=91).state_dict()
    assert list(state) == stored["state names"].tolist()
    assert [str(list(v.shape)) for v in state.values()] == stored["state shapes"].tolist()


@pytest.mark.skipif(
    not ORACLES.exists(), reason="needs torchvision: make build/oracles/torchvision"
)
def test_results_are_those_of_torchvision_itself():
    """In a process of its own: other packages take an importable torchvision for a whole one."""
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "ssd300_parity.py"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_batch_is_a_list_of_images_that_fit(network):
    images = torch.rand(2, 3, 300, 300)
    with torch.no_grad():
        output = network(images)
        assert output.shape == (2, 8732, 6)
        torch.testing.assert_close(output, network.heads(list(images)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_slices_of_one_channel_and_of_more_than_three(channels):
    network = models.build("ssd300_vgg16", in_channels=channels, num_classes=4).eval()
    with torch.no_grad():
        assert network(torch.rand(1, channels, 300, 300)).shape == (1, 8732, 8)
        (found,) = network([torch.rand(channels, 64, 48)])
    assert found["boxes"].shape == (len(found["labels"]), 4)
    assert (found["boxes"] <= torch.tensor([48, 64, 48, 64]) * (1 + 1e-6)).all()


def test_every_parameter_learns_also_beside_an_image_without_boxes():
    network = models.build("ssd300_vgg16").train()
    images = [torch.rand(3, 90, 120), torch.rand(3, 300, 300)]
    a_box_for_each_level = [
        [150 - r, 150 - r, 150 + r, 150 + r] for r in (11, 23, 50, 77, 104, 131)
    ]
    losses = network(images, [truth(), truth(*a_box_for_each_level)])
    assert set(losses) == {"bbox_regression", "classification"}
    sum(losses.values()).backward()
    asleep = [name for name, value in network.named_parameters() if not value.grad.any()]
    assert asleep == []


def test_a_batch_without_any_box_loses_nothing(network):
    images = [torch.rand(3, 50, 60)] * 2
    output = torch.randn(2, 8732, 6, requires_grad=True)
    losses = network.losses(output, images, [truth(), truth()])
    sum(losses.values()).backward()
    assert [value.item() for value in losses.values()] == [0, 0]
    assert not output.grad.any()


def test_a_validation_loss_is_that_of_training_in_eval_mode_and_without_gradients(network):
    images, targets = [torch.rand(3, 80, 70)], [truth([5, 6, 40, 44])]
    with torch.no_grad():
        output = network.heads(images)
        losses = network.losses(output, images, targets)
        found = network.detections(output, images)
        try:
            trained = network.train()(images, targets)
        finally:
            network.eval()
    assert losses == trained
    assert not any(value.requires_grad for value in losses.values())
    assert found[0].keys() == {"boxes", "scores", "labels"}


IMAGE = torch.zeros(3, 40, 50)
BOX = [1, 2, 3, 4]
WRONG = {
    "no targets": ([IMAGE], None, "targets: None"),
    "too few targets": ([IMAGE, IMAGE], [truth()], "1 for 2 images"),
    "an inverted box": (
        [IMAGE, IMAGE],
        [truth(BOX), truth(BOX, [9, 9, 4, 12])],
        r"targets\[1\] boxes\[1\]: \[9.0, 9.0, 4.0, 12.0\] is no box",
    ),
    "a flat box": ([IMAGE], [truth([1, 2, 3, 2])], r"targets\[0\] boxes\[0\]"),
    "a NaN": ([IMAGE], [truth([1, 2, float("nan"), 4])], r"targets\[0\] boxes\[0\]"),
    "boxes in 3D": (
        [IMAGE],
        [{"boxes": torch.zeros(1, 6), "labels": torch.ones(1, dtype=torch.int64)}],
        r"expected \[n, 4\], got \[1, 6\]",
    ),
    "too few labels": ([IMAGE], [truth(BOX, BOX, labels=[1])], r"int64 \[2\]"),
    "background": ([IMAGE], [truth(BOX, labels=[0])], r"labels\[0\]: 0 is no class"),
    "an unknown class": ([IMAGE], [truth(BOX, BOX, labels=[1, 2])], r"labels\[1\]: 2 is no class"),
    "no images": ([], [], "an empty list"),
    "other channels": ([IMAGE[:1]], [truth()], r"images\[0\]: expected \[3, H, W\]"),
    "a batch of another size": (torch.zeros(1, 3, 299, 300), None, r"\[B, 3, 300, 300\]"),
}


@pytest.mark.parametrize(("images", "targets", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(images, targets, message):
    with torch.device("meta"):
        network = models.build("ssd300_vgg16").train()
    with pytest.raises(ValueError, match=message):
        network(images, targets)


def test_integer_images_are_refused(network):
    with pytest.raises(TypeError, match=r"images\[0\]: expected floats in 0..1, got torch.uint8"):
        network([IMAGE.to(torch.uint8)])


@pytest.mark.parametrize("arguments", [{"num_classes": 1}, {"in_channels": 0}, {"candidates": 0}])
def test_a_bad_argument_is_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        models.build("ssd300_vgg16", **arguments)


def test_an_exported_network_takes_other_batches(network):
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.rand(2, 3, 300, 300)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(example[:1]), network(example[:1]))
