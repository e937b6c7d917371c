"""window_resample and resample_argmax by torch, SimpleITK and MONAI."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmed import ops
from fastmed.testing import fitted_matrix, sample_positions
from rivals.rival import Rival, fastest, with_gradients


@dataclass(frozen=True)
class Grid:
    """One output of window_resample: value = factor * stored + offset, clamped to 0..1 or not.

    fill: stored value outside the volume; None repeats the edge.
    """

    volume: Tensor
    matrix: Tensor
    size: tuple[int, int, int]
    factor: float
    offset: float
    fill: float | None
    clamped: bool
    nearest: bool
    dtype: torch.dtype

    @property
    def is_edge_to_edge(self) -> bool:
        """Whether the grid is the one that F.interpolate knows."""
        fitted = fitted_matrix(self.volume.shape, self.size)
        inside = self.fill is None or bool((fitted[:, 3] >= 0).all())
        return inside and torch.allclose(self.matrix, fitted, rtol=0, atol=1e-9)


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
    grids = _grids(volume, matrix, size, scale, shift, window, fill, mode == "nearest", dtype)
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
        other = _sitk(grids, agreement)
        if other is not None:
            rivals["SimpleITK"] = other
    if len(grids) == 1 and not needs_grad:
        found = _monai(grids[0], window, agreement)
        if found:
            rivals[found[0]] = found[1]
    return rivals


def argmax_rivals(logits, matrix, size, *, large, outside=None) -> dict[str, Rival]:
    batch = logits if logits.dim() == 5 else logits[None]
    matrices = matrix.reshape(-1, 3, 4).double().cpu().expand(len(batch), 3, 4)
    fitted = fitted_matrix(batch.shape[-3:], size)
    edges = all(torch.allclose(each, fitted, rtol=0, atol=1e-9) for each in matrices)
    label = torch.int16 if batch.shape[1] > 255 else torch.uint8
    numbers = math.prod(size) * len(batch) * batch.shape[1]
    agreement = {
        "view": lambda labels: labels if logits.dim() == 5 else labels[0],
        "share": 2e-3 if outside is None else 0.02,
        "needs_bytes": numbers * 4 + math.prod(size) * len(batch) * 9,
    }

    def best(values: Tensor) -> Tensor:
        return ((values[:, 0] > 0) if values.shape[1] == 1 else values.argmax(1)).to(label)

    if edges:

        def whole(inputs=batch):
            return best(F.interpolate(inputs.float(), size=tuple(size), mode="trilinear"))

        rivals = {"F.interpolate + argmax": Rival(whole, **agreement)}
        if large:
            # The layout that its argmax likes best, made before the clock starts.
            last = {}

            def channels_last():
                if not last:
                    last["logits"] = batch.to(memory_format=torch.channels_last_3d)
                return whole(last["logits"])

            rivals["the same, channels last"] = Rival(channels_last, **agreement)
        return rivals

    thetas = torch.stack([_theta(each, batch.shape[-3:], size) for each in matrices]).to(
        batch.device
    )

    def sampled():
        grid = F.affine_grid(thetas, [len(batch), 1, *size], align_corners=False)
        labels = best(
            F.grid_sample(batch.float(), grid, padding_mode="border", align_corners=False)
        )
        if outside is None:
            return labels
        return labels.masked_fill_((grid.abs() > 1).any(-1), outside)

    agreement["needs_bytes"] += math.prod(size) * len(batch) * 12
    return {"grid_sample + argmax": Rival(sampled, **agreement)}


def _grids(volume, matrix, size, scale, shift, window, fill, nearest, dtype) -> list[Grid]:
    single = isinstance(volume, Tensor) and volume.dim() == 3
    volumes = [volume] if single else list(volume)
    matrices = matrix.reshape(-1, 3, 4).double().cpu()
    count = len(matrices) if single else len(volumes)

    def of_output(value, index, width=1):
        rows = torch.as_tensor(value, dtype=torch.float64).reshape(-1, width).tolist()
        row = rows[index if len(rows) > 1 else 0]
        return row[0] if width == 1 else row

    grids = []
    for index in range(count):
        slope, intercept = of_output(scale, index), of_output(shift, index)
        factor, offset = slope, intercept
        if window is not None:
            low, high = of_output(window, index, 2)
            factor, offset = slope / (high - low), (intercept - low) / (high - low)
        grids.append(
            Grid(
                volumes[0 if single else index],
                matrices[index if len(matrices) > 1 else 0],
                tuple(size),
                factor,
                offset,
                None if fill is None else (of_output(fill, index) - intercept) / slope,
                window is not None,
                nearest,
                dtype,
            )
        )
    return grids


def _together(volume, grids: list[Grid]) -> list[tuple[Tensor, list[Grid]]]:
    """Voxels [N or 1, 1, D, H, W] with the grids that torch can do in one call on them."""
    if isinstance(volume, Tensor):
        return [(volume[None, None] if volume.dim() == 3 else volume[:, None], grids)]
    return [(each[None, None], [grid]) for each, grid in zip(volume, grids, strict=True)]


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.cat([part[:, 0] for part in parts])


def _as_stack(result: Tensor) -> Tensor:
    return result if result.dim() == 4 else result[None]


def _stack_and_gradient(result) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [_as_stack(result)]
    return [_as_stack(result[0]), *result[1:]]


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


def _theta(matrix: Tensor, shape, size) -> Tensor:
    """[3, 4] of affine_grid, whose axes are (x, y, z), -1 to 1 at the outer edges."""
    shape_in = torch.tensor(tuple(shape)[::-1], dtype=torch.float64)
    shape_out = torch.tensor(tuple(size)[::-1], dtype=torch.float64)
    linear = matrix[:, :3].flip(0, 1)
    scaled = linear * shape_out / shape_in[:, None]
    origin = (2 * (matrix[:, 3].flip(0) + linear @ ((shape_out - 1) / 2)) + 1) / shape_in - 1
    return torch.cat([scaled, origin[:, None]], 1).float()


def _grid_sampled(voxels: Tensor, grids: list[Grid]) -> Tensor:
    first = grids[0]
    thetas = torch.stack([_theta(g.matrix, voxels.shape[-3:], g.size) for g in grids])
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


def _alike(grid: Grid) -> Tensor:
    """Voxels where SimpleITK's way at the edge gives the same: a fill of its own does not blend
    with the outermost voxels, and beyond an edge that it repeats it takes the nearest voxel."""
    if grid.is_edge_to_edge:
        return torch.ones(grid.size, dtype=torch.bool)
    positions = sample_positions(grid.matrix, grid.size)
    lengths = torch.tensor(grid.volume.shape)
    if grid.fill is None:
        return ((positions > -0.5) & (positions < lengths - 0.5)).all(-1)
    within = ((positions >= 0) & (positions <= lengths - 1)).all(-1)
    return within | ((positions < -1) | (positions > lengths)).any(-1)


def _sitk(grids: list[Grid], agreement: dict) -> Rival | None:
    """Through an image of unit spacing, windowed by its own filters; None where most differs."""
    import SimpleITK as sitk

    alike = torch.stack([_alike(grid) for grid in grids])
    if alike.double().mean() < 0.5:
        return None
    uneven = not bool(alike.all())

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())

    def prepared(grid: Grid):
        voxels = grid.volume.detach()
        if voxels.dtype in (torch.float16, torch.bfloat16):
            voxels = voxels.float()
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(grid.matrix[:, :3].flip(0, 1).flatten().tolist())
        transform.SetTranslation(grid.matrix[:, 3].flip(0).tolist())
        reference = sitk.Image(grid.size[::-1], sitk.sitkInt8)
        return sitk.GetImageFromArray(voxels.numpy()), transform, reference

    def call(grid: Grid, image, transform, reference):
        values = sitk.Resample(
            image,
            reference,
            transform,
            sitk.sitkNearestNeighbor if grid.nearest else sitk.sitkLinear,
            0.0 if grid.fill is None else grid.fill,
            sitk.sitkFloat64 if image.GetPixelID() == sitk.sitkFloat64 else sitk.sitkFloat32,
            grid.fill is None,
        )
        if grid.clamped:
            low = -grid.offset / grid.factor
            return sitk.IntensityWindowing(values, low, low + 1 / grid.factor, 0.0, 1.0)
        if (grid.factor, grid.offset) != (1.0, 0.0):
            return sitk.ShiftScale(values, grid.offset / grid.factor, grid.factor)
        return values

    def mask(values: Tensor) -> Tensor:
        return values * alike if uneven else values

    def view(images):
        arrays = [torch.from_numpy(sitk.GetArrayFromImage(image)) for image in images]
        return mask(torch.stack(arrays))

    inputs = [(grid, *prepared(grid)) for grid in grids]
    return Rival(
        lambda: [call(*each) for each in inputs],
        view,
        lambda result: mask(_as_stack(result)),
        **agreement,
    )


def _monai(grid: Grid, window, agreement: dict) -> tuple[str, Rival] | None:
    """Spacing + ScaleIntensityRange on a MetaTensor, in the faster of float32 and float64."""
    straight = torch.allclose(
        grid.matrix, fitted_matrix(grid.volume.shape, grid.size), rtol=0, atol=1e-9
    )
    if not straight or grid.fill is not None or grid.nearest:
        return None
    if window is None and (grid.factor, grid.offset) != (1.0, 0.0):
        return None
    from monai.data import MetaTensor
    from monai.transforms import ScaleIntensityRange, Spacing

    steps = [n / count for n, count in zip(grid.volume.shape, grid.size, strict=True)]
    low = -grid.offset / grid.factor if grid.clamped else 0.0
    ranged = ScaleIntensityRange(low, low + 1 / grid.factor, 0.0, 1.0, clip=True)

    def as_image(voxels: Tensor) -> MetaTensor:
        return MetaTensor(voxels.detach()[None], affine=torch.eye(4, dtype=torch.float64))

    def resampling(dtype, image, size):
        spaced = Spacing(steps, mode="bilinear", scale_extent=True, dtype=dtype)

        def call():
            resampled = spaced(image, output_spatial_shape=size)
            return ranged(resampled) if grid.clamped else resampled

        return call

    # A quarter of the volume tells which dtype is the faster one.
    part = as_image(grid.volume[: max(1, grid.volume.shape[0] // 4)])
    some = (max(1, grid.size[0] // 4), *grid.size[1:])
    dtypes = {"float64": torch.float64, "float32": torch.float32}
    name = fastest({each: resampling(dtype, part, some) for each, dtype in dtypes.items()})
    image = as_image(grid.volume)
    call = resampling(dtypes[name], image, grid.size)

    def ours(_):
        """The kernel on the grid that Spacing chose, whose origin is its own."""
        chosen = Spacing(steps, scale_extent=True)(image, output_spatial_shape=grid.size, lazy=True)
        return ops.window_resample(
            grid.volume.detach(),
            chosen.peek_pending_affine()[:3].to(grid.volume.device),
            grid.size,
            scale=grid.factor,
            shift=grid.offset,
            window=(0.0, 1.0) if grid.clamped else None,
        )[None]

    def view(result):
        return result.as_tensor()

    return f"MONAI ({name})", Rival(call, view, ours, **agreement)
