"""One rival of a kernel, and how its answer is held against the kernel's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Disagreement(AssertionError):
    """A rival that gives another answer does other work."""


def unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Rival:
    """A way to do a kernel's work.

    call: the work.
    view: its answer in the kernel's form.
    ours: the kernel's answer in the form that view gives.
    atol: how far single values may lie from the kernel's.
    share: the part of the values that may lie farther (ties, rounded positions).
    needs_bytes: memory it takes, where that may be more than there is.
    detail: which of its ways it goes, shown beside its name.
    """

    call: Callable[[], Any]
    view: Callable[[Any], Any] = unchanged
    ours: Callable[[Any], Any] = unchanged
    atol: float = 0.0
    share: float = 0.0
    needs_bytes: int = 0
    detail: str = ""

    def check(self, name: str, kernel: Any, answer: Any) -> None:
        """Raises Disagreement unless both answers agree."""
        pairs = zip(_tensors(self.ours(kernel)), _tensors(self.view(answer)), strict=True)
        for ours, theirs in pairs:
            if ours.shape != theirs.shape:
                raise Disagreement(f"{name}: {list(theirs.shape)}, ours {list(ours.shape)}")
            far = _share_apart(ours, theirs, self.atol)
            if far > self.share:
                raise Disagreement(
                    f"{name}: {far:.3%} of values differ by more than {self.atol:g}, "
                    f"{self.share:.3%} may"
                )


def fastest(variants: dict[str, Callable[[], Any]]) -> str:
    """Name of the variant that takes the least time, the better of two calls each."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(2):
        for name, call in variants.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - started)
    return min(taken, key=lambda name: min(taken[name]))


def with_gradients(call: Callable, arguments: tuple) -> Callable[[], object]:
    """The call; where an argument asks for it, also the gradient of a sum of what it returns."""
    leaves = [each for each in arguments if isinstance(each, torch.Tensor) and each.requires_grad]
    if not leaves:
        return call

    def both():
        result = call()
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        grown = [each for each in outputs if each.requires_grad]
        gradients = torch.autograd.grad(grown, leaves, [_weights(each) for each in grown])
        return (*outputs, *gradients)

    return both


def _weights(output: Tensor) -> Tensor:
    """Weights of the sum: sums of few numbers get different ones, so that none cancels."""
    if output.numel() > 10_000:
        return torch.ones_like(output)
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype, device=output.device)
    return weights.view(output.shape)


def _tensors(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _share_apart(ours: Tensor, theirs: Tensor, atol: float) -> float:
    if ours.numel() == 0:
        return 0.0
    apart = 0
    flat = zip(ours.flatten().split(1 << 24), theirs.flatten().split(1 << 24), strict=True)
    for one, other in flat:
        one, other = one.detach(), other.detach().to(one.device)
        if one.is_floating_point() or other.is_floating_point():
            near = torch.isclose(one.double(), other.double(), rtol=1e-5, atol=atol, equal_nan=True)
        else:
            near = one.long() == other.long()
        apart += int((~near).sum())
    return apart / ours.numel()
