"""Resampling through a matrix: CT to the network's grid, and logits back to the scan's labels."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Real

import torch
from torch import Tensor

from fastmed.ops import _load  # noqa: F401
from fastmed.ops._arguments import (
    check_no_grad,
    check_tensors,
    checked_matrix,
    checked_number,
    checked_size,
    is_readable,
    per_output,
)

_VOXEL_DTYPES = (
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_NARROWEST = 1e-30  # windows of less overflow float32
_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Not a public name, though torch's own custom ops use it: a torch without it only loses the time.
_BELOW_AUTOGRAD = getattr(torch._C, "_AutoDispatchBelowAutograd", nullcontext)


def window_resample(
    volume: Tensor | Sequence[Tensor],
    matrix: Tensor,
    size: Sequence[int],
    *,
    scale: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
    window: tuple[float, float] | Tensor | None = None,
    fill: float | Tensor | None = None,
    mode: str = "linear",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Resamples stored voxels, rescales them to HU and applies an intensity window, in one pass.

    With HU = scale * stored + shift, the result is the interpolated HU, or with a window
    clamp((HU - lo) / (hi - lo), 0, 1). It lies within 1e-4 of the window (0.1 HU without one) of
    the same computed in float64, or within a few float32 roundings of the largest voxel where that
    is more. NaN voxels stay NaN.

    Differentiable once with respect to the volume. With a window, an output of exactly 0 or 1 (as
    rounded to dtype) passes no gradient on. On CUDA the gradient is summed in fixed point, so that
    it repeats itself: parts 2**37 times smaller than the largest vanish, and what a gradient that
    is not finite reaches becomes NaN.

    CUDA graphs can capture it where matrix and other tensors lie on the device, and the rest are
    plain numbers.

    Args:
        volume: stored voxels [D, H, W], [B, D, H, W] or a list of B volumes [D, H, W] of any sizes
            and one dtype: uint8, int16, uint16, int32, float16, bfloat16, float32 or float64.
            2D is D = 1.
        matrix: maps an output index (z, y, x, 1) to an input index (z, y, x), both at voxel
            centres; [3, 4], [P, 3, 4] (P grids from one volume) or [B, 3, 4] (one per volume).
        size: output lengths (z, y, x).
        scale: rescale slope, HU per stored unit; a number, or [P] or [B].
        shift: rescale intercept in HU; a number, or [P] or [B].
        window: (lo, hi) in HU, or [P, 2] or [B, 2].
        fill: HU of every voxel outside the volume, also as a neighbour in the interpolation;
            a number, or [P] or [B]. None repeats the edge.
        mode: "linear" (trilinear), or "nearest": floor(index + 0.5).
        dtype: float16, bfloat16, float32 or float64; with "nearest" also the volume's own, where
            integers round half to even and saturate.

    Returns:
        [*size], or [P, *size] or [B, *size] for several grids or volumes.

    Raises:
        ValueError: the argument named has a wrong shape or value (hi <= lo, an empty size, not
            finite). Values on a CUDA device or in a traced graph are not read, hence not checked.
        TypeError: the argument named has a wrong dtype.
        NotImplementedError: an argument other than the volume requires a gradient.
    """
    if not isinstance(volume, (Tensor, Sequence)):
        raise TypeError(f"volume: expected a tensor or a list, got {type(volume).__name__}")
    volumes = _as_list(volume)
    batched = not isinstance(volume, Tensor) or volume.dim() == 4
    if mode not in ("linear", "nearest"):
        raise ValueError(f"mode: expected 'linear' or 'nearest', got {mode!r}")
    lengths = checked_size(size)
    if not volumes:
        return _empty_batch(volume, lengths, dtype)
    for each in volumes:
        if each.dtype not in _VOXEL_DTYPES:
            raise TypeError(f"volume: {each.dtype} is none of {', '.join(map(str, _VOXEL_DTYPES))}")
        if each.dtype != volumes[0].dtype or each.device != volumes[0].device:
            raise TypeError("volume: all must share one dtype and one device")
    if dtype not in _FLOAT_DTYPES and not (mode == "nearest" and dtype == volumes[0].dtype):
        raise TypeError(
            f"dtype: expected a floating dtype, or with 'nearest' the volume's own; got {dtype}"
        )
    parameters = {"matrix": matrix, "scale": scale, "shift": shift, "window": window, "fill": fill}
    for name, parameter in parameters.items():
        if isinstance(parameter, Tensor):
            check_no_grad(name, parameter)
    device = volumes[0].device
    matrices = checked_matrix(matrix, device, (1, len(volumes)) if batched else None)
    outputs = len(volumes) if batched else matrices.shape[0]

    with _without_graph(volumes):
        result = torch.ops.fastmed.window_resample.default(
            [each if each.stride(2) == 1 else each.contiguous() for each in volumes],
            matrices,
            lengths,
            per_output(scale, "scale", device, outputs),
            per_output(shift, "shift", device, outputs),
            _checked_window(window, device, outputs),
            None if fill is None else per_output(fill, "fill", device, outputs),
            mode == "nearest",
            dtype,
        )
    return result if batched or matrix.dim() == 3 else result[0]


def resample_argmax(
    logits: Tensor, matrix: Tensor, size: Sequence[int], *, outside: int | None = None
) -> Tensor:
    """Labels on a new grid: the argmax of the interpolated logits, ties to the lowest class.

    Interpolation is trilinear, but no tensor of classes times output voxels is made. Where the
    eight voxels around a point share one argmax, so does the point, since all classes have the same
    non-negative weights. In other cells, classes that
    cannot win are left out, and the rest interpolated. Labels may differ from float64 arithmetic
    only where the two best values lie within 1e-5 of each other, relative to the logits around.

    Args:
        logits: [C, D, H, W] or [B, C, D, H, W], floating and finite; C == 1 means sigmoid > 0.5.
        matrix: maps an output index (z, y, x, 1) to an index (z, y, x) of the logits, both at voxel
            centres; [3, 4] or [B, 3, 4].
        size: output lengths (z, y, x).
        outside: label of the voxels more than 0.5 voxel outside the logits; None repeats the edge.

    Returns:
        uint8 labels (int16 above 255 classes), [*size] or [B, *size].

    Raises:
        ValueError: the argument named has a wrong shape or value.
        TypeError: the argument named has a wrong dtype.
    """
    check_tensors(logits=logits)
    if logits.dtype not in _FLOAT_DTYPES:
        raise TypeError(f"logits: expected a floating dtype, got {logits.dtype}")
    if logits.dim() not in (4, 5) or 0 in logits.shape[-4:]:
        raise ValueError(
            "logits: expected [C, D, H, W] or [B, C, D, H, W], none of C to W 0; "
            f"got {list(logits.shape)}"
        )
    batch = logits.detach() if logits.dim() == 5 else logits.detach()[None]
    classes = batch.shape[1]
    highest = 255 if classes <= 255 else 32767
    if outside is not None and not 0 <= outside <= highest:
        raise ValueError(f"outside: expected a label from 0 to {highest}, got {outside}")
    matrices = checked_matrix(matrix, batch.device, (1, batch.shape[0]))
    if logits.dim() == 4 and matrix.dim() == 3 and matrix.shape[0] != 1:
        raise ValueError(f"matrix: expected [3, 4] for one set of logits, got {list(matrix.shape)}")
    labels = torch.ops.fastmed.resample_argmax(
        batch.contiguous(), matrices, checked_size(size), outside
    )
    return labels if logits.dim() == 5 else labels[0]


def _without_graph(volumes: list[Tensor]) -> AbstractContextManager:
    """Skips autograd's part of a call, a fifth of a small one, where nothing would be recorded."""
    recorded = torch.is_grad_enabled() and any(volume.requires_grad for volume in volumes)
    if recorded or torch.compiler.is_compiling() or type(volumes[0]) is not Tensor:
        return nullcontext()
    return _BELOW_AUTOGRAD()


def _as_list(volume: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(volume, Tensor):
        if volume.dim() not in (3, 4):
            raise ValueError(
                f"volume: expected [D, H, W] or [B, D, H, W], got {list(volume.shape)}"
            )
        volumes = [volume] if volume.dim() == 3 else list(volume.unbind(0))
    else:
        volumes = list(volume)
        if not volumes:
            raise ValueError("volume: expected at least one volume in the list")
    for each in volumes:
        check_tensors(volume=each)
        if each.dim() != 3 or 0 in each.shape:
            raise ValueError(
                f"volume: expected [D, H, W] without an empty axis, got {list(each.shape)}"
            )
    return volumes


def _empty_batch(volume: Tensor, lengths: list[int], dtype: torch.dtype) -> Tensor:
    return volume.new_empty([0, *lengths], dtype=dtype)


def _checked_window(window, device: torch.device, outputs: int) -> Tensor | None:
    if window is None:
        return None
    if not isinstance(window, (Tensor, Sequence)):
        raise TypeError(f"window: expected (lo, hi) or a tensor, got {window!r}")
    if not isinstance(window, Tensor) and len(window) == 2:
        low, high = window
        if isinstance(low, Real) and isinstance(high, Real):
            low, high = checked_number(low, "window"), checked_number(high, "window")
            if not high - low > _NARROWEST:
                raise ValueError(f"window: expected finite lo < hi, got {(low, high)}")
            # Made on the device: a copy from the host could not be captured in a CUDA graph.
            return torch.linspace(low, high, 2, dtype=torch.float64, device=device)[None]
    limits = per_output(window, "window", device, outputs, width=2)
    if is_readable(limits):
        values = limits.flatten().tolist()
        if not all(
            high - low > _NARROWEST for low, high in zip(values[::2], values[1::2], strict=False)
        ):
            raise ValueError(f"window: expected lo < hi, got {limits.tolist()}")
    return limits


@torch.library.register_fake("fastmed::window_resample")
def _(volumes, matrix, size, scale, shift, window, fill, nearest, dtype):
    outputs = matrix.shape[0] if len(volumes) == 1 else len(volumes)
    return volumes[0].new_empty([outputs, *size], dtype=dtype)


@torch.library.register_fake("fastmed::window_resample_backward")
def _(grad, result, shape, matrix, scale, window, fill, nearest, dtype):
    wide = dtype in (torch.float64, torch.int32) or grad.dtype == torch.float64
    return grad.new_empty(shape, dtype=torch.float64 if wide else torch.float32)


def _save_for_backward(ctx, inputs, output):
    volumes, matrix, _, scale, _, window, fill, nearest, _ = inputs
    # Where a window clamped, its output is 0 or 1.
    ctx.save_for_backward(matrix, scale, window, None if window is None else output)
    ctx.volumes = [(volume.shape, volume.dtype) for volume in volumes]
    ctx.options = (fill is not None, nearest)


def _window_resample_backward(ctx, grad):
    matrix, scale, window, result = ctx.saved_tensors
    volumes = []
    for index, (shape, dtype) in enumerate(ctx.volumes):
        own = slice(None) if len(ctx.volumes) == 1 else slice(index, index + 1)
        volumes.append(
            torch.ops.fastmed.window_resample_backward(
                grad[own].contiguous(),
                None if result is None else result[own].contiguous(),
                shape,
                *(_own_rows(parameter, own) for parameter in (matrix, scale, window)),
                *ctx.options,
                dtype,
            ).to(dtype)
            if dtype.is_floating_point
            else None
        )
    return volumes, None, None, None, None, None, None, None, None


def _own_rows(parameter: Tensor | None, own: slice) -> Tensor | None:
    shared = parameter is None or parameter.shape[0] == 1
    return parameter if shared else parameter[own]


def _no_second_derivative(ctx, grad):
    raise NotImplementedError("window_resample: has no second derivative")


torch.library.register_autograd(
    "fastmed::window_resample", _window_resample_backward, setup_context=_save_for_backward
)
torch.library.register_autograd("fastmed::window_resample_backward", _no_second_derivative)


@torch.library.register_fake("fastmed::resample_argmax")
def _(logits, matrix, size, outside):
    dtype = torch.int16 if logits.shape[1] > 255 else torch.uint8
    return logits.new_empty([logits.shape[0], *size], dtype=dtype)
