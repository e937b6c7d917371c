"""softmax_overlap by torch's softmax and one_hot, and by MONAI's DiceLoss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rivals.rival import Rival, with_gradients


def softmax_rivals(logits, target, *, large, ignore_index=None) -> dict[str, Rival]:
    classes = logits.shape[1]
    labels = target.long()
    known = bool(((labels >= 0) & (labels < max(classes, 2))).all())
    plain = ignore_index is None and known
    space = tuple(range(2, logits.dim()))

    def sums():
        values = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if classes == 1:
            likely = values.sigmoid()
            truth = (target == 1)[:, None].to(likely.dtype)
        else:
            likely = values.softmax(1)
            inside = target.long() if plain else target.long().clamp(0, classes - 1)
            truth = F.one_hot(inside, classes).movedim(-1, 1).to(likely.dtype)
        if not plain:
            counted = torch.ones_like(target, dtype=torch.bool)
            if ignore_index is not None:
                counted &= target != ignore_index
            likely = likely * counted[:, None]
            truth = truth * (counted & (target >= 0) & (target < max(classes, 2)))[:, None]
        return (likely * truth).sum(space), likely.sum(space), truth.sum(space)

    agreement = {"atol": 1e-2, "view": _three_and_gradient, "ours": _three_and_gradient}
    rivals = {"softmax + one_hot + sums": Rival(with_gradients(sums, (logits,)), **agreement)}
    if plain and classes > 1 and logits.dtype == torch.float32:
        from monai.losses import DiceLoss

        loss = DiceLoss(softmax=True, to_onehot_y=True)
        rivals["DiceLoss"] = Rival(
            with_gradients(lambda: (loss(logits, target[:, None]),), (logits,)),
            view=lambda result: result[0],
            ours=_dice_loss,
            atol=1e-4,
        )
    return rivals


def _three_and_gradient(result) -> list[Tensor]:
    """The sums as parts of the largest, so that one tolerance fits every size; the gradient."""
    sums = [each.detach().double() for each in result[:3]]
    most = max(1.0, float(max(each.abs().max() for each in sums)))
    return [*(each / most for each in sums), *result[3:]]


def _dice_loss(result) -> Tensor:
    both, likely, truth = (each.detach().double() for each in result[:3])
    return (1 - (2 * both + 1e-5) / (likely + truth + 1e-5)).mean()
