"""window_resample by torch, SimpleITK and MONAI."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rivals.grid import Grid, as_stack, grids_of, theta
from rivals.rival import Rival, with_gradients
from rivals.window_toolkits import monai_spacing, sitk_resample


def window_rivals(
    volume,
    matrix,
    size,
    *,
    large,
    scale=1.0,
    shift=0.0,
    window=None,
    fill=None,
    mode="linear",
    dtype=torch.float32,
) -> dict[str, Rival]:
    grids = grids_of(volume, matrix, size, scale, shift, window, fill, mode == "nearest", dtype)
    if not grids:
        return {}
    rivals = {}
    agreement = {
        "atol": 2e-3 if window is not None else 1.0,
        "share": 0.1 if mode == "nearest" else 1e-3,  # halves are rounded to even
    }
    if volume[0].dtype == torch.float64 or dtype in (torch.float16, torch.bfloat16):
        agreement["atol"] *= 4
    together = _together(volume, grids)
    if all(grid.is_edge_to_edge for grid in grids):
        name, resampled = "F.interpolate + window", _interpolated
    else:
        name, resampled = "grid_sample + window", _grid_sampled
    call = with_gradients(lambda: [resampled(*group) for group in together], (volume,))
    parts = len(together)
    rivals[name] = Rival(
        call,
        lambda result: [_stacked(result[:parts]), *result[parts:]],
        _stack_and_gradient,
        **agreement,
    )
    on_cpu = all(grid.volume.device.type == "cpu" for grid in grids)
    needs_grad = any(grid.volume.requires_grad for grid in grids)
    if on_cpu and not needs_grad:
        other = sitk_resample(grids, agreement)
        if other is not None:
            rivals["SimpleITK"] = other
    if len(grids) == 1 and not needs_grad:
        other = monai_spacing(grids[0], window, agreement)
        if other is not None:
            rivals["MONAI"] = other
    return rivals


def _together(volume, grids: list[Grid]) -> list[tuple[Tensor, list[Grid]]]:
    """Voxels [N or 1, 1, D, H, W] with the grids that torch can do in one call on them."""
    if isinstance(volume, Tensor):
        return [(volume[None, None] if volume.dim() == 3 else volume[:, None], grids)]
    return [(each[None, None], [grid]) for each, grid in zip(volume, grids, strict=True)]


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.cat([part[:, 0] for part in parts])


def _stack_and_gradient(result) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [as_stack(result)]
    return [as_stack(result[0]), *result[1:]]


def _per_grid(values: list[float], voxels: Tensor) -> Tensor | float:
    """A number where all agree, else one per output, [N, 1, 1, 1, 1]."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=voxels.dtype, device=voxels.device).view(-1, 1, 1, 1, 1)


def _as_float(voxels: Tensor) -> Tensor:
    return voxels.to(torch.float64 if voxels.dtype == torch.float64 else torch.float32)


def _windowed(values: Tensor, grids: list[Grid]) -> Tensor:
    factors = _per_grid([grid.factor for grid in grids], values)
    offsets = _per_grid([grid.offset for grid in grids], values)
    if any(grid.factor != 1.0 or grid.offset != 0.0 for grid in grids):
        values = values.mul_(factors).add_(offsets)
    if grids[0].clamped:
        values = values.clamp_(0, 1)
    dtype = grids[0].dtype
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        values = values.round_().clamp_(limits.min, limits.max)
    return values.to(dtype)


def _interpolated(voxels: Tensor, grids: list[Grid]) -> Tensor:
    mode = "nearest-exact" if grids[0].nearest else "trilinear"
    values = F.interpolate(_as_float(voxels), size=grids[0].size, mode=mode)
    if len(values) < len(grids):
        values = values.repeat(len(grids), 1, 1, 1, 1)
    return _windowed(values, grids)


def _grid_sampled(voxels: Tensor, grids: list[Grid]) -> Tensor:
    first = grids[0]
    thetas = torch.stack([theta(g.matrix, voxels.shape[-3:], g.size) for g in grids])
    values = _as_float(voxels)
    grid = F.affine_grid(thetas.to(values), [len(grids), 1, *first.size], align_corners=False)
    mode = "nearest" if first.nearest else "bilinear"
    if first.fill is None:
        values = values.expand(len(grids), -1, -1, -1, -1)
        values = F.grid_sample(values, grid, mode, "border", align_corners=False)
        return _windowed(values, grids)
    # Zero padding stands for the fill where the fill is zero.
    fills = _per_grid([each.fill for each in grids], values)
    values = (values - fills).expand(len(grids), -1, -1, -1, -1)
    values = F.grid_sample(values, grid, mode, "zeros", align_corners=False)
    return _windowed(values.add_(fills), grids)
