"""MONAI with fastmed's kernels: spacing and window in one pass, and Dice from label maps."""

import torch
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import AFFINE_TOL, to_affine_nd
from monai.metrics import DiceMetric
from monai.metrics.utils import do_metric_reduction
from monai.transforms import Spacingd, SpatialResample
from monai.utils import TraceKeys, convert_to_tensor
from torch import Tensor

from fastmed.ops import dice_score, overlap_counts, window_resample

_MODES = {"bilinear": "linear", "nearest": "nearest"}
_FILLS = {"border": None, "zeros": 0.0}
_WIDENED = (torch.bool, torch.int8, torch.int64)  # float32 for window_resample


class ResampleWindowd(Spacingd):
    """Spacingd, then ScaleIntensityRanged with clip=True, in one pass over the stored voxels.

    Shape, affine, pixdim and applied_operations are those of Spacingd; images lie within 1e-4 of
    b_max - b_min of MONAI's. Loaded as int16 (`LoadImaged(dtype=np.int16)`), a scan is never copied
    to float. Keys of mode "nearest" are label maps and keep their values; where a point lies midway
    between two voxels the higher index gives the label, in MONAI whichever rounding finds.

    The inverse, also by Invertd, resamples to the original shape and affine. It leaves intensities
    in the window: what one inverts are labels and probabilities.

    Args:
        keys: images and label maps, channel first, of two or three spatial axes.
        pixdim: spacing in mm along the array's axes.
        a_min, a_max: the window, in stored units (HU for a CT as MONAI loads it).
        b_min, b_max: what its ends become.
        mode: "bilinear" or "nearest", or one of them per key.
        spacingd: other arguments of Spacingd. padding_mode is "border" or "zeros", or one per key;
            dtype, align_corners and lazy change nothing.

    Returns:
        The dictionary with float32 MetaTensors [C, *size].

    Raises:
        ValueError: a_max <= a_min, or a mode or padding_mode is none of these.
    """

    def __init__(
        self, keys, pixdim, a_min, a_max, b_min=0.0, b_max=1.0, mode="bilinear", **spacingd
    ) -> None:
        super().__init__(keys, pixdim, mode=mode, **spacingd)
        if not a_min < a_max:
            raise ValueError(f"a_min: expected less than a_max = {a_max}, got {a_min}")
        for name, known in (("mode", _MODES), ("padding_mode", _FILLS)):
            if not all(
                isinstance(each, str) and str(each) in known for each in getattr(self, name)
            ):
                raise ValueError(
                    f"{name}: expected {' or '.join(known)}, got {getattr(self, name)}"
                )
        self.spacing_transform.sp_resample = _OnePass((a_min, a_max), (b_min, b_max))

    @property
    def requires_current_data(self) -> bool:
        return True

    def __call__(self, data, lazy=None):
        return super().__call__(data, lazy=False)


class _OnePass(SpatialResample):
    """The part of Spacing that touches voxels."""

    def __init__(self, window: tuple[float, float], scaled: tuple[float, float]) -> None:
        super().__init__()
        self.window, self.scaled = window, scaled

    def __call__(self, img, dst_affine, spatial_size, mode, padding_mode, **_) -> Tensor:
        image = convert_to_tensor(img, track_meta=get_track_meta())
        rank, mode, padding_mode = len(spatial_size), str(mode), str(padding_mode)
        affine = image.affine if isinstance(image, MetaTensor) else torch.eye(rank + 1)
        source = to_affine_nd(rank, affine).to("cpu", torch.float64)
        target, still = dst_affine.to("cpu", torch.float64), torch.eye(rank + 1).double()
        matrix = torch.linalg.solve(source, target)
        # MONAI, too, takes a change below its tolerance for none and keeps the affine.
        unchanged = list(spatial_size) == list(image.shape[1:]) and (
            torch.allclose(source, target, atol=AFFINE_TOL)
            or torch.allclose(matrix, still, atol=AFFINE_TOL)
        )
        record = self.track_transform_meta(
            image,
            affine=None if unchanged else matrix,
            extra_info={"mode": mode, "padding_mode": padding_mode, "src_affine": source},
            transform_info=self.get_transform_info(),
        )
        low, high = self.scaled
        values = _resampled(
            image, still if unchanged else matrix, spatial_size, mode, padding_mode,
            self.window if mode == "bilinear" else None,
        )  # fmt: skip
        if mode == "bilinear" and self.scaled != (0.0, 1.0):
            values.mul_(high - low).add_(low)
        out = convert_to_tensor(values, track_meta=get_track_meta())
        return out.copy_meta_from(record) if isinstance(out, MetaTensor) else out

    def inverse(self, data: Tensor) -> Tensor:
        done = self.pop_transform(data)
        info, size = done[TraceKeys.EXTRA_INFO], done[TraceKeys.ORIG_SIZE]
        affine = to_affine_nd(len(size), data.affine).to("cpu", torch.float64)
        matrix = torch.linalg.solve(affine, torch.as_tensor(info["src_affine"]).to(affine))
        values = _resampled(data, matrix, size, info["mode"], info["padding_mode"], None)
        record = self.track_transform_meta(data, affine=matrix)
        return convert_to_tensor(values, track_meta=True).copy_meta_from(record)


def _resampled(image: Tensor, matrix: Tensor, size, mode, padding_mode, window) -> Tensor:
    """[C, *size] float32; the homogeneous matrix maps an output index to an input index."""
    voxels = image.as_tensor() if isinstance(image, MetaTensor) else image
    voxels = voxels.float() if voxels.dtype in _WIDENED else voxels
    absent = 3 - len(size)
    rows = torch.eye(4, dtype=torch.float64)
    rows[absent:, absent:] = matrix
    lengths = [1] * absent + [int(length) for length in size]
    values = window_resample(
        list(voxels[(slice(None),) + (None,) * absent]), rows[None, :3], lengths,
        window=window, fill=_FILLS[padding_mode], mode=_MODES[mode],
    )  # fmt: skip
    return values.reshape(len(values), *lengths[absent:])


class FastDiceMetric(DiceMetric):
    """DiceMetric for label maps [B, 1, ...], by fast_dice; needs num_classes, has no per_component.

    Raises:
        ValueError: num_classes is missing, or per_component is set.
    """

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        if self.num_classes is None or self.per_component:
            raise ValueError("num_classes: expected a number, without per_component")

    def _compute_tensor(self, y_pred: Tensor, y: Tensor) -> Tensor:
        return fast_dice(
            y_pred, y, self.num_classes, self.include_background,
            ignore_empty=self.ignore_empty, ignore_index=self.ignore_index,
        )  # fmt: skip


def fast_dice(
    y_pred: Tensor,
    y: Tensor,
    num_classes: int,
    include_background: bool = True,
    reduction: str = "none",
    ignore_empty: bool = True,
    ignore_index: int | None = None,
) -> Tensor:
    """compute_dice, and by its `reduction` DiceMetric, from label maps instead of one-hot maps.

    Args:
        y_pred, y: label maps [B, 1, ...] of any integer or floating dtype (MONAI's are float32).
        num_classes: at least 2, background included.
        include_background: whether class 0 has a column.
        reduction: "none", or another of monai.utils.MetricReduction, over what is not NaN.
        ignore_empty: where y lacks a class NaN; or, if False, 1 where y_pred lacks it too, else 0.
        ignore_index: label of y whose voxels count nowhere.

    Returns:
        float32 [B, classes], or what the reduction leaves of it.

    Raises:
        ValueError: the argument named has a wrong shape or value.
    """
    if y_pred.dim() < 3 or y_pred.shape[1] != 1:
        raise ValueError(f"y_pred: expected label maps [B, 1, ...], got {list(y_pred.shape)}")
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    maps = [each.as_tensor() if isinstance(each, MetaTensor) else each for each in (y_pred, y)]
    maps = [each.to(torch.int16) if each.dtype.is_floating_point else each for each in maps]
    counts = overlap_counts(*maps, num_classes, ignore_index=ignore_index)
    counts = counts if include_background else counts[:, 1:]
    empty = torch.nan if ignore_empty else (counts[..., 1] == 0).float()
    scores = torch.where(counts[..., 2] == 0, empty, dice_score(counts).float())
    return do_metric_reduction(scores, reduction)[0]
