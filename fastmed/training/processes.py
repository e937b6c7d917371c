"""The devices of a run, and the processes on them."""

from __future__ import annotations

from functools import partial
from multiprocessing import active_children

import torch

from fastmed import errors
from fastmed.errors import FastmedError, UsageError
from fastmed.training.checkpoint import Progress
from fastmed.training.loop import Job, train_here
from fastmed.training.recipe import Recipe

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def launch(job: Job, *, devices: int, device: str) -> Progress:
    """Trains in `devices` processes; returns how far the run came.

    device: "auto", "cpu", "cuda" or "cuda:1". Raises UsageError where the machine lacks them.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from torch.multiprocessing import ProcessRaisedException

    kind, which = choose_devices(job.recipe, devices=devices, device=device)
    fabric = Fabric(
        accelerator=kind,
        devices=which,
        strategy=DDPStrategy(start_method="spawn") if devices > 1 else "auto",
        precision=_PRECISIONS[job.recipe.loop.precision],
    )
    others = set(active_children())
    try:
        # Fabric looks into arguments and results for tensors to move, and refuses frozen
        # dataclasses.
        return Progress(**fabric.launch(partial(train_here, job=job)))
    except ProcessRaisedException as error:
        raise _as_it_was(error) from error
    except KeyboardInterrupt:  # SIGTERM, too, which reaches this process alone
        for process in set(active_children()) - others:
            process.terminate()
        raise


def choose_devices(recipe: Recipe, *, devices: int, device: str) -> tuple[str, int | list[int]]:
    """Which devices a run gets, as Fabric names them.

    Raises UsageError where the machine, or the recipe, does not allow them.
    """
    if devices < 1:
        raise UsageError(f"--devices {devices}: expected at least 1")
    kind, _, index = device.partition(":")
    if kind == "auto" and not index:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    is_index = index.isdecimal() and kind == "cuda"
    if kind not in ("cpu", "cuda") or (":" in device and not is_index):
        raise UsageError(f"--device {device}: expected auto, cpu, cuda or cuda:1")
    if is_index and devices > 1:
        raise UsageError(
            f"--device {device}: is one device; --devices {devices} takes --device cuda"
        )
    if kind == "cuda" and torch.cuda.device_count() < max(devices, int(index or 0) + 1):
        found = torch.cuda.device_count()
        raise UsageError(f"--devices {devices}, --device {device}: torch sees {found} CUDA devices")
    _check_precision(kind, recipe.loop.precision)
    if recipe.loop.batch_size % devices:
        raise UsageError(
            f"loop.batch_size {recipe.loop.batch_size}: expected a multiple of --devices {devices}"
        )
    return kind, [int(index)] if is_index else devices


def _as_it_was(error: Exception) -> Exception:
    """The error of a process that was started, which torch hands on as the text of its trace."""
    lines = str(error).rstrip().splitlines()
    for at in reversed(range(len(lines))):
        name, _, first = lines[at].partition(": ")
        if name.startswith("fastmed.errors."):
            kind = getattr(errors, name.removeprefix("fastmed.errors."), FastmedError)
            return kind("\n".join([first, *lines[at + 1 :]]))
    return error


def _check_precision(kind: str, precision: str) -> None:
    # torch 2.13 on the CPU: the bfloat16 gradient of a 3D convolution's weights reads memory that
    # nobody wrote, for images 2 or 6 voxels wide among others (oneDNN): finite or not, it is wrong.
    if kind == "cpu" and precision != "fp32":
        raise UsageError(
            f"loop.precision {precision}: needs a CUDA device; on the CPU torch's gradients of "
            "half-precision convolutions are not reliable, so that it trains in fp32 alone"
        )
