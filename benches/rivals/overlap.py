"""overlap_counts by torch.bincount and MONAI's compute_dice."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmed import ops
from rivals.rival import Rival, fastest


def count_rivals(prediction, target, num_classes, *, large, ignore_index=None) -> dict[str, Rival]:
    rivals = _bincounts(prediction, target, num_classes, ignore_index)
    if ignore_index is None:
        rivals["compute_dice"] = _compute_dice(prediction, target, num_classes)
    return rivals


def _bincounts(prediction, target, classes: int, ignore_index) -> dict[str, Rival]:
    """One histogram of pairs: in int64, as it is usually written, and in its fastest dtype."""
    present = max(int(each.max()) if each.numel() else 0 for each in (prediction, target))
    side = max(classes, present + 1)
    items = prediction.shape[0]
    pairs = items * side * side
    dtypes = {
        str(dtype): dtype
        for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
        if pairs - 1 <= torch.iinfo(dtype).max
    }
    row = torch.arange(items, device=target.device).view([-1] + [1] * (target.dim() - 1))

    def counted(dtype):
        offset = (row * side * side).to(dtype)

        def call():
            index = prediction.to(dtype, copy=True).mul_(side).add_(target)
            if items > 1:
                index += offset
            table = torch.bincount(index.flatten(), minlength=pairs).view(items, side, side)
            if ignore_index is not None and ignore_index < side:
                table[:, :, ignore_index] = 0
            both = table.diagonal(dim1=1, dim2=2)
            return torch.stack([both, table.sum(2), table.sum(1)], 2)[:, :classes]

        return call

    calls = {name.removeprefix("torch."): counted(dtype) for name, dtype in dtypes.items()}
    best = fastest(calls)
    return {
        "torch.bincount": Rival(calls["int64"], detail="int64"),
        "torch.bincount, best dtype": Rival(calls[best], detail=best),
    }


def _compute_dice(prediction: Tensor, target: Tensor, classes: int) -> Rival:
    """From label maps, which is its fast way: one-hot inputs would be made for it alone."""
    from monai.metrics import compute_dice

    def call():
        return compute_dice(
            prediction[:, None],
            target[:, None],
            include_background=True,
            ignore_empty=False,
            num_classes=classes,
        )

    # It calls a class absent from both sides a perfect one.
    return Rival(
        call,
        view=lambda dice: dice.double(),
        ours=lambda counts: ops.dice_score(counts).nan_to_num(1.0),
        atol=1e-5,
    )
