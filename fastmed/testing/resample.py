"""Resampling in plain torch, and the calls it is held against."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastmed.testing.case import OpCase
from fastmed.testing.grids import axis_matrix, fitted_matrix, oblique_matrix, sample_positions


def window_resample_reference(
    volume,
    matrix,
    size,
    *,
    scale=1.0,
    shift=0.0,
    window=None,
    fill=None,
    mode="linear",
    dtype=torch.float32,
) -> Tensor:
    """window_resample in float64, one neighbour at a time."""
    volumes = [volume] if isinstance(volume, Tensor) and volume.dim() == 3 else list(volume)
    single = isinstance(volume, Tensor) and volume.dim() == 3
    matrices = matrix.reshape(-1, 3, 4)
    outputs = matrices.shape[0] if single else len(volumes)

    def of_output(value, index, width=0):
        rows = torch.as_tensor(value, dtype=torch.float64).reshape(-1, *([width] if width else []))
        return rows[index if len(rows) > 1 else 0]

    grids = []
    for index in range(outputs):
        voxels = volumes[0 if single else index].double()
        positions = sample_positions(
            matrices[index if len(matrices) > 1 else 0].to(voxels.device), size
        )
        hounsfield = of_output(scale, index).to(voxels.device) * voxels + of_output(
            shift, index
        ).to(voxels.device)
        outside = None if fill is None else of_output(fill, index).to(voxels.device)
        value = _sample(hounsfield, positions, outside, mode)
        if window is not None:
            low, high = of_output(window, index, 2).to(voxels.device)
            value = ((value - low) / (high - low)).clamp(0, 1)
        if not dtype.is_floating_point:
            value = value.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        grids.append(value.to(dtype))
    stacked = torch.stack(grids) if grids else volume.new_empty([0, *size], dtype=dtype)
    return stacked[0] if single and matrix.dim() == 2 else stacked


def interpolated_logits(logits: Tensor, matrix: Tensor, size) -> Tensor:
    """[C, *size] float64 logits, edges repeated."""
    return _sample(logits.double(), sample_positions(matrix, size), None, "linear")


def resample_argmax_reference(logits, matrix, size, *, outside=None) -> Tensor:
    """resample_argmax by way of the whole [C, *size] tensor."""
    if logits.dim() == 5:
        matrices = matrix.reshape(-1, 3, 4).expand(logits.shape[0], 3, 4)
        items = [
            resample_argmax_reference(item, each, size, outside=outside)
            for item, each in zip(logits, matrices, strict=True)
        ]
        return torch.stack(items)
    values = interpolated_logits(logits, matrix.reshape(3, 4), size)
    labels = (values[0] > 0).long() if len(values) == 1 else values.argmax(0)
    if outside is not None:
        positions = sample_positions(matrix.reshape(3, 4), size)
        lengths = torch.tensor(logits.shape[1:], dtype=torch.float64, device=logits.device)
        beyond = ((positions < -0.5) | (positions > lengths - 0.5)).any(-1)
        labels = torch.where(beyond, outside, labels)
    return labels.to(torch.int16 if len(values) > 255 else torch.uint8)


def _sample(voxels: Tensor, positions: Tensor, fill, mode: str) -> Tensor:
    """Values of [..., D, H, W] at fractional positions; what weighs nothing is left out."""
    lengths = torch.tensor(voxels.shape[-3:], device=voxels.device)
    if fill is None:
        positions = torch.minimum(positions.clamp(min=0), (lengths - 1).double())
    if mode == "nearest":
        low, corners = (positions + 0.5).floor().long(), 1
        fraction = torch.zeros_like(positions)
    else:
        low, corners = positions.floor().long(), 8
        fraction = positions - low
    value = torch.zeros(
        [*voxels.shape[:-3], *positions.shape[:-1]], dtype=torch.float64, device=voxels.device
    )
    for corner in range(corners):
        upper = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=voxels.device)
        weight = torch.where(upper.bool(), fraction, 1 - fraction).prod(-1)
        index = low + upper
        inside = ((index >= 0) & (index < lengths)).all(-1)
        z, y, x = torch.minimum(index.clamp(min=0), lengths - 1).unbind(-1)
        neighbour = voxels[..., z, y, x]
        if fill is not None:
            neighbour = torch.where(inside, neighbour, fill)
        value += torch.where(weight == 0, 0, weight * neighbour)
    return value


def stored_voxels(shape, dtype=torch.int16, *, device="cpu", seed=0) -> Tensor:
    """Random voxels in the range of stored CT values that the dtype can hold."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (
        (0, 255) if dtype == torch.uint8 else (0, 4000) if dtype == torch.uint16 else (-1024, 3000)
    )
    return (
        torch.randint(low, high, shape, generator=generator, dtype=torch.int32).to(dtype).to(device)
    )


def smooth_logits(shape, *, dtype=torch.float32, device="cpu", seed=0) -> Tensor:
    """Logits [C, D, H, W] whose argmax forms regions of several voxels, as a network's does."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [shape[0], *(max(2, length // 6) for length in shape[1:])]
    noise = torch.randn(coarse, generator=generator)[None]
    smooth = torch.nn.functional.interpolate(
        noise, size=shape[1:], mode="trilinear", align_corners=True
    )[0]
    return smooth.to(dtype).to(device)


def _window_cases() -> Iterator[OpCase]:
    shape, size = (12, 25, 37), (17, 20, 31)
    matrices = {
        "aligned": fitted_matrix(shape, size),
        "flipped": axis_matrix([-0.6, 1.3, -1.1], [11.0, -2.0, 36.5]),
        "oblique": oblique_matrix(shape, size),
        "outside": axis_matrix([1.0, 1.0, 1.0], [-100.0, 3.0, 200.0]),
    }
    ct = {"scale": 1.5, "shift": -20.0, "window": (-1000.0, 400.0)}
    for name, matrix in matrices.items():
        for fill in (None, -1000.0):
            for mode in ("linear", "nearest"):
                yield OpCase(
                    "window_resample",
                    f"{name}-{mode}-{'edge' if fill is None else 'fill'}",
                    lambda device, matrix=matrix: (
                        stored_voxels(shape, device=device),
                        matrix.to(device),
                        size,
                    ),
                    window_resample_reference,
                    {**ct, "fill": fill, "mode": mode},
                    1e-4,
                )
    patches = torch.stack([matrices["aligned"], matrices["oblique"], matrices["flipped"]])
    yield OpCase(
        "window_resample",
        "patches",
        lambda device: (stored_voxels(shape, device=device), patches.to(device), size),
        window_resample_reference,
        {"scale": torch.tensor([1.0, 2.0, 0.5]), "window": torch.tensor([[-1000.0, 400.0]] * 3)},
        1e-4,
    )
    yield OpCase(
        "window_resample",
        "batch",
        lambda device: (stored_voxels((3, *shape), device=device), patches.to(device), size),
        window_resample_reference,
        {"shift": torch.tensor([0.0, -1024.0, 10.0]), "fill": torch.tensor([0.0, -1000.0, 5.0])},
        0.1,
    )


def _argmax_cases() -> Iterator[OpCase]:
    shape, size = (10, 21, 26), (19, 30, 41)
    matrices = {
        "aligned": fitted_matrix(shape, size),
        "flipped": axis_matrix([-0.6, 0.8, -0.7], [9.5, -2.0, 27.0]),
        "oblique": oblique_matrix(shape, size),
    }
    for name, matrix in matrices.items():
        for classes in (1, 2, 5):
            for outside in (None, 3):
                ending = "edge" if outside is None else "outside"
                yield _argmax_case(
                    f"{name}-{classes}-{ending}", (classes, *shape), matrix, size, outside
                )
    many, small = (300, 5, 6, 7), (6, 8, 9)
    yield _argmax_case("aligned-300", many, fitted_matrix(many[1:], small), small, None)
    yield _argmax_case("oblique-300", many, oblique_matrix(many[1:], small), small, 299)


def _argmax_case(name, shape, matrix, size, outside) -> OpCase:
    def make(device):
        return smooth_logits(shape, device=device), matrix.to(device), size

    return OpCase("resample_argmax", name, make, resample_argmax_reference, {"outside": outside})


RESAMPLE_CASES = (*_window_cases(), *_argmax_cases())
