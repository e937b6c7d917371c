"""Peak memory and time of dice_ce, forward and backward, beside MONAI's DiceCELoss: prints a table.

python benches/loss_memory.py [--threads 2] [--device cpu|cuda]. Memory is what a call needs beside
logits, target and gradient; time is the least of several calls in turns.
"""

from __future__ import annotations

import argparse

import kernel_meter
import torch

from fastmed import losses

SHAPES = {"liver, 2 classes": (2, 2, 96, 96, 96), "organs, 14 classes": (1, 14, 96, 96, 96)}
ROUNDS = 7


def calls(shape: tuple[int, ...], device: str) -> dict[str, kernel_meter.Call]:
    """A call per side that returns the loss and the gradient of the same logits."""
    from monai.losses import DiceCELoss

    random = torch.Generator().manual_seed(0)
    classes = shape[1]
    logits = torch.randn(shape, generator=random).to(device).requires_grad_()
    target = torch.randint(0, classes, (shape[0], *shape[2:]), generator=random).to(device)
    ours = losses.build("dice_ce", num_classes=classes)
    # The same sums: foreground, per sample, smooth 1.
    theirs = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0
    )
    narrow = target.to(torch.uint8)

    def gradient(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return value.detach(), torch.autograd.grad(value, logits)[0]

    return {
        "fastmed dice_ce": lambda: gradient(ours(logits, narrow)),
        "MONAI DiceCELoss": lambda: gradient(theirs(logits, target[:, None])),
    }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked.add_argument("--device", default="cpu")
    arguments = asked.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| loss | logits | extra memory, MB | in sizes of the logits | time, ms |")
    print("|---|---|---:|---:|---:|")
    for title, shape in SHAPES.items():
        sides = calls(shape, arguments.device)
        results = {name: call() for name, call in sides.items()}  # also warms up
        for ours, theirs in zip(*results.values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        del results, ours, theirs
        least = {
            name: min(kernel_meter.observe(call, arguments.device).extra for _ in range(3))
            for name, call in sides.items()
        }
        times = dict.fromkeys(sides, float("inf"))
        for _ in range(ROUNDS):
            for name, call in sides.items():
                times[name] = min(times[name], kernel_meter.seconds(call, arguments.device))
        size = 4 * torch.Size(shape).numel()
        for name, extra in least.items():
            print(
                f"| {name} | {title}, {list(shape)} | {extra / 2**20:.0f} | {extra / size:.1f} | "
                f"{times[name] * 1000:.1f} |"
            )


if __name__ == "__main__":
    main()
