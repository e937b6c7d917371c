"""Losses by name, for label maps and for a class per sample, that average over processes.

Every loss is the plain mean over the batch of one number per sample, and the number of a sample is
the mean over its voxels that count. So the gradients of processes with equal shares of a batch
average to those of one process with the whole batch. That holds with class weights too, because
they are not divided away by the sum of the weights in the batch (as torch's cross entropy does).
"""

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmed.ops import softmax_overlap


def build(
    name: str,
    *,
    num_classes: int,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
    **options,
) -> nn.Module:
    """Builds the loss `name`, called as loss(logits, target), which returns a scalar.

    Takes label maps, logits [B, K, *spatial] with target [B, *spatial], and classes, logits [B, K]
    with target [B]. K is num_classes, or 1 where num_classes is 2: the sigmoid of the one logit is
    then the probability of class 1. Logits are float16, bfloat16, float32 or float64, the target
    bool or of an integer dtype; sums run in float32 (float64 for float64 logits).

    name, and its options:
        "ce": cross entropy; with class_weights the weighted one.
        "focal": gamma (2).
        "dice": smooth (1), classes ("auto").
        "dice_ce": Dice + cross entropy; smooth, classes.
        "bce_dice": the same for two classes alone: binary cross entropy + Dice; smooth, classes.
        "combined": 0.5 focal + 0.5 Dice; gamma, smooth, classes.
        "asymmetric": gamma_positive (0), gamma_negative (4), clip (0.05).
    num_classes: with the background or the negative class, at least 2.
    class_weights: [num_classes] floats above 0, by which the loss of each voxel or sample is
        multiplied according to its target. Only the Dice of label maps, which is a mean over
        classes already, weighs that mean by them instead.
    ignore_index: a target label whose voxels or samples count nowhere and get no gradient.

    Raises ValueError for a bad value, TypeError for an unknown option; the loss raises ValueError
    for shapes that do not fit, and on CPU for a label out of range (on CUDA the survey of the data
    has to find those before).
    """
    known = list(inspect.signature(LOSSES[name]).parameters)[1:]
    for option in options.keys() - set(known):
        raise TypeError(
            f"loss {name}: option {option!r} is unknown; it has {', '.join(known) or 'none'}"
        )
    if num_classes < 2:
        raise ValueError(f"loss {name}: num_classes {num_classes}: expected at least 2")
    if class_weights is not None:
        _check_weights(name, num_classes, class_weights)
    return LOSSES[name](_Common(name, num_classes, class_weights, ignore_index), **options)


def _check_weights(name: str, num_classes: int, weights: Tensor) -> None:
    if list(weights.shape) != [num_classes]:
        raise ValueError(
            f"loss {name}: class_weights {list(weights.shape)}: expected one for each of "
            f"{num_classes} classes"
        )
    if not (torch.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"loss {name}: class_weights {weights.tolist()}: expected numbers above 0")


class _Common(NamedTuple):
    name: str
    num_classes: int
    class_weights: Tensor | None
    ignore_index: int | None


class _Truth(NamedTuple):
    stored: Tensor  # as given
    labels: Tensor  # uint8 or int64; 0 where it does not count
    counted: Tensor | None  # bool; None where every voxel counts


class _Loss(nn.Module):
    """What all losses share: checks, labels that are ignored, the mean over the batch."""

    def __init__(self, common: _Common):
        super().__init__()
        self.name, self.num_classes, weights, self.ignore_index = common
        weights = None if weights is None else weights.detach().float().clone()
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.per_sample(logits, self._truth(logits, target)).mean()

    def per_sample(self, logits: Tensor, truth: _Truth) -> Tensor:
        """Returns [B]."""
        raise NotImplementedError

    def _truth(self, logits: Tensor, target: Tensor) -> _Truth:
        classes = {self.num_classes} | ({1} if self.num_classes == 2 else set())
        if logits.dim() < 2 or logits.shape[1] not in classes:
            raise ValueError(
                f"loss {self.name}: logits {list(logits.shape)}: expected [B, K, ...] with K = "
                f"{' or '.join(map(str, sorted(classes)))} for {self.num_classes} classes"
            )
        expected = [logits.shape[0], *logits.shape[2:]]
        if list(target.shape) != expected or target.is_floating_point():
            raise ValueError(
                f"loss {self.name}: target {list(target.shape)} {target.dtype}: expected integer "
                f"labels {expected}, for logits {list(logits.shape)}"
            )
        labels = target if target.dtype in (torch.uint8, torch.int64) else target.long()
        counted = None
        if self.ignore_index is not None:
            counted = labels != self.ignore_index
            labels = labels.masked_fill(~counted, 0)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_range(labels)
        return _Truth(target, labels, counted)

    def _check_range(self, labels: Tensor) -> None:
        for label in torch.stack(labels.aminmax()).tolist() if labels.numel() else ():
            if not 0 <= label < self.num_classes:
                ignored = "" if self.ignore_index is None else f", or {self.ignore_index} (ignored)"
                raise ValueError(
                    f"loss {self.name}: target holds label {label}; expected 0 to "
                    f"{self.num_classes - 1}{ignored}"
                )

    def _mean(self, values: Tensor, truth: _Truth) -> Tensor:
        """Mean of each sample's weighted values [B, *spatial] over what counts: [B]."""
        if self.class_weights is not None:
            values = values * self._weights_of(truth.labels).to(values.dtype)
        values = values.flatten(1) if values.dim() > 1 else values[:, None]
        if truth.counted is None:
            return values.mean(1)
        counted = truth.counted.reshape(values.shape)
        return values.masked_fill(~counted, 0).sum(1) / counted.sum(1).clamp_min(1)

    def _weights_of(self, labels: Tensor) -> Tensor:
        if self.num_classes == 2:
            return torch.where(labels == 1, *self.class_weights.flip(0))
        return self.class_weights[labels.long()]


def at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _margin(logits: Tensor) -> Tensor:
    """[B, *spatial]: what the sigmoid turns into the probability of class 1 of two classes.

    The softmax of two logits is the sigmoid of their difference.
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[:, 1] - logits[:, 0]


def _surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of the probability given to the target, [B, *spatial]."""
    logits = at_least_float32(logits)
    if logits.shape[1] <= 2:
        margin = _margin(logits)
        truth = labels.to(margin.dtype)
        return F.binary_cross_entropy_with_logits(margin, truth, reduction="none")
    return F.cross_entropy(logits, labels.long(), reduction="none")


class _CrossEntropy(_Loss):
    def per_sample(self, logits: Tensor, truth: _Truth) -> Tensor:
        return self._mean(_surprise(logits, truth.labels), truth)


class _Focal(_Loss):
    """Cross entropy times (1 - p) ** gamma, p the probability given to the target.

    Class weights multiply from outside; p knows nothing of them (taking p = exp(-weighted cross
    entropy) is a common mistake). They are the paper's alpha.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """

    def __init__(self, common: _Common, gamma: float = 2.0):
        super().__init__(common)
        self.gamma = at_least_zero(self.name, "gamma", gamma)

    def per_sample(self, logits: Tensor, truth: _Truth) -> Tensor:
        surprise = _surprise(logits, truth.labels)
        return self._mean(power(-torch.expm1(-surprise), self.gamma) * surprise, truth)


class _Dice(_Loss):
    """1 - the mean over classes of (2 * intersection + smooth) / (prediction + target + smooth).

    The sums are over one sample, of softmax probabilities (not squared), or of the sigmoid of one
    logit. A class that a sample lacks costs it what is predicted of it. A class per sample is a
    label map of one voxel.

    classes: "foreground" leaves class 0 out, "all" counts it; "auto" is the former for label maps,
        where the background would drown the rest, the latter for a class per sample.

    Source: Milletari et al., "V-Net", 3DV 2016, with sums of p as in Drozdzal et al. (2016).
    """

    def __init__(self, common: _Common, smooth: float = 1.0, classes: str = "auto"):
        super().__init__(common)
        if not 0 < smooth < float("inf"):
            raise ValueError(f"loss {self.name}: smooth {smooth}: expected a number above 0")
        if classes not in ("auto", "foreground", "all"):
            raise ValueError(
                f"loss {self.name}: classes {classes!r}: expected 'auto', 'foreground' or 'all'"
            )
        self.smooth, self.classes = smooth, classes

    def per_sample(self, logits: Tensor, truth: _Truth) -> Tensor:
        stored, is_map = truth.stored, logits.dim() > 2
        if not is_map:
            logits, stored = logits[:, :, None], stored[:, None]
        intersection, prediction, target = softmax_overlap(
            logits, stored, ignore_index=self.ignore_index
        )
        dice = (2 * intersection + self.smooth) / (prediction + target + self.smooth)
        weights = dice.new_ones(dice.shape[1])
        foreground = self.classes == "foreground" or (self.classes == "auto" and is_map)
        if is_map and self.class_weights is not None and dice.shape[1] > 1:
            weights = self.class_weights.to(dice.dtype)
        if foreground and dice.shape[1] > 1:
            dice, weights = dice[:, 1:], weights[1:]
        loss = 1 - (dice * weights).sum(1) / weights.sum()
        return loss if is_map else self._mean(loss, truth)


class _Asymmetric(_Loss):
    """Each class against the rest, with positives and negatives focused apart.

    With p the softmax probability of a class, which is what inference reports: where the class is
    the target, -(1 - p) ** gamma_positive * log(p); where it is not, with q = max(p - clip, 0),
    -q ** gamma_negative * log(1 - q). Easy negatives below the clip cost nothing. A sample's loss
    is the sum over the classes. Of two classes only class 1 is summed, as both are one question:
    class 1 is the rare positive, class 0 the plentiful negative.

    Source: Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021, which has
    sigmoids in place of the softmax.
    """

    def __init__(
        self,
        common: _Common,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        clip: float = 0.05,
    ):
        super().__init__(common)
        if not 0 <= clip < 1:
            raise ValueError(f"loss {self.name}: clip {clip}: expected at least 0 and below 1")
        self.gamma_positive = at_least_zero(self.name, "gamma_positive", gamma_positive)
        self.gamma_negative = at_least_zero(self.name, "gamma_negative", gamma_negative)
        self.clip = clip

    def per_sample(self, logits: Tensor, truth: _Truth) -> Tensor:
        logits = at_least_float32(logits)
        labels = truth.labels[:, None]
        if logits.shape[1] <= 2:
            margin = _margin(logits)[:, None]
            log_p, log_rest = F.logsigmoid(margin), F.logsigmoid(-margin)
            positive = labels == 1
        else:
            log_p = logits.log_softmax(1)
            # 1e-8 as the authors have it: where p rounds to 1, nothing is left of the rest.
            log_rest = (-torch.expm1(log_p)).clamp_min(1e-8).log()
            classes = torch.arange(logits.shape[1], device=logits.device)
            positive = labels == classes.view(-1, *[1] * (labels.dim() - 2))
        rest = log_rest.exp()
        hit = -power(rest, self.gamma_positive) * log_p
        if self.clip:
            kept = (rest + self.clip).clamp_max(1)  # 1 - q
            miss = -power(1 - kept, self.gamma_negative) * kept.log()
        else:
            miss = -power(log_p.exp(), self.gamma_negative) * log_rest
        return self._mean(torch.where(positive, hit, miss).sum(1), truth)


class _Sum(_Loss):
    """Losses of one sample, each times its share."""

    def __init__(self, common: _Common, share: float, *parts: _Loss):
        super().__init__(common)
        self.share, self.parts = share, nn.ModuleList(parts)

    def per_sample(self, logits: Tensor, truth: _Truth) -> Tensor:
        return self.share * sum(part.per_sample(logits, truth) for part in self.parts)


def _dice_ce(common: _Common, smooth: float = 1.0, classes: str = "auto") -> _Sum:
    return _Sum(common, 1.0, _Dice(common, smooth, classes), _CrossEntropy(common))


def _bce_dice(common: _Common, smooth: float = 1.0, classes: str = "auto") -> _Sum:
    if common.num_classes != 2:
        raise ValueError(
            f"loss {common.name}: num_classes {common.num_classes}: expected 2; dice_ce takes more"
        )
    return _dice_ce(common, smooth, classes)


def _combined(
    common: _Common, gamma: float = 2.0, smooth: float = 1.0, classes: str = "auto"
) -> _Sum:
    return _Sum(common, 0.5, _Focal(common, gamma), _Dice(common, smooth, classes))


def power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent with a finite gradient at base 0 also for exponents below 1."""
    if exponent == 0:
        return torch.ones_like(base)
    return base.clamp_min(torch.finfo(base.dtype).tiny).pow(exponent)


def at_least_zero(name: str, option: str, value: float) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError(f"loss {name}: {option} {value}: expected a number of at least 0")
    return value


LOSSES = {
    "ce": _CrossEntropy,
    "focal": _Focal,
    "dice": _Dice,
    "dice_ce": _dice_ce,
    "bce_dice": _bce_dice,
    "combined": _combined,
    "asymmetric": _Asymmetric,
}
