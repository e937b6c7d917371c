"""SSD3D answers where the default boxes stand, and learns to find what is there."""

import pytest
import torch
from torch import nn

from fastmed import losses, models
from fastmed.boxes import WEIGHTS_3D, boxes_per_level, decode, default_boxes
from fastmed.losses import Targets
from fastmed.ops import box_iou, nms

SIZES = [(3, 3, 3), (16, 16, 16), (33, 16, 31), (17, 40, 9)]


@pytest.mark.parametrize("strides", [(4, 8, 16), (2, 4, 8), (4,), (4, 16), (32,)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_there_is_an_answer_for_each_default_box(size, strides):
    network = models.build("ssd3d", base_channels=8, strides=strides, boxes_per_place=3)
    with torch.no_grad():
        output = network(torch.rand(2, 1, *size))
    assert output.shape == (2, sum(boxes_per_level(size, strides, 3)), 8)
    assert output.isfinite().all()


class Where(nn.Module):
    """Answers with z, y, x of the place, the number of its box, and the level's depth."""

    def forward(self, feature):
        depth = feature.shape[2]
        axes = [torch.arange(n, dtype=torch.float32) for n in feature.shape[2:]]
        place = [*torch.meshgrid(*axes, indexing="ij")]
        rest = [torch.full(feature.shape[2:], float(n)) for n in (depth, 0, 0, 0)]
        boxes = [[*place, torch.full_like(place[0], number), *rest] for number in range(2)]
        return torch.stack([value for box in boxes for value in box])[None]


def test_the_pyramid_has_the_width_asked_for():
    for asked, width in ((None, 32), (16, 16)):
        network = models.build("ssd3d", base_channels=8, strides=(2, 4), pyramid_channels=asked)
        with torch.no_grad():
            features = network.features(torch.rand(1, 1, 8, 8, 8))
        assert [feature.shape for feature in features] == [(1, width, n, n, n) for n in (4, 2)]


def test_answers_stand_in_the_order_of_the_default_boxes():
    size, strides, sides = (17, 24, 9), (4, 8), {5: (4, 6), 3: (8, 12)}  # sides by levels' depths
    network = models.build("ssd3d", base_channels=8, strides=strides)
    network.answer = Where()
    with torch.no_grad():
        z, y, x, number, depth = network(torch.rand(1, 1, *size))[0, :, :5].unbind(1)
    diameters = [[(side,) * 3 for side in level] for level in sides.values()]
    defaults = default_boxes(size, strides, diameters)
    stride = torch.where(depth == 5, 4, 8)
    middle = torch.stack([x, y, z], 1).add(0.5) * stride[:, None] - 0.5
    torch.testing.assert_close((defaults[:, :3] + defaults[:, 3:]) / 2, middle)
    expected = [sides[int(d)][int(n)] for d, n in zip(depth, number, strict=True)]
    assert (defaults[:, 3] - defaults[:, 0]).tolist() == expected


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_mirrored_network_sees_a_mirrored_scan_alike(axis):
    """So a feature lies in the middle of its voxels: elsewhere the mirror would move it."""
    torch.manual_seed(0)
    network = models.build("ssd3d", base_channels=8, strides=(2, 8))
    image = torch.rand(1, 1, 16, 24, 16)
    with torch.no_grad():
        features = network.features(image)
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.copy_(module.weight.flip(axis))
        mirrored = network.features(image.flip(axis))
    for feature, other in zip(features, mirrored, strict=True):
        torch.testing.assert_close(other.flip(axis), feature, rtol=1e-4, atol=1e-4)


def test_at_first_the_background_is_99_percent_sure():
    torch.manual_seed(0)
    for classes in (2, 4):
        network = models.build("ssd3d", num_classes=classes, base_channels=8)
        with torch.no_grad():
            scores = network(torch.rand(1, 1, 24, 24, 24))[..., 6:].softmax(-1)
        assert scores.shape[-1] == classes
        assert float(scores[..., 0].mean()) == pytest.approx(0.99, abs=0.005)


def test_a_sample_does_not_depend_on_its_batch():
    network = models.build("ssd3d", base_channels=8)
    image = torch.rand(3, 1, 17, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(network(image)[1:2], network(image[1:2]), atol=1e-5, rtol=1e-5)


WRONG = {
    "channels": ({"base_channels": 12}, "base_channels 12: expected a multiple of 8"),
    "pyramid": ({"pyramid_channels": 20}, "pyramid_channels 20: expected a multiple of 8"),
    "classes": ({"num_classes": 1}, "num_classes 1: expected at least 2"),
    "no level": ({"strides": ()}, r"strides \(\): expected some of \(2, 4, 8, 16, 32\), rising"),
    "stride 3": ({"strides": (3, 6)}, r"strides \(3, 6\)"),
    "falling": ({"strides": (8, 4)}, r"strides \(8, 4\)"),
    "twice": ({"strides": (4, 4)}, r"strides \(4, 4\)"),
    "places": ({"boxes_per_place": 0}, "boxes_per_place 0: expected at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_it_cannot_be_built_with_is_named(name):
    arguments, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        models.build("ssd3d", **arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 16, 16, 16), r"SSD3D: expected \[B, 1, D, H, W\], got \[1, 2, 16, 16, 16\]"),
        ((1, 1, 16, 16), r"got \[1, 1, 16, 16\]"),
        ((1, 1, 16, 2, 16), r"of at least 3, got \[16, 2, 16\]"),
    ],
)
def test_input_that_does_not_fit_is_named(shape, message):
    with pytest.raises(ValueError, match=message):
        models.build("ssd3d", base_channels=8)(torch.zeros(shape))


# x1, y1, z1, x2, y2, z2 in voxels: bright balls of 5 to 12 voxels; the second tile has one.
BALLS = [
    [(3.0, 4, 5, 8, 9, 10), (18, 17, 10, 30, 29, 22)],
    [(20.0, 6, 12, 26, 12, 18)],
]
SIZE = (28, 32, 36)


def tile(boxes):
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in SIZE), indexing="ij")
    image = 0.1 + 0.05 * torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    for x1, y1, z1, x2, y2, z2 in boxes:
        middle = ((x1 + x2) / 2, (y1 + y2) / 2, (z1 + z2) / 2)
        away = sum((axis - m) ** 2 for axis, m in zip((x, y, z), middle, strict=True)).sqrt()
        image = image + 0.6 * ((x2 - x1) / 2 - away + 0.5).clamp(0, 1)
    return image


def test_a_small_ssd3d_learns_two_tiles_by_heart_and_finds_their_boxes():
    torch.manual_seed(0)
    strides, diameters = (4, 8), [[(5, 5, 5), (7, 7, 7)], [(10, 10, 10), (14, 14, 14)]]
    network = models.build("ssd3d", base_channels=8, strides=strides)
    defaults = default_boxes(SIZE, strides, diameters)
    loss = losses.build(
        "detection_focal",
        num_classes=2,
        defaults=defaults,
        per_level=boxes_per_level(SIZE, strides, 2),
    )
    images = torch.stack([tile(boxes) for boxes in BALLS])[:, None]
    truth = [Targets(torch.tensor(b), torch.ones(len(b), dtype=torch.int64)) for b in BALLS]
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    values = []
    for _ in range(70):
        value = loss(network(images), truth)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.2 * values[0]

    with torch.no_grad():
        output = network.eval()(images)
    for sample, boxes in zip(output, truth, strict=True):
        scores = sample[:, 6:].softmax(-1)[:, 1]
        found = decode(sample[:, :6], defaults, WEIGHTS_3D)
        kept = nms(found, scores, 0.1)
        kept = kept[scores[kept] > 0.5]
        assert len(kept) == len(boxes.boxes)
        assert (box_iou(boxes.boxes, found[kept]).amax(1) > 0.5).all()
