"""Every call of OP_CASES beside its rivals: pytest benches/test_kernels.py, or make bench.

A call below one of its gates is measured once more, for a busy machine's sake; the second counts.
"""

from __future__ import annotations

import kernel_meter
import pytest
import rivals
import torch
from kernel_table import COPY, WARM, Row

from fastmed import ops
from fastmed.testing import OP_CASES

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SPEED = "copy of 256 MB"
_KEPT_BYTES = 2**20  # what ops.keep_result_memory speaks of
CASES = sorted(OP_CASES, key=lambda case: not case.large)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.flaky(reruns=1)
def test_kernel(case, device, benchmark, report):
    arguments = case.make(device)
    op = getattr(ops, case.op)
    kernel = rivals.with_gradients(lambda: op(*arguments, **case.keywords), arguments)
    kernel()
    ours = kernel_meter.observe(kernel, device, memory=case.large)
    extra, answer = ours.extra, ours.result
    del ours
    kernel()
    repeats = kernel_meter.repeats_for(kernel_meter.seconds(kernel, device))

    rounds = 5 if case.large else 7
    race = kernel_meter.Race(device, most=rounds)
    left_out, extras, details = {}, {}, {}
    for name, rival in rivals.of(case, arguments).items():
        if rival.needs_bytes > rivals.free_bytes():
            left_out[name] = f"needs {rival.needs_bytes / 2**30:.0f} GB"
            continue
        theirs = kernel_meter.observe(rival.call, device, memory=case.large)
        rival.check(f"{case}: {name}", answer, theirs.result)
        if theirs.seconds < 1:  # what libraries allocate once is not its own
            theirs = kernel_meter.observe(rival.call, device, memory=case.large)
        extras[name], details[name] = theirs.extra, rival.detail
        race.enter(name, rival.call, theirs.seconds)
        del theirs
    others = list(race.calls)
    if case.large:
        _enter_copies(race, answer, report.copies_on(device))

    benchmark.pedantic(
        kernel_meter.seconds,
        args=(kernel, device, repeats),
        setup=race.setup,
        rounds=rounds,
        warmup_rounds=1,
        iterations=1,
    )
    taken = {name: race.median(name) for name in race.calls}
    benchmark.extra_info.update({f"seconds of {name}": value for name, value in taken.items()})
    benchmark.extra_info["calls per round"] = repeats
    measured = {"rivals": {name: taken[name] for name in others}, "left_out": left_out}
    measured["details"] = details
    if case.large:
        moved = kernel_meter.bytes_of(arguments) + kernel_meter.bytes_of(answer)
        report.speeds.setdefault(device, []).append(taken[SPEED])
        measured |= {
            "copy": taken[COPY],
            "warm_copy": taken[WARM],
            "fresh": _in_fresh_memory(kernel, answer, device),
            "limit": moved / kernel_meter.Copies.speed(taken[SPEED]),
            "extra": extra,
            "rivals_extra": extras,
        }
    seconds = benchmark.stats.stats.median / repeats
    row = Row(case.op, case.name, device, seconds, case.large, note=case.note, **measured)
    if fallen := report.add(row):
        pytest.fail("\n".join(fallen), pytrace=False)


def _in_fresh_memory(kernel, answer, device) -> float:
    """Seconds of a kernel whose results are large enough to be kept; else NaN."""
    is_kept = device == "cpu" and kernel_meter.bytes_of(answer) >= _KEPT_BYTES
    return kernel_meter.in_fresh_memory(kernel, 5) if is_kept else float("nan")


def _enter_copies(race, answer, copies) -> None:
    """The output copied to fresh memory, and to memory in use."""
    outputs = [each.detach() for each in (answer if isinstance(answer, tuple) else (answer,))]
    kept = [each.clone() for each in outputs]
    for name, copy in (
        (COPY, lambda: [each.clone() for each in outputs]),
        (WARM, lambda: [a.copy_(b) for a, b in zip(kept, outputs, strict=True)]),
        (SPEED, copies.copy),
    ):
        race.enter(name, copy, kernel_meter.seconds(copy, race.device))
