"""The loss of boxes, by hand."""

import math

import pytest
import torch

from fastmed import losses
from fastmed.losses import DetectionLoss, Targets

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)

# Two default boxes of one level. The true box overlaps the first by half: its code is (0, 5, 0,
# 5 log 2), its smooth L1 against a code of zeros (5 - 0.5) + (5 log 2 - 0.5) = 7.465736, and its
# GIoU with the default box itself 0.5. Logits give the first a probability of 1/2 for either class,
# the second 1/4 for the background.
DEFAULTS = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14]])
OUTPUT = torch.tensor([[[0.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, LOG3]]])
BOX = (0.0, 0, 4, 8)
SMOOTH_L1 = 4 + 5 * LOG2
FOCAL_POSITIVE = 0.25 * 0.5**2 * LOG2
FOCAL_NEGATIVE = 0.75 * 0.75**2 * LOG4


def targets(*rows: tuple[tuple, int]) -> Targets:
    boxes = torch.tensor([box for box, _ in rows]).reshape(-1, len(rows[0][0]) if rows else 4)
    return Targets(boxes, torch.tensor([label for _, label in rows], dtype=torch.int64))


SIX = torch.tensor([[0.0, 0, 0, 4, 4, 4], [3, 3, 3, 9, 9, 9], [8, 8, 8, 12, 12, 12]])
EMPTY = Targets(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))

TABLE = {
    "focal, giou": ({}, [(BOX, 1)], FOCAL_POSITIVE + FOCAL_NEGATIVE + 0.5),
    "focal, smooth_l1": (
        {"box_loss": "smooth_l1"}, [(BOX, 1)], FOCAL_POSITIVE + FOCAL_NEGATIVE + SMOOTH_L1,
    ),
    "half the box loss": ({"box_weight": 0.5}, [(BOX, 1)], FOCAL_POSITIVE + FOCAL_NEGATIVE + 0.25),
    "no focus": ({"gamma": 0}, [(BOX, 1)], 0.25 * LOG2 + 0.75 * LOG4 + 0.5),
    "more weight on the positive": (
        {"gamma": 0, "alpha": 0.9}, [(BOX, 1)], 0.9 * LOG2 + 0.1 * LOG4 + 0.5,
    ),
    "hard negatives": (
        {"kind": "hard_negative", "box_loss": "smooth_l1"}, [(BOX, 1)], LOG2 + LOG4 + SMOOTH_L1,
    ),
    "a box that counts neither way": ({}, [(BOX, 1), ((10.0, 10, 14, 14), -1)],
                                      FOCAL_POSITIVE + 0.5),
    "a small one, by the default box nearest": ({}, [(BOX, 1), ((10.0, 10, 11, 11), -1)],
                                                FOCAL_POSITIVE + 0.5),
    "ignored alone": ({}, [(BOX, -1)], FOCAL_NEGATIVE),
    "nothing there": ({}, [], 0.75 * 0.5**2 * LOG2 + FOCAL_NEGATIVE),
    "nothing there, hard": ({"kind": "hard_negative"}, [], LOG2 + LOG4),
    "nothing there, one hard": ({"kind": "hard_negative", "empty_negatives": 1}, [], LOG4),
    "nothing there, as torchvision": ({"kind": "hard_negative", "empty_negatives": 0}, [], 0.0),
    "by IoU": ({"matcher": "iou", "high": 0.9}, [(BOX, 1)], FOCAL_POSITIVE + FOCAL_NEGATIVE + 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_table_of_losses(name):
    options, rows, expected = TABLE[name]
    value = DetectionLoss(2, **options)(OUTPUT, DEFAULTS, (2,), [targets(*rows)])
    assert value.shape == ()
    assert float(value) == pytest.approx(expected, abs=1e-5)


def test_a_batch_is_divided_by_all_its_matched_default_boxes():
    both = targets((BOX, 1), ((10.0, 10, 14, 14), 1))
    value = DetectionLoss(2, gamma=0)(OUTPUT.repeat(2, 1, 1), DEFAULTS, (2,), [both, targets()])
    # Of the first sample 0.25 (log 2 + log 4/3) and boxes 0.5 + 0; of the second the negatives.
    expected = 0.25 * (LOG2 + math.log(4 / 3)) + 0.5 + 0.75 * (LOG2 + LOG4)
    assert float(value) == pytest.approx(expected / 2, abs=1e-5)


def test_three_hardest_negatives_count_for_each_match_of_a_sample():
    centres = torch.arange(7) * 20.0
    defaults = torch.stack([centres, centres, centres + 4, centres + 4], 1)
    output = torch.zeros(2, 7, 6)
    # Of class 1 over the background; the match itself is more wrong than any negative.
    margins = torch.tensor([-8.0, 1, 6, 2, 5, 3, 4])
    output[..., 5] = margins
    hit = targets(((0.0, 0, 4, 4), 1))
    loss = DetectionLoss(2, kind="hard_negative", negatives=3)
    match, *surprise = (math.log1p(math.exp(m)) for m in (8, 6, 5, 4))
    value = loss(output[:1], defaults, (7,), [hit])
    assert float(value) == pytest.approx(match + sum(surprise), abs=1e-5)
    # The second sample has no match: its three hardest, whatever the first one has.
    value = loss(output, defaults, (7,), [hit, targets()])
    assert float(value) == pytest.approx(match + 2 * sum(surprise), abs=1e-5)


def test_all_that_overlaps_an_ignored_box_counts_neither_way():
    # By 8 of 24: no candidate of ATSS, which takes the first default box alone.
    defaults = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4]])
    value = DetectionLoss(2)(OUTPUT, defaults, (2,), [targets(((0.0, 0, 4, 4), -1))])
    assert float(value) == 0


def test_what_the_matcher_leaves_out_counts_neither_way():
    defaults = torch.tensor([[0.0, 0, 4, 8], [0, 0, 4, 4]])  # IoU 1 and 0.5
    for low, expected in ((0.6, FOCAL_POSITIVE + FOCAL_NEGATIVE), (0.4, FOCAL_POSITIVE)):
        loss = DetectionLoss(2, matcher="iou", high=0.9, low=low)
        value = loss(OUTPUT, defaults, (2,), [targets((BOX, 1))])
        assert float(value) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["focal", "hard_negative"])
def test_half_precision_is_summed_in_float32(kind, dtype):
    torch.manual_seed(0)
    output = torch.randn(1, 3, 8).to(dtype)
    truth = Targets(torch.tensor([[1.0, 0, 1, 5, 5, 4]]), torch.tensor([1]))
    loss = DetectionLoss(2, kind)
    assert loss(output, SIX, (3,), [truth]) == loss(output.float(), SIX, (3,), [truth])


def test_an_ignored_box_takes_no_default_box_from_a_true_one():
    rows = [(BOX, -1), ((0.0, 0, 4, 7.9), 1)]
    value = DetectionLoss(2, box_weight=0)(OUTPUT, DEFAULTS, (2,), [targets(*rows)])
    assert float(value) == pytest.approx(FOCAL_POSITIVE + FOCAL_NEGATIVE, abs=1e-5)


def test_the_class_of_a_match_is_that_of_its_true_box():
    output = torch.tensor([[[0.0, 0, 0, 0, 0, 0, LOG2], [0, 0, 0, 0, 99, 0, 0]]])
    for label, probability in ((1, 0.25), (2, 0.5)):
        rows = [((50.0, 50, 54, 54), -1), (BOX, label)]
        value = DetectionLoss(3, gamma=0, box_weight=0)(output, DEFAULTS, (2,), [targets(*rows)])
        assert float(value) == pytest.approx(-0.25 * math.log(probability), abs=1e-5)


@pytest.mark.parametrize("name", ["detection_focal", "detection_hard_negative"])
@pytest.mark.parametrize("matcher", ["atss", "iou"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_batch_without_boxes_trains_the_negatives(name, matcher, dtype):
    loss = losses.build(name, num_classes=2, defaults=SIX, per_level=(2, 1), matcher=matcher)
    output = torch.zeros(2, 3, 8, dtype=dtype, requires_grad=True)
    value = loss(output, [EMPTY, EMPTY])
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert (output.grad[..., 6] < 0).all()  # the background is to rise everywhere
    assert (output.grad[..., :6] == 0).all()


@pytest.mark.parametrize("name", ["detection_focal", "detection_hard_negative"])
def test_gradients_are_those_of_finite_differences(name):
    torch.manual_seed(0)
    loss = losses.build(name, num_classes=3, defaults=SIX.double(), per_level=(2, 1))
    truth = Targets(torch.tensor([[1.0, 0, 1, 5, 5, 4]]).double(), torch.tensor([2]))
    output = torch.randn(1, 3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: loss(o, [truth]), output)


def test_names_say_which_box_loss():
    truth = Targets(torch.tensor([[0.0, 0, 0, 4, 4, 8]]), torch.tensor([1]))
    output = torch.zeros(1, 3, 8)
    output[..., 6] = 40  # no loss of classes but the match's
    for name, of_class, of_box in (
        ("detection_focal", 0.25 * 40, 0.5), ("detection_hard_negative", 40, SMOOTH_L1),
    ):  # fmt: skip
        loss = losses.build(name, num_classes=2, defaults=SIX, per_level=(3,))
        assert float(loss(output, [truth])) == pytest.approx(of_class + of_box, abs=1e-4)


def test_default_boxes_move_with_the_loss_and_are_no_part_of_its_state():
    loss = losses.build("detection_focal", num_classes=2, defaults=SIX, per_level=(3,))
    assert loss.to(torch.float64).defaults.dtype == torch.float64
    assert loss.state_dict() == {}


WRONG = {
    "kind": (lambda: DetectionLoss(2, "ohem"), "kind 'ohem': expected 'focal' or 'hard_negative'"),
    "matcher": (lambda: DetectionLoss(2, matcher="best"), "matcher 'best'"),
    "box_loss": (lambda: DetectionLoss(2, box_loss="l2"), "box_loss 'l2'"),
    "classes": (lambda: DetectionLoss(1), "num_classes 1: expected at least 2"),
    "alpha": (lambda: DetectionLoss(2, alpha=1), "alpha 1: expected above 0 and below 1"),
    "low": (lambda: DetectionLoss(2, low=0.6), "low 0.6, high 0.5"),
    "gamma": (lambda: DetectionLoss(2, gamma=-1), "gamma -1"),
    "nearest": (lambda: DetectionLoss(2, nearest=0), "nearest 0"),
    "output": (lambda: DetectionLoss(3)(OUTPUT, DEFAULTS, (2,), [targets()]),
               r"output \[1, 2, 6\]: expected \[1, 2, 7\]"),
    "targets": (lambda: DetectionLoss(2)(OUTPUT, DEFAULTS, (2,), []), r"expected \[0, 2, 6\]"),
    "defaults": (lambda: DetectionLoss(2)(OUTPUT, DEFAULTS[:, :3], (2,), [targets()]),
                 r"defaults \[2, 3\]: expected \[N, 4\] or \[N, 6\]"),
    "boxes": (lambda: DetectionLoss(2)(OUTPUT, DEFAULTS, (2,), [EMPTY]),
              r"target 0: boxes \[0, 6\], labels \[0\]: expected \[n, 4\]"),
    "label": (lambda: DetectionLoss(2)(OUTPUT, DEFAULTS, (2,), [targets((BOX, 2))]),
              "target 0: label 2: expected 1 to 1, or -1"),
    "flat box": (lambda: DetectionLoss(2)(OUTPUT, DEFAULTS, (2,), [targets(((0.0, 0, 4, 0), 1))]),
                 r"target 0: box \[0.0, 0.0, 4.0, 0.0\]: expected finite corners"),
    "lost box": (
        lambda: DetectionLoss(2)(OUTPUT, DEFAULTS, (2,), [targets(((0.0, 0, math.inf, 4), 1))]),
        "target 0: box .*inf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=f"detection.*{message}"):
        call()


def test_an_unknown_option_is_named_with_those_that_there_are():
    with pytest.raises(TypeError, match=r"detection_focal: option 'kind' is unknown; it has matc"):
        losses.build("detection_focal", num_classes=2, defaults=SIX, per_level=(3,), kind="focal")
