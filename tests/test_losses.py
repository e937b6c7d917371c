"""Each loss by literal values, against plain formulas, and by its gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmed import losses

NAMES = ["ce", "focal", "dice", "dice_ce", "bce_dice", "combined", "asymmetric"]
LOG2, LOG3 = math.log(2), math.log(3)

# A class per sample. Softmax of the logits: 1/4, 3/4 and 1/4, 1/4, 1/2.
TWO, THREE = [0, LOG3], [0, 0, LOG2]
CLASSES = {
    # loss: logits, target, value
    "ce, likely": ("ce", TWO, 1, 0.287682072),  # -log(3/4)
    "ce, unlikely": ("ce", TWO, 0, 1.386294361),  # -log(1/4)
    "ce, three": ("ce", THREE, 2, 0.693147181),  # -log(1/2)
    "focal, likely": ("focal", TWO, 1, 0.017980130),  # (1/4)^2 * -log(3/4)
    "focal, unlikely": ("focal", TWO, 0, 0.779790578),  # (3/4)^2 * -log(1/4)
    "focal, three": ("focal", THREE, 2, 0.173286795),  # (1/2)^2 * -log(1/2)
    # Dice of class 0 and 1: 1 / 1.25 and 2.5 / 2.75; then 1.5 / 2.25 and 1 / 1.75
    "dice, likely": ("dice", TWO, 1, 0.145454545),  # 1 - (4/5 + 10/11) / 2
    "dice, unlikely": ("dice", TWO, 0, 0.380952381),  # 1 - (2/3 + 4/7) / 2
    "dice, three": ("dice", THREE, 2, 0.2),  # 1 / 1.25, 1 / 1.25, 2 / 2.5
    "dice, three, unlikely": ("dice", THREE, 0, 0.288888889),  # 1 - (2/3 + 4/5 + 2/3) / 3
    "dice_ce": ("dice_ce", TWO, 0, 1.767246742),
    "bce_dice": ("bce_dice", TWO, 0, 1.767246742),
    "combined": ("combined", TWO, 0, 0.580371480),
    "asymmetric, positive": ("asymmetric", TWO, 1, 0.287682072),  # -log(3/4)
    "asymmetric, negative": ("asymmetric", TWO, 0, 0.289073870),  # 0.7^4 * -log(0.3)
    # -log(1/2) + 2 * 0.2^4 * -log(0.8)
    "asymmetric, three": ("asymmetric", THREE, 2, 0.693861240),
    # -log(1/4) + 0.2^4 * -log(0.8) + 0.45^4 * -log(0.55)
    "asymmetric, three, unlikely": ("asymmetric", THREE, 0, 1.411166444),
}

# A label map of 4 voxels. Probability of class 1: 3/4, 3/4, 1/4, 1/4; the target: 1, 0, 0, 0.
MAP = [LOG3, LOG3, -LOG3, -LOG3]
TARGET = [1, 0, 0, 0]
MAPS = {
    # loss, class weights, options: value
    "ce": ("ce", None, {}, 0.562335145),  # (3 * -log(3/4) - log(1/4)) / 4
    "ce, weighted": ("ce", [0.5, 1.5], {}, 0.353088090),  # of class 1 the first voxel alone
    "focal": ("focal", None, {}, 0.208432742),
    "focal, gamma 0": ("focal", None, {"gamma": 0}, 0.562335145),
    "focal, weighted": ("focal", [0.5, 1.5], {}, 0.108711403),
    "dice": ("dice", None, {}, 0.375),  # 1 - (2 * 3/4 + 1) / (2 + 1 + 1)
    "dice, smooth 3": ("dice", None, {"smooth": 3}, 0.25),  # 1 - (2 * 3/4 + 3) / (2 + 1 + 3)
    "dice_ce": ("dice_ce", None, {}, 0.937335145),
    "bce_dice": ("bce_dice", None, {}, 0.937335145),
    "combined": ("combined", None, {}, 0.291716371),
    "asymmetric": ("asymmetric", None, {}, 0.144367500),
    # -log(3/4) * (1/4), 0.75^2 * -log(1/4), and twice 0.25^2 * -log(3/4)
    "asymmetric, no clip": (
        "asymmetric", None, {"gamma_positive": 1, "gamma_negative": 2, "clip": 0}, 0.221917839
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_table_of_classes(name):
    loss, logits, target, expected = CLASSES[name]
    value = losses.build(loss, num_classes=len(logits))(
        torch.tensor([logits], dtype=torch.float64), torch.tensor([target])
    )
    assert value.shape == ()
    assert float(value) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", MAPS)
def test_table_of_label_maps(name, channels):
    loss, weights, options, expected = MAPS[name]
    logits = torch.tensor([MAP], dtype=torch.float64).view(1, 1, 2, 2)
    if channels == 2:  # any two logits of that difference
        logits = torch.cat([torch.full_like(logits, 5), 5 + logits], 1)
    weights = weights and torch.tensor(weights)
    built = losses.build(loss, num_classes=2, class_weights=weights, **options)
    value = built(logits, torch.tensor(TARGET).view(1, 2, 2))
    assert float(value) == pytest.approx(expected, abs=1e-8)


# Two samples of one logit each, probability of class 1 3/4; targets 1 and 0; weights 0.5 and 1.5.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ce", 0.562335145),  # (1.5 * 0.287682072 + 0.5 * 1.386294361) / 2
        # Dice of the one class: 1 - 2.5 / 2.75 = 1/11 and 1 - 1 / 1.75 = 3/7
        ("dice", 0.175324675),  # (1.5 * 1/11 + 0.5 * 3/7) / 2
        ("asymmetric", 0.288030022),
    ],
)
def test_class_weights_multiply_the_loss_of_each_sample(name, expected):
    loss = losses.build(name, num_classes=2, class_weights=torch.tensor([0.5, 1.5]))
    value = loss(torch.tensor([[LOG3], [LOG3]], dtype=torch.float64), torch.tensor([1, 0]))
    assert float(value) == pytest.approx(expected, abs=1e-8)


def test_class_weights_weigh_the_mean_over_classes_of_the_dice_of_maps():
    # One voxel of softmax 1/4, 1/4, 1/2 and target 2: Dice of the classes 4/5, 4/5, 4/5; then
    # target 1: 4/5, 2/3, 2/3.
    logits = torch.tensor([THREE], dtype=torch.float64).view(1, 3, 1)
    target = torch.tensor([[1]])
    for weights, classes, expected in [
        ([1, 1, 1], "all", 1 - (0.8 + 2 / 3 + 2 / 3) / 3),
        ([4, 1, 1], "all", 1 - (4 * 0.8 + 2 / 3 + 2 / 3) / 6),
        ([4, 1, 1], "auto", 1 / 3),
        ([4, 1, 1], "foreground", 1 / 3),
    ]:
        loss = losses.build(
            "dice", num_classes=3, class_weights=torch.tensor(weights), classes=classes
        )
        assert float(loss(logits, target)) == pytest.approx(expected, abs=1e-8)


def test_weights_do_not_bend_the_focus_of_the_focal_loss():
    """With p = exp(-weighted cross entropy) the value would not be linear in the weight."""
    logits, target = torch.tensor([TWO, [1.0, -1.0]]), torch.tensor([0, 1])
    plain, weighted = (
        losses.build("focal", num_classes=2, class_weights=torch.tensor([w, w]))(logits, target)
        for w in (1.0, 7.0)
    )
    torch.testing.assert_close(weighted, 7 * plain)


def plain(name, logits, target, weights, ignore_index, num_classes):
    """The losses by their formulas, in float64, one sample after the other."""
    if weights is None:
        weights = torch.ones(num_classes)
    samples = zip(logits.double(), target.long(), strict=True)
    each = [plain_sample(name, one, t, weights.double(), ignore_index) for one, t in samples]
    return torch.stack(each).mean()


def plain_sample(name, logits, target, weights, ignore_index):
    is_map, sigmoid = target.dim() > 0, len(logits) == 1
    counts = torch.ones_like(target) if ignore_index is None else target != ignore_index
    p, t = logits.reshape(len(logits), -1)[:, counts.view(-1).bool()], target[counts.bool()]
    if not len(t):
        return torch.zeros((), dtype=torch.float64)
    p = torch.cat([1 - p.sigmoid(), p.sigmoid()]) if sigmoid else p.softmax(0)
    y = F.one_hot(t, len(weights)).T.double()
    pt = (p * y).sum(0)
    ce = -(weights[t] * pt.log()).mean()
    focal = -(weights[t] * (1 - pt) ** 2 * pt.log()).mean()
    dice = (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
    if sigmoid:
        dice = 1 - dice[1]
    elif is_map:
        dice = 1 - (dice * weights)[1:].sum() / weights[1:].sum()
    else:
        dice = 1 - dice.mean()
    if not is_map:
        dice = dice * weights[t[0]]
    return {
        "ce": ce,
        "focal": focal,
        "dice": dice,
        "dice_ce": dice + ce,
        "bce_dice": dice + ce,
        "combined": 0.5 * dice + 0.5 * focal,
        "asymmetric": (weights[t] * one_vs_rest(p, y)).mean(),
    }[name]


def one_vs_rest(p, y):
    q = (p - 0.05).clamp_min(0)
    terms = torch.where(y == 1, -p.log(), -(q**4) * (1 - q).log())
    return terms[1] if len(p) == 2 else terms.sum(0)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 3, 5]),
    spatial=st.sampled_from([(), (7,), (4, 5), (3, 4, 2)]),
    weighted=st.booleans(),
    ignored=st.sampled_from([None, -100, 255]),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.int64]),
    seed=st.integers(0, 10_000),
)
def test_losses_agree_with_their_formulas(
    name, batch, channels, spatial, weighted, ignored, dtype, seed
):
    classes = max(channels, 2)
    if (name == "bce_dice" and classes > 2) or (ignored == -100 and dtype == torch.uint8):
        return
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, channels, *spatial, generator=random)
    target = torch.randint(0, classes, (batch, *spatial), generator=random)
    if ignored is not None:
        target[torch.rand(target.shape, generator=random) < 0.3] = ignored
    target = target.to(dtype)
    weights = torch.rand(classes, generator=random) + 0.1 if weighted else None
    loss = losses.build(name, num_classes=classes, class_weights=weights, ignore_index=ignored)
    for asked in (torch.float32, torch.float64):
        torch.testing.assert_close(
            loss(logits.to(asked), target).double(),
            plain(name, logits, target, weights, ignored, classes),
            rtol=1e-5 if asked == torch.float32 else 1e-6,  # weights are float32
            atol=1e-6,
        )


@pytest.mark.parametrize("spatial", [(), (4, 3)], ids=["classes", "maps"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_gradient_of_one(name, spatial):
    """Also where their samples differ in classes and in how many voxels are ignored."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 2, *spatial, generator=random, dtype=torch.float64)
    target = torch.randint(0, 2, (4, *spatial), generator=random)
    target[0], target[1] = 0, 1
    target[3] = 9
    if spatial:
        target[3, 1:] = 0
    weights = torch.tensor([0.2, 1.8])
    loss = losses.build(name, num_classes=2, class_weights=weights, ignore_index=9)

    def gradient(part):
        leaf = logits[part].clone().requires_grad_()
        loss(leaf, target[part]).backward()
        return leaf.grad

    halves = torch.cat([gradient(slice(0, 2)), gradient(slice(2, 4))]) / 2
    torch.testing.assert_close(halves, gradient(slice(0, 4)))


@pytest.mark.parametrize(
    ("channels", "spatial"), [(1, ()), (2, ()), (4, ()), (1, (3, 2)), (2, (3, 2)), (4, (3, 2))]
)
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, channels, spatial):
    classes = max(channels, 2)
    if name == "bce_dice" and classes > 2:
        pytest.skip("bce_dice has two classes")
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(3, channels, *spatial, generator=random, dtype=torch.float64)
    target = torch.randint(0, classes, (3, *spatial), generator=random)
    target.view(-1)[-1] = 7
    loss = losses.build(
        name, num_classes=classes, class_weights=torch.rand(classes) + 0.5, ignore_index=7
    )
    assert torch.autograd.gradcheck(lambda values: loss(values, target), logits.requires_grad_())


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_far_logits_give_finite_values_and_still_pull(name, channels):
    """A network that is sure and wrong must be corrected; one that is right must not break."""
    if name == "bce_dice" and channels > 2:
        pytest.skip("bce_dice has two classes")
    logits = torch.full((2, channels, 4), -80.0)
    logits[0, -1] = logits[1, -1] = 80.0
    target = torch.tensor([[max(channels, 2) - 1] * 4, [0] * 4])
    logits.requires_grad_()
    options = {"gamma": 0.5} if name in ("focal", "combined") else {}
    value = losses.build(name, num_classes=max(channels, 2), **options)(logits, target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    if name not in ("dice", "asymmetric"):  # bounded by nature: no pull from afar
        assert logits.grad[1, -1].min() > 0.04


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_logits_under_autocast_lose_no_more_than_their_own_rounding(name, dtype):
    random = torch.Generator().manual_seed(2)
    logits = (4 * torch.randn(2, 2, 16, 16, 16, generator=random)).to(dtype)
    target = torch.randint(0, 2, (2, 16, 16, 16), generator=random)
    loss = losses.build(name, num_classes=2, class_weights=torch.tensor([0.5, 1.5]))
    half, full = logits.clone().requires_grad_(), logits.float().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        value = loss(half, target)
    expected = loss(full, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    (value * 2**12).backward()  # as a scaler does: else gradients of 1e-6 vanish in float16
    (expected * 2**12).backward()
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_float16_logits_at_their_limit_are_finite(name):
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)[:, :, None]
    assert torch.isfinite(losses.build(name, num_classes=2)(logits, torch.tensor([[1]])))


@pytest.mark.parametrize("name", NAMES)
def test_ignored_voxels_have_no_gradient_and_a_sample_without_others_costs_nothing(name):
    logits = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([[0, 1, 255, 1, 0], [255] * 5], dtype=torch.uint8)
    loss = losses.build(name, num_classes=2, ignore_index=255)
    loss(logits, target).backward()
    assert (logits.grad[0, :, 2] == 0).all()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0, :, [0, 1, 3, 4]] != 0).any()
    assert loss(logits[1:], target[1:]).item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_descent_finds_the_target(name):
    target = torch.tensor([[0, 1, 0, 0, 1, 0]])
    logits = torch.zeros(1, 2, 6, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    loss = losses.build(name, num_classes=2)
    for _ in range(50):
        optimiser.zero_grad()
        loss(logits, target).backward()
        optimiser.step()
    assert torch.equal(logits.argmax(1), target)


@pytest.mark.parametrize("classes", [2, 4])
def test_dice_keeps_no_softmax_and_no_one_hot_for_the_backward_pass(classes):
    logits = torch.randn(1, classes, 8, 8, 8, requires_grad=True)
    target = torch.randint(0, classes, (1, 8, 8, 8), dtype=torch.uint8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        losses.build("dice", num_classes=classes)(logits, target)
    large = {each.data_ptr() for each in kept if each.numel() >= target.numel()}
    assert large == {logits.data_ptr(), target.data_ptr()}


def test_bool_masks_are_labels_of_two_classes():
    logits, mask = torch.randn(2, 1, 4, 4), torch.rand(2, 4, 4) > 0.5
    for name in NAMES:
        loss = losses.build(name, num_classes=2)
        assert torch.equal(loss(logits, mask), loss(logits, mask.long()))


def test_channels_last_logits_give_the_same():
    logits, target = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6))
    last = logits.contiguous(memory_format=torch.channels_last_3d)
    for name in set(NAMES) - {"bce_dice"}:
        loss = losses.build(name, num_classes=3)
        torch.testing.assert_close(loss(last, target), loss(logits, target))


def test_class_weights_move_with_the_loss_but_are_no_weights_of_a_checkpoint():
    loss = losses.build("combined", num_classes=2, class_weights=torch.tensor([1.0, 3.0]))
    assert loss.state_dict() == {}
    assert {b.device.type for b in loss.to("meta").buffers()} == {"meta"}


ONE = torch.zeros(1, 1, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: losses.build("l2", num_classes=2), ValueError,
         "loss 'l2' is unknown; known are ce, focal, dice, dice_ce, bce_dice, combined, asym"),
        (lambda: losses.build("focal", num_classes=2, smooth=1), TypeError,
         "loss focal: option 'smooth' is unknown; it has gamma"),
        (lambda: losses.build("ce", num_classes=2, gamma=1), TypeError,
         "loss ce: option 'gamma' is unknown; it has none"),
        (lambda: losses.build("ce", num_classes=1), ValueError,
         "loss ce: num_classes 1: expected at least 2"),
        (lambda: losses.build("bce_dice", num_classes=3), ValueError,
         "loss bce_dice: num_classes 3: expected 2; dice_ce takes more"),
        (lambda: losses.build("focal", num_classes=2, gamma=-1), ValueError,
         "loss focal: gamma -1: expected a number of at least 0"),
        (lambda: losses.build("dice", num_classes=2, smooth=0), ValueError,
         "loss dice: smooth 0: expected a number above 0"),
        (lambda: losses.build("dice", num_classes=2, classes="1"), ValueError,
         "loss dice: classes '1': expected 'auto', 'foreground' or 'all'"),
        (lambda: losses.build("asymmetric", num_classes=2, clip=1), ValueError,
         "loss asymmetric: clip 1: expected at least 0 and below 1"),
        (lambda: losses.build("ce", num_classes=3, class_weights=torch.ones(2)), ValueError,
         r"loss ce: class_weights \[2\]: expected one for each of 3 classes"),
        (lambda: losses.build("ce", num_classes=2, class_weights=torch.tensor([0.0, 1])),
         ValueError, r"loss ce: class_weights \[0.0, 1.0\]: expected numbers above 0"),
        (lambda: losses.build("ce", num_classes=3)(ONE, torch.zeros(1, 2).long()), ValueError,
         r"loss ce: logits \[1, 1, 2\]: expected \[B, K, ...\] with K = 3 for 3 classes"),
        (lambda: losses.build("ce", num_classes=2)(torch.zeros(1, 3), torch.zeros(1).long()),
         ValueError, r"logits \[1, 3\]: expected \[B, K, ...\] with K = 1 or 2 for 2 classes"),
        (lambda: losses.build("dice", num_classes=2)(ONE, torch.zeros(1, 1, 2).long()), ValueError,
         r"loss dice: target \[1, 1, 2\] torch.int64: expected integer labels \[1, 2\]"),
        (lambda: losses.build("dice", num_classes=2)(ONE, torch.zeros(1, 2)), ValueError,
         r"loss dice: target \[1, 2\] torch.float32: expected integer labels \[1, 2\]"),
        (lambda: losses.build("dice", num_classes=2)(ONE, torch.tensor([[0, 5]])), ValueError,
         "loss dice: target holds label 5; expected 0 to 1$"),
        (lambda: losses.build("ce", num_classes=2, ignore_index=9)(ONE, torch.tensor([[-1, 9]])),
         ValueError, r"loss ce: target holds label -1; expected 0 to 1, or 9 \(ignored\)"),
    ],
    ids=range(17),
)  # fmt: skip
def test_what_is_wrong_is_named_with_the_loss(call, error, words):
    with pytest.raises(error, match=words):
        call()
