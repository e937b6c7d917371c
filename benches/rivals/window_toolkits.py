"""window_resample by SimpleITK's filters and by MONAI's transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmed import ops
from fastmed.testing import fitted_matrix, sample_positions
from rivals.grid import Grid, as_stack
from rivals.rival import Rival, fastest


def sitk_resample(grids: list[Grid], agreement: dict) -> Rival | None:
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
        lambda result: mask(as_stack(result)),
        **agreement,
    )


def monai_spacing(grid: Grid, window, agreement: dict) -> Rival | None:
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

    return Rival(call, view, ours, detail=name, **agreement)


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
