"""The training loop, for every task: read it from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fastmed import models
from fastmed.errors import FastmedError
from fastmed.malloc import keep_freed_memory
from fastmed.training.batches import Batch, TrainingSet
from fastmed.training.checkpoint import STATE_FILE, Progress, RandomState, load_state, save_state
from fastmed.training.logbook import Logbook
from fastmed.training.recipe import Recipe
from fastmed.training.run_folder import RunFolder
from fastmed.training.stored_case import StoredCase
from fastmed.training.tally import Tally
from fastmed.training.task_loss import build_loss
from fastmed.training.terminal import Terminal, figure
from fastmed.training.validate import CaseResult, run_cases, summarise

_PANELS = 8
_TIES = {"val_cpm": "val_iou"}  # what decides where the guide is equal: a CPM can reach 1 early


@dataclass(frozen=True, eq=False)
class Job:
    """What every process of a run is given.

    loss_name: as `fastmed.losses` knows it, never "auto". class_weights: for it; None where alike.
    """

    recipe: Recipe
    run: RunFolder
    train: tuple[StoredCase, ...]
    val: tuple[StoredCase, ...]
    loss_name: str
    class_weights: tuple[float, ...] | None
    quiet: bool


def train_here(fabric, job: Job) -> dict[str, Any]:
    """One process of a run; returns its Progress as plain values."""
    recipe, loop = job.recipe, job.recipe.loop
    if fabric.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(loop.seed)
    network = models.build(recipe.spec.network.name, **recipe.spec.network.arguments)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network = network.to(fabric.device, memory_format=_memory_format(recipe, fabric.device))
    average = _moving_average(network, loop.ema)
    optimiser = _optimiser(network, recipe)
    schedule = _schedule(optimiser, recipe)
    parts = _parts(fabric, network, optimiser, schedule, average)
    progress = Progress()
    if (state := job.run.path / STATE_FILE).is_file():
        progress = load_state(state, parts)
    step_network = torch.compile(network) if loop.compile else network
    step_network, optimiser = fabric.setup(step_network, optimiser)
    loss = build_loss(recipe, job.loss_name, job.class_weights).to(fabric.device)
    batches = TrainingSet(
        job.train,
        recipe.spec,
        recipe.sampling,
        recipe.augmentation,
        batch_size=loop.batch_size,
        seed=loop.seed,
        device=fabric.device,
    )
    first = fabric.global_rank == 0
    terminal = Terminal(quiet=job.quiet or not first)
    log = Logbook(job.run.path, progress.epoch + 1) if first else None
    if progress.epoch:
        terminal.say(f"resumed after epoch {progress.epoch}")
    judged = average.module if average is not None else network
    guide = _guide(job)
    if first and not progress.epoch:
        log.show_samples(batches.batch(1, 0, world=fabric.world_size))

    for epoch in range(progress.epoch + 1, loop.epochs + 1):
        if progress.stopped:
            break
        torch.manual_seed(loop.seed + epoch)
        started = time.perf_counter()
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": optimiser.param_groups[0]["lr"]}
        row |= _train_epoch(
            fabric,
            step_network,
            optimiser,
            average,
            loss,
            batches,
            recipe,
            progress,
            terminal,
            epoch,
        )
        panels = []
        validated = epoch % loop.validate_every == 0 or epoch == loop.epochs
        if validated and job.val:
            results = _validate(fabric, judged, job.val, recipe, loss, terminal)
            row |= {f"val_{name}": v for name, v in summarise(results, recipe.spec).items()}
            panels = [result.panel for result in results if result.panel is not None]
        row["seconds"] = time.perf_counter() - started
        progress.epoch = epoch
        progress.history.append(row)
        note = ""
        if validated or not job.val:
            note = _judge(progress, recipe, row, guide)
        _adjust_rate(schedule, progress, recipe, judged=validated or not job.val)
        if first:
            job.run.keep(recipe, judged, row, best=progress.best_epoch == epoch)
            log.record(progress.history, panels)
            terminal.say(_line(row) + note)
            save_state(state, progress, parts)  # last: a killed run repeats what it did not record
        fabric.barrier()
    if progress.stopped:
        terminal.say(progress.stopped)
    if first:
        log.close()
    return asdict(progress)


def _line(row: dict[str, Any]) -> str:
    """An epoch's row as one line."""
    timing = ("epoch", "seconds", "data_seconds")
    scores = (f"{name} {figure(v)}" for name, v in row.items() if name not in timing)
    waited = f", {row['data_seconds']:.1f} s of it for data"
    return f"epoch {row['epoch']}: {'  '.join(scores)}  ({row['seconds']:.1f} s{waited})"


def _train_epoch(
    fabric,
    network,
    optimiser,
    average,
    loss,
    batches: TrainingSet,
    recipe,
    progress,
    terminal,
    epoch,
) -> dict[str, Any]:
    """All steps of one epoch; returns the train_ figures of its row."""
    network.train()
    accumulate, clip = recipe.optimiser.accumulate, recipe.optimiser.clip_norm
    rate = optimiser.param_groups[0]["lr"]
    tally = Tally(recipe.spec, fabric.device)
    waited, total = 0.0, -(-batches.steps_per_epoch // accumulate)
    with (
        # Closed at once, not when the error's traceback goes: its thread would read on till then.
        closing(batches.epoch(epoch, rank=fabric.global_rank, world=fabric.world_size)) as source,
        terminal.steps(epoch, recipe.loop.epochs, total) as show,
    ):
        for step in range(1, total + 1):
            before = time.perf_counter()
            group: list[Batch] = list(islice(source, accumulate))
            waited += time.perf_counter() - before
            _warm_up(optimiser, rate, progress.steps, recipe.optimiser.warmup_steps)
            for number, batch in enumerate(group, start=1):
                with fabric.no_backward_sync(network, enabled=number < len(group)):
                    image = batch.image.contiguous(memory_format=_format_of(batch.image))
                    logits = network(image)
                    value = loss(logits, batch.target)
                    fabric.backward(value / len(group))
                tally.add(value.detach(), logits.detach(), batch)
            if clip:
                # What is not finite shows below; of fp16 the scaler leaves out such a step.
                fabric.clip_gradients(network, optimiser, max_norm=clip, error_if_nonfinite=False)
            optimiser.step()
            optimiser.zero_grad()
            progress.steps += 1
            if average is not None:
                average.update_parameters(_bare(network))
            show(step, tally.running)
    for group in optimiser.param_groups:
        group["lr"] = rate
    if not all(torch.isfinite(parameter).all() for parameter in network.parameters()):
        raise FastmedError(
            f"the weights became NaN or infinite in epoch {epoch}; the state of the epoch before "
            "is kept: lower optimiser.learning_rate, or set optimiser.clip_norm"
        )
    return tally.row(fabric) | {"data_seconds": waited}


def _validate(
    fabric, network: nn.Module, cases: Sequence[StoredCase], recipe: Recipe, loss, terminal
) -> list[CaseResult]:
    """Validates in all processes, each its share; everyone gets all results in one order."""
    rank, world = fabric.global_rank, fabric.world_size
    mine = cases[rank::world]
    device = str(fabric.device)
    panels = -(-_PANELS // world)
    with terminal.counted("validation", len(mine)) as progress:
        results = run_cases(
            network, mine, recipe.spec, loss, device, panels=panels, progress=progress
        )
    if world == 1:
        return results
    shares: list[Any] = [None] * world
    torch.distributed.all_gather_object(shares, results)
    return [shares[k % world][k // world] for k in range(len(cases))]


def _guide(job: Job) -> tuple[str, int]:
    """By which figure epochs are compared, and its better side; one for the whole run.

    Dice is no guide where no validation case has a label: it exists only for epochs that are wrong.
    """
    if not any(case.case.has_truth for case in job.val):
        return "train_loss", -1
    if any(case.case.boxes for case in job.val):
        return ("val_cpm" if job.recipe.spec.dimensions == 3 else "val_iou"), 1
    if job.recipe.spec.task == "segmentation" and any(len(case.points) for case in job.val):
        return "val_dice", 1
    return "val_loss", -1


def _judge(progress: Progress, recipe: Recipe, row: dict[str, Any], guide: tuple[str, int]) -> str:
    """Compares an epoch with the best one and decides on stopping; returns a remark on it."""
    name, better = guide
    score = row[name]
    progress.score = better * score
    if progress.best_score is None or _is_better(progress, row, name):
        progress.best_score, progress.best_epoch = progress.score, row["epoch"]
        progress.stale_epochs = 0
        return "  best so far"
    progress.stale_epochs += 1
    if recipe.loop.patience and progress.stale_epochs >= recipe.loop.patience:
        progress.stopped = (
            f"stopped early: no better epoch since epoch {progress.best_epoch} "
            f"(loop.patience {recipe.loop.patience})"
        )
    return ""


def _is_better(progress: Progress, row: dict[str, Any], name: str) -> bool:
    if progress.score != progress.best_score or name not in _TIES:
        return progress.score > progress.best_score
    best = progress.history[progress.best_epoch - 1]
    return row[_TIES[name]] > best[_TIES[name]]


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    chosen = recipe.optimiser
    return kinds[chosen.name](
        network.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
    )


def _schedule(optimiser: torch.optim.Optimizer, recipe: Recipe):
    """The learning rate's course over epochs; None where it stays."""
    from torch.optim import lr_scheduler

    chosen, epochs = recipe.optimiser, recipe.loop.epochs
    if chosen.schedule == "plateau":
        # Any better score counts, as for early stopping. torch's default asks for a share of the
        # best one more, which for scores below 0 (a loss turned round) takes worse for better.
        return lr_scheduler.ReduceLROnPlateau(
            optimiser, mode="max", factor=chosen.factor, patience=chosen.patience, threshold=0.0
        )
    if chosen.schedule == "cosine":
        low = chosen.final_learning_rate
        return lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs, eta_min=low)
    if chosen.schedule == "step":
        return lr_scheduler.StepLR(optimiser, chosen.step_epochs, chosen.factor)
    return None


def _adjust_rate(schedule, progress: Progress, recipe: Recipe, *, judged: bool) -> None:
    """Ends an epoch of the schedule; a plateau can be seen only where an epoch was judged."""
    if recipe.optimiser.schedule == "plateau":
        if judged:
            schedule.step(progress.score)
    elif schedule is not None:
        schedule.step()


def _warm_up(optimiser, rate: float, steps_done: int, warmup_steps: int) -> None:
    share = min(1.0, (steps_done + 1) / warmup_steps) if warmup_steps else 1.0
    for group in optimiser.param_groups:
        group["lr"] = rate * share


def _moving_average(network: nn.Module, decay: float):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    if not decay:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _parts(fabric, network, optimiser, schedule, average) -> dict[str, Any]:
    """What makes up the state of a run, by name."""
    parts = {"network": network, "optimiser": optimiser, "random": RandomState()}
    if schedule is not None:
        parts["schedule"] = schedule
    if average is not None:
        parts["average"] = average
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if scaler is not None:
        parts["scaler"] = scaler
    return parts


def _bare(network: nn.Module) -> nn.Module:
    """The network below the wrappers of Fabric, DDP and torch.compile."""
    while True:
        inner = getattr(network, "module", None) or getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def _memory_format(recipe: Recipe, device: torch.device) -> torch.memory_format:
    if device.type != "cpu":
        return torch.contiguous_format
    return torch.channels_last if recipe.spec.dimensions == 2 else torch.channels_last_3d


def _format_of(image: Tensor) -> torch.memory_format:
    if image.device.type != "cpu":
        return torch.contiguous_format
    return torch.channels_last if image.ndim == 4 else torch.channels_last_3d
