"""Checks and conversions of the arguments that several ops share."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor

_FLOAT32_MAX = torch.finfo(torch.float32).max


def check_tensors(**tensors) -> None:
    """Raises for the first argument that is no tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def checked_size(size: Sequence[int]) -> list[int]:
    """Three lengths, none of them zero."""
    if isinstance(size, str) or not isinstance(size, Iterable):
        raise TypeError(f"size: expected 3 lengths (z, y, x), got {size!r}")
    lengths = list(size)
    if len(lengths) != 3:
        raise ValueError(f"size: expected 3 lengths (z, y, x), got {lengths}")
    if any(length < 1 for length in lengths):
        raise ValueError(f"size: expected lengths of at least 1, got {lengths}")
    return lengths


def checked_matrix(matrix: Tensor, device: torch.device, counts: Sequence[int] | None) -> Tensor:
    """A [1 or N, 3, 4] float64 tensor on device; N must be one of counts, where given."""
    check_tensors(matrix=matrix)
    if matrix.dtype not in (torch.float32, torch.float64):
        # Half precisions round positions of a few hundred voxels to the next whole or half one.
        raise TypeError(f"matrix: expected float32 or float64, got {matrix.dtype}")
    if matrix.dim() not in (2, 3) or tuple(matrix.shape[-2:]) != (3, 4):
        raise ValueError(f"matrix: expected [3, 4] or [N, 3, 4], got {list(matrix.shape)}")
    rows = matrix.reshape(-1, 3, 4)
    if counts is not None and rows.shape[0] not in counts:
        raise ValueError(
            f"matrix: expected [3, 4] or [{counts[-1]}, 3, 4], got {list(matrix.shape)}"
        )
    return _placed(rows, "matrix", device)


def per_output(
    value, name: str, device: torch.device, outputs: int, width: int | None = None
) -> Tensor:
    """A [1 or outputs] (with width: [1 or outputs, width]) float64 tensor on device."""
    row = [] if width is None else [width]
    if isinstance(value, Tensor):
        parameter = value
    elif isinstance(value, Real) and width is None:
        return torch.full([1], checked_number(value, name), dtype=torch.float64, device=device)
    else:
        try:
            parameter = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: expected numbers or a tensor, got {value!r}") from error
    shape = list(parameter.shape)
    if shape not in (row, [1, *row], [outputs, *row]):
        expected = f"{row or 'a number'} or {[outputs, *row]}"
        raise ValueError(f"{name}: expected {expected}, got {shape}")
    return _placed(parameter.reshape(-1, *row), name, device)


def checked_number(value, name: str) -> float:
    """A number that float32 holds, as a float."""
    if not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not abs(value) < _FLOAT32_MAX:  # also NaN
        raise ValueError(f"{name}: expected a finite number below 3.4e38, got {value}")
    return float(value)


def check_no_grad(name: str, *tensors: Tensor) -> None:
    """Arguments without a gradient say so, rather than cut the graph in silence."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise NotImplementedError(f"{name}: has no gradient; detach it or use torch.no_grad()")


def is_readable(tensor: Tensor) -> bool:
    """True where values can be read without waiting for a device or breaking a trace."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def is_finite(tensor: Tensor) -> bool:
    """All values are finite; a few are read one by one, which costs less than three torch calls."""
    if tensor.numel() > 64:
        return bool(torch.isfinite(tensor).all())
    return all(map(math.isfinite, tensor.flatten().tolist()))


def _placed(parameter: Tensor, name: str, device: torch.device) -> Tensor:
    if is_readable(parameter) and not is_finite(parameter):
        raise ValueError(f"{name}: expected finite values, got {parameter.tolist()}")
    placed = parameter.detach() if parameter.requires_grad else parameter
    if placed.dtype != torch.float64 or placed.device != device:
        placed = placed.to(device=device, dtype=torch.float64)
    return placed.contiguous()
